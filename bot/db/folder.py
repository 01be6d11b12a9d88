"""One bot for one data folder, held by a lock that the kernel drops when the bot dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bot.errors import FolderInUse

#: In the data folder.
DATABASE_FILE = "darkroom.db"
_LOCK_FILE = "bot.lock"


@contextmanager
def hold_data_folder(data_dir: Path) -> Iterator[Path]:
    """Make the data folder if it is missing and keep it for this process.

    Raises:
        FolderInUse: another bot holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    # Close-on-exec (Python's default): a trainer that outlives the bot must not keep the lock.
    descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(path=data_dir) from None
        yield data_dir
    finally:
        os.close(descriptor)
