"""The end of a trainer's log, as it is carried from one machine to another."""

from __future__ import annotations

import os
from pathlib import Path

#: So much of it is carried: what went wrong stands at its end.
MAX_LOG_BYTES = 256 * 1024


def read_tail(path: Path, limit_bytes: int = MAX_LOG_BYTES) -> bytes:
    """The last whole lines of a file, at most so many bytes; nothing if there is no file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - limit_bytes)
            file.seek(start)
            tail = file.read(limit_bytes)
    except FileNotFoundError:
        return b""
    # The first line was cut in two; a single one as long as that is kept as it is.
    return tail[tail.find(b"\n") + 1 :] if start else tail
