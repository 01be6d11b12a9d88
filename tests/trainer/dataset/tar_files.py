"""Makes tar and 7z archives for the dataset tests, good and hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import py7zr
from backports import zstd


def tar_bytes(members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None, tar_format: int = 2) -> bytes:
    """A tar of regular files, followed by the entries of `extra`, which have no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra or ():
            archive.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A link, device, pipe or folder."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def packed(data: bytes, ending: str) -> bytes:
    """Compress the bytes; `ending` chooses the format."""
    if ending == "gz":
        return gzip.compress(data, mtime=0)
    if ending == "bz2":
        return bz2.compress(data)
    if ending == "xz":
        return lzma.compress(data)
    if ending == "zst":
        return zstd.compress(data)
    return data


def make_tar(path: Path, members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> Path:
    """Write a tar; the ending of the path chooses the compression."""
    path.write_bytes(packed(tar_bytes(members, extra), path.suffix[1:].replace("tgz", "gz")))
    return path


def make_7z(
    path: Path,
    members: dict[str, bytes],
    *,
    password: str | None = None,
    header_encryption: bool = False,
    filters: list[dict[str, int]] | None = None,
) -> Path:
    with py7zr.SevenZipFile(
        path, "w", password=password, header_encryption=header_encryption, filters=filters
    ) as archive:
        for name, data in members.items():
            archive.writestr(data, name)
    return path
