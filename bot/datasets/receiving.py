"""From a stream of bytes to files under their content's name; nothing is left behind by one that fails."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from bot.datasets.dataset import Received, ReceivedFile, Upload
from bot.errors import DatasetRefused, DatasetTooLarge

#: Below a content's folder: what was handed in, and what `trainer prepare` made of it.
SOURCE, PREPARED = "source", "prepared"


async def receive(uploads: Sequence[Upload], *, incoming: Path, datasets: Path, max_bytes: int) -> Received:
    """Write the uploads into `incoming`, then move them to `datasets/<sha256>/source`.

    Raises:
        DatasetTooLarge: together they have more than `max_bytes`; reading stops there.
        DatasetRefused: there is no file, or only empty ones.
    """
    folder = incoming / secrets.token_hex(8)
    await asyncio.to_thread(folder.mkdir, parents=True)
    try:
        files: list[ReceivedFile] = []
        for upload in uploads:
            name = _unique(plain_name(upload.name), [file.name for file in files])
            left = max_bytes - sum(file.bytes for file in files)
            received = await _receive_one(upload, folder / name, left)
            if received is None:
                raise DatasetTooLarge(file_name=name, max_bytes=max_bytes)
            files.append(received)
        if not any(file.bytes for file in files):
            raise DatasetRefused("There is nothing in what you handed in: it has 0 bytes.")
        sha256 = content_sha256(files)
        source = datasets / sha256 / SOURCE
        await asyncio.to_thread(publish_source, folder, source)
        return Received(sha256=sha256, source=source, files=tuple(files))
    finally:
        # In a thread of its own and not awaited to its end if cancelled: a small folder of our own.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def content_sha256(files: Sequence[ReceivedFile]) -> str:
    """The name of a content: one file's own hash; for several, one over names too, since captions go by names."""
    if len(files) == 1:
        return files[0].sha256
    lines = sorted(f"{file.name}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def plain_name(name: str) -> str:
    """A file name without folders, control characters or a leading dot, at most 100 characters, its ending kept."""
    base = re.split(r"[/\\]", name)[-1]
    base = "".join(character for character in base if character.isprintable()).strip().lstrip(".")
    stem, dot, ending = base.rpartition(".")
    if dot and stem and len(ending) <= 10:
        return f"{stem[: 99 - len(ending)]}.{ending}"
    return base[:100] or "file"


def dataset_name(file_name: str) -> str:
    """A name for a dataset from its file's: small letters, digits, `.`, `-` and `_`, at most 36 (room for `-12`)."""
    stem = file_name.rpartition(".")[0] or file_name
    slug = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    return slug[:36].strip("-._") or "dataset"


async def _receive_one(upload: Upload, path: Path, max_bytes: int) -> ReceivedFile | None:
    """The file, written and safe on the disk; None if it is too large."""
    digest = hashlib.sha256()
    count = 0
    with path.open("xb") as file:
        async for chunk in upload.chunks:
            count += len(chunk)
            if count > max_bytes:
                return None
            await asyncio.to_thread(_write, file, digest, chunk)
        await asyncio.to_thread(_sync, file)
    return ReceivedFile(name=path.name, sha256=digest.hexdigest(), bytes=count)


def _write(file: BinaryIO, digest: hashlib._Hash, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def publish_source(folder: Path, source: Path) -> None:
    """Move a received folder into place, unless the same content is there already."""
    source.parent.mkdir(parents=True, exist_ok=True)
    # Young again, so that the sweep of unused content leaves it alone.
    os.utime(source.parent)
    try:
        folder.rename(source)
    except OSError:
        if not source.exists():
            raise


def _unique(name: str, taken: Sequence[str]) -> str:
    """`a.png`, `a-2.png`, …: no two names that some file system takes for one."""
    known = {other.casefold() for other in taken}
    stem, dot, ending = name.rpartition(".")
    candidate, number = name, 2
    while candidate.casefold() in known:
        candidate = f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"
        number += 1
    return candidate
