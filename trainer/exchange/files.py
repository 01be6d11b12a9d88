"""Writes files and folders that appear whole or not at all, and finds files that another process has named."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Ends the name of what is not complete yet; whatever ends so was left by a process that died.
PARTIAL_SUFFIX = ".part"


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` if the body succeeds.

    The temporary name is unique, so concurrent writers do not disturb each other: the last one wins. It keeps the
    extension of `path`, from which many libraries choose the format. If the body fails, the temporary file is
    removed and `path` is unchanged.

    Args:
        path: The final name; its folder must exist.
        durable: Also survive a power cut (fsync of the file and of its folder, a few milliseconds each).

    Raises:
        OSError: The file cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}{path.suffix}")
    try:
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8; see `atomic_write`."""
    with atomic_write(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locate(folder: Path, path: str) -> Path:
    """Return where a file that another process has named really lies: inside `folder`, whatever it and links say.

    Raises:
        FileNotFoundError: There is no such file, or it lies outside.
    """
    try:
        real = (folder / path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, in Python 3.11
        raise FileNotFoundError(path) from error
    if not real.is_relative_to(folder.resolve()) or not real.is_file():
        raise FileNotFoundError(path)
    return real


@dataclass(frozen=True, kw_only=True)
class FileInFolder:
    """A file by its path in a folder that other processes write into: they may be compromised."""

    folder: Path
    #: Relative to `folder`.
    path: str

    def locate(self) -> Path:
        """Return where the file really lies; raises what `locate` raises."""
        return locate(self.folder, self.path)
