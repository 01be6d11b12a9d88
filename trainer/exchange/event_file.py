"""Reads `events.jsonl` while a trainer appends to it: complete lines only, from a byte offset on, in bounded parts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from trainer.protocol.events import MAX_LINE_BYTES, Event, parse_event

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
#: Upper limit of one read: a trainer that fills the disk does not fill the bot's memory as well.
MAX_READ_BYTES = 2 * MAX_LINE_BYTES


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One event and the bytes of its line."""

    event: Event
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class EventBatch:
    """The events of one read. To read everything, continue from `end` until it no longer changes."""

    lines: tuple[EventLine, ...]
    #: Where to continue. Lines that are not events are skipped.
    end: int


def read_events(job_dir: Path, offset: int) -> EventBatch:
    """Read the complete lines after `offset`, at most `MAX_READ_BYTES`; a line without its line break is left."""
    try:
        with (job_dir / EVENTS_FILE).open("rb") as file:
            file.seek(offset)
            data = file.read(MAX_READ_BYTES)
    except FileNotFoundError:
        return EventBatch(lines=(), end=offset)
    complete = data[: data.rfind(b"\n") + 1]
    if not complete and len(data) > MAX_LINE_BYTES:
        # No event is that long, so the line is not an event, wherever it ends.
        log.warning("#%s: skipping %d bytes without a line break", job_dir.name, len(data))
        return EventBatch(lines=(), end=offset + len(data))
    return EventBatch(lines=_parse_lines(complete, offset, job_dir), end=offset + len(complete))


def read_all_events(job_dir: Path) -> tuple[Event, ...]:
    """Read all complete lines of a job folder; empty if there is no event file.

    Raises:
        pydantic.ValidationError: A line is not an event of this version.
    """
    path = job_dir / EVENTS_FILE
    data = path.read_bytes() if path.exists() else b""
    return tuple(parse_event(line) for line in data[: data.rfind(b"\n") + 1].splitlines())


def parse_line(line: bytes) -> Event | None:
    """Return the event of a line, None if it is not an event of this version."""
    # Checked first, so that a file full of something else is skipped quickly.
    if not line.startswith(b"{") or len(line) > MAX_LINE_BYTES:
        return None
    try:
        return parse_event(line)
    except ValidationError:
        return None


def _parse_lines(complete: bytes, offset: int, job_dir: Path) -> tuple[EventLine, ...]:
    lines: list[EventLine] = []
    invalid: list[bytes] = []
    start = offset
    for line in complete.split(b"\n")[:-1]:
        end = start + len(line) + 1
        if (event := parse_line(line)) is not None:
            lines.append(EventLine(event=event, start=start, end=end))
        elif line.strip():
            invalid.append(line[:200])
        start = end
    if invalid:
        log.warning("#%s: skipping %d lines that are not events: %r", job_dir.name, len(invalid), invalid[0])
    return tuple(lines)
