"""What a job is to the bot: a frozen value, its states, and the one table of legal moves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from trainer.protocol.events import BaseValidated, EpochEnded, Event, Phase, StepDone
from trainer.protocol.spec import Spec


class State(StrEnum):
    """Where a job stands; the last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    #: Told to stop; the trainer saves its checkpoint. `Job.stop_intent` says what follows.
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return not MOVES[self]


#: Every legal move. The store changes a state only along it, in one guarded UPDATE.
MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    # Back to queued: the process was lost and the job goes on from its checkpoint.
    State.RUNNING: frozenset({State.QUEUED, State.STOPPING, State.SUCCEEDED, State.FAILED}),
    State.STOPPING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class StopIntent(StrEnum):
    """What a person wanted when they stopped a running job."""

    CANCEL = "cancel"
    #: End the training here; test and export the best checkpoint (`trainer run --finish`).
    KEEP_BEST = "keep_best"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job before it is accepted."""

    #: Discord's interaction id: the same one twice is one job.
    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the trainer last said, for the card."""

    phase: Phase | None = None
    total_steps: int = 0
    base: BaseValidated | None = None
    step: StepDone | None = None
    epoch: EpochEnded | None = None
    #: Every `epoch_ended` so far, oldest first (for the sparkline and the loss trend).
    epochs: tuple[EpochEnded, ...] = ()
    #: When the bot last read an event.
    heard_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One accepted job, as the database has it."""

    id: int
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    dataset_name: str
    spec: Spec
    state: State
    stop_intent: StopIntent | None
    #: Who stopped it, None if nobody did.
    stopped_by: int | None
    #: How often it was started; 0 while it waits for the first time.
    attempt: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress
    #: Last word of the trainer, None before it.
    last_word: Event | None
    #: One sentence about the end, where the trainer could not say it itself (process lost too often).
    end_reason: str | None

    @property
    def name(self) -> str:
        return self.spec.name
