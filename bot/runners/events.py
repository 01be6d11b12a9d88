"""Reading `events.jsonl` while somebody else writes it: complete lines only, from a byte offset on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from trainer.protocol.events import Event, parse_event

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One event and where its line stands, in bytes."""

    event: Event
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class EventLines:
    """What was read: the events, and up to which byte (lines that are no events are passed over)."""

    lines: tuple[EventLine, ...]
    end: int


def read_events(job_dir: Path, offset: int) -> EventLines:
    """The complete lines after `offset`; a last line without its line break is left for the next time."""
    try:
        with (job_dir / EVENTS_FILE).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return EventLines(lines=(), end=offset)
    complete = data[: data.rfind(b"\n") + 1]
    lines: list[EventLine] = []
    start = offset
    for line in complete.splitlines(keepends=True):
        end = start + len(line)
        if event := _event(line, job_dir):
            lines.append(EventLine(event=event, start=start, end=end))
        start = end
    return EventLines(lines=tuple(lines), end=start)


def _event(line: bytes, job_dir: Path) -> Event | None:
    if not line.strip():
        return None
    try:
        return parse_event(line)
    except ValidationError as error:
        log.warning(
            "#%s: a line is no event of this version (%d problems): %.200r", job_dir.name, error.error_count(), line
        )
        return None
