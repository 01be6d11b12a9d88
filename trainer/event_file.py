"""`events.jsonl` on the trainer's side: read again whatever it holds; a line is appended whole or not at all."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from trainer.crashing import crash_point
from trainer.protocol.events import MAX_LINE_BYTES, Event, parse_event

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a file of events holds."""

    events: tuple[Event, ...] = ()
    #: Lines that are no events of this version: a damaged disk, another program.
    garbage: int = 0
    #: Up to the last line break.
    whole_bytes: int = 0
    all_bytes: int = 0


def scan(path: Path) -> Scan:
    """Read a file of events, never more than a line of it at once; nothing where there is no file."""
    if not path.exists():
        return Scan()
    events: list[Event] = []
    garbage = whole_bytes = all_bytes = 0
    is_inside = False
    with path.open("rb") as file:
        while part := file.readline(MAX_LINE_BYTES):
            all_bytes += len(part)
            # The end of a line that was too long is no line either.
            was_inside, is_inside = is_inside, not part.endswith(b"\n")
            if is_inside:
                continue
            whole_bytes = all_bytes
            event = None if was_inside else _event(part)
            if event is not None:
                events.append(event)
            elif was_inside or part.strip():
                garbage += 1
    return Scan(events=tuple(events), garbage=garbage, whole_bytes=whole_bytes, all_bytes=all_bytes)


def _event(line: bytes) -> Event | None:
    try:
        return parse_event(line)
    except ValidationError:
        return None


class EventFile:
    """Open for appending. A line is on the disk before `append` returns; one that cannot be written leaves no trace."""

    def __init__(self, path: Path, found: Scan) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        torn = found.all_bytes - found.whole_bytes
        if torn > MAX_LINE_BYTES:
            # Too long to be a torn event. The bot has passed over it, so its bytes must stay where they are.
            os.write(self._descriptor, b"\n")
        elif torn:
            # A process that was killed in mid-write leaves a torn last line: nobody has read it, so it goes.
            os.ftruncate(self._descriptor, found.whole_bytes)

    def append(self, line: bytes) -> None:
        """Write one line.

        Raises:
            OSError: the disk is full, or does not work.
        """
        before = os.fstat(self._descriptor).st_size
        crash_point("event_half_written", lambda: os.write(self._descriptor, line[: len(line) // 2]))
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        os.close(self._descriptor)
