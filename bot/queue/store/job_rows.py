"""From database rows to jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from bot.db import Row
from bot.queue.domain.job import Job, Priority, Progress, State, StopIntent
from bot.runners import Handle
from trainer.protocol.events import BaseValidated, EpochEnded, Event, Phase, PhaseBegan, Started, StepDone, parse_event
from trainer.protocol.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Busy:
    """A running or stopping job, as the dispatcher needs it."""

    job_id: int
    attempt: int
    state: State
    handle: Handle | None
    #: Bytes of events.jsonl that were ingested.
    read_bytes: int
    is_finishing: bool
    #: When it was told to stop, or was killed because it gave no sign of life or no word.
    stop_sent_at: float | None
    #: When it last said something in this attempt; None: nothing yet.
    heard_at: float | None
    #: It has said nothing yet, or nothing but that it loads its model.
    is_loading: bool
    #: Below the folder of all jobs.
    folder: str
    gpus: int
    #: GPUs that it holds, as in CUDA_VISIBLE_DEVICES; empty: whatever there is.
    devices: tuple[str, ...]
    micro_batch: int | None
    #: When it was claimed, for a process that never gave a sign of life.
    claimed_at: float
    #: A study has no process of its own.
    is_study: bool
    stop_intent: StopIntent | None


def busy_of(row: Row) -> Busy:
    """The dispatcher's view of a job row."""
    return Busy(
        job_id=row["id"],
        attempt=row["attempt"],
        state=State(row["state"]),
        handle=None if row["handle"] is None else Handle(row["handle"]),
        read_bytes=row["read_bytes"],
        is_finishing=bool(row["is_finishing"]),
        stop_sent_at=row["stop_sent_at"],
        heard_at=row["heard_at"],
        is_loading=row["heard_at"] is None or bool(row["is_loading"]),
        folder=folder_of(row),
        gpus=row["gpus"],
        devices=tuple(row["devices"].split(",")) if row["devices"] else (),
        micro_batch=row["micro_batch"],
        claimed_at=row["claimed_at"] or 0.0,
        is_study=row["study"] is not None,
        stop_intent=None if row["stop_intent"] is None else StopIntent(row["stop_intent"]),
    )


def folder_of(row: Row) -> str:
    """A job's folder below the folder of all jobs; a study's child lies in the study's."""
    return str(row["folder"] or row["id"])


def job_of(row: Row, said: Iterable[Event]) -> Job:
    """The job of a row (with `dataset_name`) and what its trainer said, oldest first."""
    return Job(
        id=row["id"],
        guild_id=row["guild_id"],
        channel_id=row["channel_id"],
        owner_id=row["owner_id"],
        dataset_id=row["dataset_id"],
        dataset_name=row["dataset_name"],
        spec=Spec.model_validate_json(row["spec"]),
        state=State(row["state"]),
        stop_intent=None if row["stop_intent"] is None else StopIntent(row["stop_intent"]),
        stopped_by=row["stopped_by"],
        attempt=row["attempt"],
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
        started_at=_moment(row["started_at"]),
        ended_at=_moment(row["ended_at"]),
        progress=_progress(row, said),
        last_word=None if row["last_word"] is None else parse_event(row["last_word"]),
        end_reason=row["end_reason"],
        priority=Priority(row["priority"]),
        gpus=row["gpus"],
        run_after=_moment(row["run_after"] or None),
        round=row["round"],
        folder=folder_of(row),
        slots=tuple(row["slot_names"].split(", ")) if row["slot_names"] else (),
        estimate_s=row["estimate_s"],
        parent_id=row["parent_id"],
        child_name=row["child_name"],
        study=row["study"],
        is_pinned=row["pinned_at"] is not None,
        is_shared=row["shared_at"] is not None,
        are_files_deleted=row["files_deleted_at"] is not None,
    )


def _progress(row: Row, said: Iterable[Event]) -> Progress:
    phase: Phase | None = None
    total_steps = 0
    base: BaseValidated | None = None
    epochs: dict[int, EpochEnded] = {}
    for event in said:
        match event:
            case Started():
                phase, total_steps = None, event.total_steps
            case PhaseBegan():
                phase = event.phase
            case BaseValidated():
                base = event
            case EpochEnded():
                # An epoch that was said again after a loss counts as it was last.
                epochs[event.epoch] = event
            case _:
                pass
    step = None if row["step"] is None else parse_event(row["step"])
    assert step is None or isinstance(step, StepDone)
    ended = tuple(epochs[number] for number in sorted(epochs))
    return Progress(
        phase=phase,
        total_steps=total_steps,
        base=base,
        step=step,
        epoch=ended[-1] if ended else None,
        epochs=ended,
        heard_at=_moment(row["heard_at"]),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
