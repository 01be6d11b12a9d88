"""`python -m bot queue`: shows the queue as text or JSON, and pauses, drains or resumes it; with or without a bot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import Config
from bot.db import DATABASE_FILE, open_db, open_to_read
from bot.outbox import Outbox
from bot.queue import ACTIVE, Job, JobStore, PauseKind, QueuePause, Slot, State
from bot.ui.job_card import state_name
from bot.ui.queue_pages import BoardSnapshot
from trainer.protocol.text import _

#: Stands for the user who paused or resumed the queue here; no Discord user has this id.
COMMAND_LINE = 0

_ACTIVE_OR_PAUSED = "SELECT id FROM job WHERE state IN ('preparing', 'running', 'stopping', 'paused') ORDER BY id"


async def read_queue(config: Config, *, clock: Clock = SYSTEM_CLOCK) -> BoardSnapshot:
    """Read the queue from the database, which a bot may be using: jobs that wait come in the order of their start.

    Raises:
        DataFolderError: There is no database, or not one of this version.
    """
    async with open_to_read(config.storage.data_dir / DATABASE_FILE) as db:
        store = JobStore(db, Outbox(db), data_dir=config.storage.data_dir)
        jobs = [await store.get(row["id"]) for row in await db.all(_ACTIVE_OR_PAUSED)]
        return BoardSnapshot(
            now=clock.now(),
            jobs=[*jobs, *await store.queued()],
            slots=await store.slots.all(),
            queue_pause=await store.control.read(),
        )


async def pause_queue(config: Config, kind: PauseKind, why: str) -> str:
    """Pause or drain the queue, and return what follows; a running bot notices it at its next poll.

    Raises:
        DataFolderError: There is no database, or not one of this version.
    """
    async with _writable_store(config) as store:
        await store.control.pause(kind, by=COMMAND_LINE, why=why)
    if kind is PauseKind.PAUSE:
        return _(
            "Paused: no new training starts, and running ones continue. `python -m bot queue --resume` lets the queue "
            "run again."
        )
    return _(
        "Draining: running trainings save a checkpoint and free their GPUs. `python -m bot queue` shows the progress; "
        "`--resume` lets the queue run again."
    )


async def resume_queue(config: Config) -> str:
    """Let the queue run again, and return whether it was paused, as a sentence.

    Raises:
        DataFolderError: There is no database, or not one of this version.
    """
    async with _writable_store(config) as store:
        was_paused = await store.control.resume(by=COMMAND_LINE)
    return _("The queue is running again.") if was_paused else _("The queue is already running.")


@asynccontextmanager
async def _writable_store(config: Config) -> AsyncIterator[JobStore]:
    path = config.storage.data_dir / DATABASE_FILE
    # Refuses a database that does not exist or needs a migration.
    async with open_to_read(path):
        pass
    async with open_db(path) as db:
        yield JobStore(db, Outbox(db), data_dir=config.storage.data_dir)


def queue_text(queue: BoardSnapshot) -> str:
    """The queue for a terminal."""
    running, waiting, paused = queue.of(*ACTIVE), queue.of(State.QUEUED), queue.of(State.PAUSED)
    on_slots = {slot.job_id for slot in queue.slots}
    slotless = [job for job in running if job.id not in on_slots]
    free = sum(slot.job_id is None and slot.is_enabled for slot in queue.slots)
    lines = [
        _("Queue: {state}", state=_pause_text(queue.queue_pause)),
        _("Slots: {free} of {slots} free", free=free, slots=len(queue.slots)),
        *(f"  {_slot_line(slot, running)}" for slot in queue.slots),
    ]
    if slotless:
        lines += [_("Without a slot (a study needs none):"), *(f"  {_job_line(job)}" for job in slotless)]
    lines.append(_("Waiting: {n}", n=len(waiting)))
    lines += [
        f"  {position:3}. {_job_line(job)}{_delay(job, queue.now)}" for position, job in enumerate(waiting, start=1)
    ]
    if paused:
        lines += [_("Paused: {n}", n=len(paused)), *(f"  {_job_line(job)}" for job in paused)]
    return "\n".join(lines)


def queue_json(queue: BoardSnapshot) -> dict[str, Any]:
    """The queue for a program."""
    return {
        "pause": None if queue.queue_pause is None else queue.queue_pause.model_dump(mode="json"),
        "slots": [asdict(slot) for slot in queue.slots],
        "running": [_job_json(job) for job in queue.of(*ACTIVE)],
        "waiting": [_job_json(job) for job in queue.of(State.QUEUED)],
        "paused": [_job_json(job) for job in queue.of(State.PAUSED)],
    }


def _pause_text(pause: QueuePause | None) -> str:
    if pause is None:
        return _("running")
    who = _("the command line") if pause.by == COMMAND_LINE else _("user {user}", user=pause.by)
    state = _("paused") if pause.kind is PauseKind.PAUSE else _("draining")
    text = _("{state} since {when} UTC by {who}", state=state, when=f"{pause.at:%Y-%m-%d %H:%M}", who=who)
    return f"{text}: {pause.why}" if pause.why else text


def _slot_line(slot: Slot, running: Sequence[Job]) -> str:
    job = next((job for job in running if job.id == slot.job_id), None)
    use = _("free") if slot.job_id is None else f"#{slot.job_id}" if job is None else _job_line(job)
    return f"{slot.name}{'' if slot.is_enabled else _(' (gone or switched off)')}: {use}"


def _job_line(job: Job) -> str:
    return " · ".join(_job_parts(job))


def _job_parts(job: Job) -> Iterator[str]:
    yield f"#{job.id} {job.name}"
    yield state_name(job.state)
    yield _("owner {owner}", owner=job.owner_id)
    step = job.progress.step
    if step is not None and job.state.is_active:
        yield _(
            "epoch {epoch}, step {step} of {steps}", epoch=step.epoch, step=step.step, steps=job.progress.total_steps
        )
    if job.attempt > 1:
        yield _("attempt {n}", n=job.attempt)
    if job.priority:
        yield _("{priority} priority", priority=job.priority.name.lower())
    if job.gpus > 1:
        yield _("{n} GPUs", n=job.gpus)


def _delay(job: Job, now: datetime) -> str:
    if job.run_after is None or job.run_after <= now:
        return ""
    return _(" · not before {when} UTC", when=f"{job.run_after:%Y-%m-%d %H:%M}")


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "owner_id": job.owner_id,
        "guild_id": job.guild_id,
        "priority": job.priority.name.lower(),
        "gpus": job.gpus,
        "attempt": job.attempt,
        "slots": job.slots if job.state.is_active else (),
        "epoch": job.progress.step.epoch if job.progress.step else None,
        "run_after": _iso(job.run_after),
        "started_at": _iso(job.started_at),
        "last_event_at": _iso(job.last_event_at),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
