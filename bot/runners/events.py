"""Reading `events.jsonl` while somebody else writes it: complete lines only, from a byte offset on, a bounded part."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from trainer.protocol.events import MAX_LINE_BYTES, Event, parse_event

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
#: Read by one call: a trainer that fills the disk does not fill our memory too.
MAX_READ_BYTES = 2 * MAX_LINE_BYTES


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One event and where its line stands, in bytes."""

    event: Event
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class EventLines:
    """What was read: the events, and up to which byte (lines that are no events are passed over).

    Whoever wants all of it reads on until `end` stays the same.
    """

    lines: tuple[EventLine, ...]
    end: int


def read_events(job_dir: Path, offset: int) -> EventLines:
    """The complete lines after `offset`, of the next MAX_READ_BYTES; a line without its line break waits for it."""
    try:
        with (job_dir / EVENTS_FILE).open("rb") as file:
            file.seek(offset)
            data = file.read(MAX_READ_BYTES)
    except FileNotFoundError:
        return EventLines(lines=(), end=offset)
    complete = data[: data.rfind(b"\n") + 1]
    if not complete and len(data) > MAX_LINE_BYTES:
        # No event is that long: its end, wherever it is, will be no event either.
        log.warning("#%s: %d bytes without a line break are passed over", job_dir.name, len(data))
        return EventLines(lines=(), end=offset + len(data))
    return EventLines(lines=_parse(complete, offset, job_dir), end=offset + len(complete))


def _parse(complete: bytes, offset: int, job_dir: Path) -> tuple[EventLine, ...]:
    lines: list[EventLine] = []
    garbage: list[bytes] = []
    start = offset
    for line in complete.split(b"\n")[:-1]:
        end = start + len(line) + 1
        if (event := _event(line)) is not None:
            lines.append(EventLine(event=event, start=start, end=end))
        elif line.strip():
            garbage.append(line[:200])
        start = end
    if garbage:
        log.warning("#%s: %d lines are no events of this version: %r", job_dir.name, len(garbage), garbage[0])
    return tuple(lines)


def _event(line: bytes) -> Event | None:
    # A file full of something else is passed over quickly.
    if not line.startswith(b"{") or len(line) > MAX_LINE_BYTES:
        return None
    try:
        return parse_event(line)
    except ValidationError:
        return None
