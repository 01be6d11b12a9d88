"""Untrusted archives behind one interface: checked, listed, and read by member, never unpacked to their names."""

from __future__ import annotations

from pathlib import Path

from trainer.dataset.archives.archive import Archive
from trainer.dataset.archives.tar_archive import TarArchive
from trainer.dataset.archives.zip_archive import ZipArchive
from trainer.dataset.input_files import FileKind, Limits

#: Kinds that `open_archive` takes.
READABLE_ARCHIVES = frozenset({FileKind.ZIP, FileKind.TAR, FileKind.COMPRESSED, FileKind.SEVEN_ZIP})


def open_archive(path: Path, kind: FileKind, limits: Limits) -> Archive:
    """Open and list an archive; close it to delete its temporary files.

    Raises:
        RefusedError: The archive is damaged or hostile as a whole.
        ValueError: `kind` is not in `READABLE_ARCHIVES`.
    """
    if kind is FileKind.ZIP:
        return ZipArchive(path, limits)
    if kind is FileKind.SEVEN_ZIP:
        # py7zr and its ciphers take 0.2 s to import, and most uploads are zips.
        from trainer.dataset.archives.seven_zip_archive import SevenZipArchive

        return SevenZipArchive(path, limits)
    if kind in (FileKind.TAR, FileKind.COMPRESSED):
        return TarArchive(path, limits, is_compressed=kind is FileKind.COMPRESSED)
    raise ValueError(f"{kind} is not an archive that can be opened")
