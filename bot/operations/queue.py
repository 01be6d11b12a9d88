"""`python -m bot queue`: the line and what runs, as text or JSON; and the main switch. With or without a bot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.config import Config
from bot.db import DATABASE_FILE, Database, open_db, open_to_read
from bot.outbox import Outbox
from bot.queue import Halt, HaltKind, Job, JobStore, Slot, State

#: Who is said to have used the switch when it was used here; no person of Discord's has this number.
COMMAND_LINE = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """How the queue stands."""

    halt: Halt | None
    slots: tuple[Slot, ...]
    running: tuple[Job, ...]
    #: In the order in which they will start.
    waiting: tuple[Job, ...]
    paused: tuple[Job, ...]


async def read_line(config: Config) -> Line:
    """The queue as the database has it; a bot may work on it meanwhile.

    Raises:
        DataFolderError: there is no database, or not one of this version.
    """
    async with open_to_read(config.storage.data_dir / DATABASE_FILE) as db:
        store = _store(db, config.storage.data_dir)
        rows = await db.all(
            "SELECT id FROM job WHERE state IN ('preparing', 'running', 'stopping', 'paused') ORDER BY id"
        )
        jobs = [await store.get(row["id"]) for row in rows]
        return Line(
            halt=await store.switch.read(),
            slots=tuple(await store.slots.all()),
            running=tuple(job for job in jobs if job.state is not State.PAUSED),
            waiting=tuple(await store.waiting()),
            paused=tuple(job for job in jobs if job.state is State.PAUSED),
        )


async def halt_queue(config: Config, kind: HaltKind, why: str) -> str:
    """Pause or drain; a running bot sees it at its next look, one that is started later finds it.

    Raises:
        DataFolderError: there is no database, or not one of this version.
    """
    path = config.storage.data_dir / DATABASE_FILE
    await _require(path)
    async with open_db(path) as db:
        await _store(db, config.storage.data_dir).switch.halt(kind, by=COMMAND_LINE, why=why)
    match kind:
        case HaltKind.PAUSE:
            return "Paused: nothing new starts; what runs goes on. `python -m bot queue --resume` lets it start again."
        case HaltKind.DRAIN:
            return (
                "Draining: what runs saves its checkpoint and frees its GPU. Look with `python -m bot queue`; "
                "`--resume` lets all of it go on."
            )


async def resume_queue(config: Config) -> str:
    """Let jobs start again.

    Raises:
        DataFolderError: there is no database, or not one of this version.
    """
    path = config.storage.data_dir / DATABASE_FILE
    await _require(path)
    async with open_db(path) as db:
        was_halted = await _store(db, config.storage.data_dir).switch.resume(by=COMMAND_LINE)
    return "The queue runs again." if was_halted else "The queue ran already."


def as_text(line: Line, now: datetime) -> str:
    """The queue for a terminal."""
    on_slots = {slot.job_id for slot in line.slots}
    slotless = [job for job in line.running if job.id not in on_slots]
    sections = [
        f"Queue: {_halt_words(line.halt)}",
        _section(f"Slots: {_free(line)} of {len(line.slots)} free", [_slot_words(slot, line) for slot in line.slots]),
        _section("Without a slot (a study needs none):", [_job_words(job) for job in slotless]) if slotless else "",
        _section(
            f"Waiting: {len(line.waiting)}",
            [f"{place:3}. {_job_words(job)}{_not_before(job, now)}" for place, job in enumerate(line.waiting, start=1)],
        ),
        _section(f"Paused: {len(line.paused)}", [_job_words(job) for job in line.paused]) if line.paused else "",
    ]
    return "\n".join(section for section in sections if section)


def as_json(line: Line) -> dict[str, Any]:
    """The queue for a program."""
    return {
        "halt": None if line.halt is None else line.halt.model_dump(mode="json"),
        "slots": [asdict(slot) for slot in line.slots],
        "running": [_job_json(job) for job in line.running],
        "waiting": [_job_json(job) for job in line.waiting],
        "paused": [_job_json(job) for job in line.paused],
    }


async def _require(path: Path) -> None:
    """The switch makes no database, and migrates none."""
    async with open_to_read(path):
        pass


def _store(db: Database, data_dir: Path) -> JobStore:
    return JobStore(db, Outbox(db), data_dir=data_dir)


def _section(head: str, lines: list[str]) -> str:
    return "\n".join([head, *(f"  {line}" for line in lines)])


def _free(line: Line) -> int:
    return sum(slot.job_id is None and slot.is_enabled for slot in line.slots)


def _halt_words(halt: Halt | None) -> str:
    if halt is None:
        return "running"
    who = "the command line" if halt.by == COMMAND_LINE else f"user {halt.by}"
    kind = "paused" if halt.kind is HaltKind.PAUSE else "draining"
    return f"{kind} since {halt.at:%Y-%m-%d %H:%M} UTC by {who}" + (f": {halt.why}" if halt.why else "")


def _slot_words(slot: Slot, line: Line) -> str:
    aside = "" if slot.is_enabled else " (gone or switched off)"
    job = next((job for job in line.running if job.id == slot.job_id), None)
    held = "free" if slot.job_id is None else f"#{slot.job_id}" if job is None else _job_words(job)
    return f"{slot.name}{aside}: {held}"


def _job_words(job: Job) -> str:
    parts = [f"#{job.id} {job.name}", str(job.state), f"owner {job.owner_id}"]
    if job.progress.step is not None and job.state.is_active:
        parts.append(f"epoch {job.progress.step.epoch}, step {job.progress.step.step} of {job.progress.total_steps}")
    if job.attempt > 1:
        parts.append(f"attempt {job.attempt}")
    if job.priority:
        parts.append(f"{job.priority.name.lower()} priority")
    if job.gpus > 1:
        parts.append(f"{job.gpus} GPUs")
    return " · ".join(parts)


def _not_before(job: Job, now: datetime) -> str:
    return f" · not before {job.run_after:%Y-%m-%d %H:%M} UTC" if job.run_after and job.run_after > now else ""


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
        "heard_at": _iso(job.progress.heard_at),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
