"""Archives from strangers behind one interface: checked, listed, and read member by member, never unpacked to names."""

from __future__ import annotations

from pathlib import Path

from trainer.dataset.archives.member import Archive, Member, RefusedError
from trainer.dataset.archives.tar import TarArchive
from trainer.dataset.archives.zip import ZipArchive
from trainer.dataset.kinds import Kind
from trainer.dataset.limits import Limits

__all__ = ["OPENED", "Archive", "Member", "RefusedError", "open_archive"]

#: Kinds that `open_archive` takes.
OPENED = frozenset({Kind.ZIP, Kind.TAR, Kind.COMPRESSED, Kind.SEVEN_ZIP})


def open_archive(path: Path, kind: Kind, limits: Limits) -> Archive:
    """The archive, listed; close it to give its temporary file back.

    Raises:
        RefusedError: the archive is damaged or hostile as a whole.
        ValueError: `kind` is not in `OPENED`.
    """
    if kind is Kind.ZIP:
        return ZipArchive(path, limits)
    if kind is Kind.SEVEN_ZIP:
        # py7zr and its ciphers take 0.2 s to import, and most uploads are zips.
        from trainer.dataset.archives.seven_zip import SevenZipArchive

        return SevenZipArchive(path, limits)
    if kind in (Kind.TAR, Kind.COMPRESSED):
        return TarArchive(path, limits, is_compressed=kind is Kind.COMPRESSED)
    raise ValueError(f"{kind} is no archive that is opened")
