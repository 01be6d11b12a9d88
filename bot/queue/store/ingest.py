"""Writing down what a trainer said, within the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bot.config import QueueSettings
from bot.db import Connection, Row
from bot.outbox import Outbox
from bot.queue.domain.job import State, StopIntent
from bot.queue.domain.rules import Run
from bot.queue.store.notifications import notice_of
from trainer.protocol.events import (
    EpochEnded,
    Event,
    Failed,
    Finished,
    LastWord,
    Started,
    StepDone,
    Stopped,
    Working,
    parse_event,
)

log = logging.getLogger(__name__)

_NEWEST_SAMPLES = "SELECT body FROM job_event WHERE job_id = ? AND type = 'sampled' ORDER BY seq DESC LIMIT 8"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a batch of events leaves behind."""

    last_seq: int
    #: The newest one, None if there was none.
    step: StepDone | None
    #: The last word, if the batch ends in one: words in its middle were followed by another run.
    last_word: LastWord | None


async def first(connection: Connection, statement: str, parameters: Iterable[Any] | Mapping[str, Any]) -> Row | None:
    """The first row that a statement returns, None if it returns none."""
    rows = await connection.execute_fetchall(statement, parameters)
    return next(iter(rows), None)


async def events_of(connection: Connection, job_id: int) -> list[Event]:
    """All events of a job that are kept, oldest first."""
    rows = await connection.execute_fetchall("SELECT body FROM job_event WHERE job_id = ? ORDER BY seq", (job_id,))
    return [parse_event(row[0]) for row in rows]


async def _newest_samples(connection: Connection, job_id: int) -> list[Event]:
    """The pictures that a post about an epoch may show; not all events, whose number grows with every epoch."""
    rows = await connection.execute_fetchall(_NEWEST_SAMPLES, (job_id,))
    return [parse_event(row[0]) for row in reversed(list(rows))]


async def write_down(connection: Connection, outbox: Outbox, row: Row, events: Sequence[Event]) -> Said:
    """Insert the events that are new, and put the notices that they cause into the outbox."""
    last_seq: int = row["last_seq"]
    new = [event for event in events if event.seq > last_seq and not _is_fenced(row, event)]
    kept = [event for event in new if not isinstance(event, StepDone | Working)]
    earlier = await _newest_samples(connection, row["id"]) if kept else []
    for event in kept:
        await connection.execute_fetchall(
            "INSERT INTO job_event (job_id, seq, attempt, type, body) VALUES (?, ?, ?, ?, ?)",
            (row["id"], event.seq, row["attempt"], event.type, event.model_dump_json()),
        )
        if row["parent_id"] is None and (told := notice_of(row["id"], row["attempt"], event, earlier)):
            key, notice = told
            await outbox.put(connection, notice, channel_id=row["channel_id"], dedupe_key=key)
        earlier.append(event)
    steps = [event for event in new if isinstance(event, StepDone)]
    return Said(
        last_seq=new[-1].seq if new else last_seq,
        step=steps[-1] if steps else None,
        last_word=new[-1] if new and isinstance(new[-1], Finished | Stopped | Failed) else None,
    )


def _is_fenced(row: Row, event: Event) -> bool:
    """Whether a process says it that lost the job to a later attempt (0: a trainer that nobody numbered)."""
    if 0 < event.attempt < row["attempt"]:
        log.warning("#%d: attempt %d is over; what it said is refused (%s)", row["id"], event.attempt, event.type)
        return True
    return False


async def run_of(connection: Connection, row: Row, settings: QueueSettings) -> Run:
    """The run of a busy job row, as the rules see it."""
    said = await events_of(connection, row["id"])
    kept = [event.epoch for event in said if isinstance(event, EpochEnded)]
    fitted = [event.micro_batch_size for event in said if isinstance(event, Started)]
    ceiling = [row["micro_batch"]] if row["micro_batch"] else []
    step = None if row["step"] is None else parse_event(row["step"])
    kept_epoch = kept[-1] if kept else 0
    return Run(
        job_id=row["id"],
        state=State(row["state"]),
        stop_intent=None if row["stop_intent"] is None else StopIntent(row["stop_intent"]),
        is_finishing=bool(row["is_finishing"]),
        starts=row["attempt"] - row["excused"],
        max_starts=settings.max_attempts,
        excused=row["excused"],
        micro_batch=min(fitted[-1:] + ceiling, default=0),
        retry_pause_s=settings.retry_pause_s,
        epoch=max(step.epoch if isinstance(step, StepDone) else 0, kept_epoch),
        kept_epoch=kept_epoch,
    )
