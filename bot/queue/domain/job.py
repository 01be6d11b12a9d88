"""What a job is to the bot: a frozen value, its states, and the one table of legal moves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from trainer.protocol.events import BaseValidated, EpochEnded, Event, Phase, StepDone
from trainer.protocol.spec import Spec


class State(StrEnum):
    """Where a job stands; the last four are ends."""

    #: Asked for, its dataset shown; nobody has said that it may be queued.
    DRAFT = "draft"
    QUEUED = "queued"
    #: It has its slots; the trainer starts, loads and encodes.
    PREPARING = "preparing"
    RUNNING = "running"
    #: Told to stop; the trainer saves its checkpoint. `Job.stop_intent` says what follows.
    STOPPING = "stopping"
    #: Stopped at a checkpoint, its slots are free; goes on when somebody says so.
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    #: A person ended the training early; its best epoch was tested and exported.
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in ENDS

    @property
    def is_active(self) -> bool:
        """Whether it holds slots."""
        return self in ACTIVE


#: Every legal move. The store changes a state only along it, in one guarded UPDATE (docs/reliability.md).
MOVES: dict[State, frozenset[State]] = {
    State.DRAFT: frozenset({State.QUEUED, State.CANCELLED}),
    State.QUEUED: frozenset({State.PREPARING, State.PAUSED, State.CANCELLED}),
    # Back to queued: the process was lost, or failed in a way that another start may mend.
    State.PREPARING: frozenset(
        {State.RUNNING, State.QUEUED, State.STOPPING, State.SUCCEEDED, State.STOPPED, State.FAILED}
    ),
    State.RUNNING: frozenset({State.QUEUED, State.STOPPING, State.SUCCEEDED, State.STOPPED, State.FAILED}),
    State.STOPPING: frozenset(
        {State.QUEUED, State.PAUSED, State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED}
    ),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.STOPPED: frozenset(),
    # A person's Retry: the same job goes on from its checkpoint, in its next round.
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}

ENDS = frozenset({State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED})
#: States that hold slots.
ACTIVE = frozenset({State.PREPARING, State.RUNNING, State.STOPPING})
#: States in which a job will go on by itself or by a person's word.
LIVING = ACTIVE | {State.QUEUED, State.PAUSED}


class StopIntent(StrEnum):
    """What was wanted when a running job was stopped."""

    CANCEL = "cancel"
    #: End the training here; test and export the best checkpoint (`trainer run --finish`).
    KEEP_BEST = "keep_best"
    #: Free the GPU; go on when somebody says so.
    PAUSE = "pause"
    #: Free the GPU and wait at the front of the line: the machine is drained, or a training window closes.
    REQUEUE = "requeue"


class Priority(IntEnum):
    """What goes first; within one, people take turns."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job before it is accepted."""

    #: Discord's interaction id: the same one twice is one job; None for a study's child.
    interaction_id: int | None
    guild_id: int
    channel_id: int
    owner_id: int
    dataset_id: int
    spec: Spec
    priority: Priority = Priority.NORMAL
    #: GPUs that it needs; 0 for a study, whose children need them.
    gpus: int = 1
    #: Not before this moment, seconds since the epoch.
    run_after: float = 0.0
    #: How many of its owner's jobs may run at once; None: as many as there is room for.
    max_running: int | None = None
    #: How many of its owner's jobs may wait; None: the configured number.
    max_waiting: int | None = None
    #: Of data and settings (`duplicates.fingerprint`); two jobs of one are duplicates.
    fingerprint: str | None = None
    #: Whether it may be a duplicate: "Queue anyway".
    may_repeat: bool = False
    #: Seconds that it is believed to need, when it was queued.
    estimate_s: float | None = None
    #: `trainer.protocol.study.StudyOrder` as JSON, for a study.
    study: str | None = None


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
    #: How often it was started; 0 while it waits for the first time. The fence of its newest start.
    attempt: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress
    #: Last word of the trainer, None before it.
    last_word: Event | None
    #: One sentence about the end, where the trainer could not say it itself (process lost too often).
    end_reason: str | None
    priority: Priority = Priority.NORMAL
    gpus: int = 1
    #: It is not started before this moment (a delayed start, or a pause before another try); None: at once.
    run_after: datetime | None = None
    #: 1, and one more with each Retry.
    round: int = 1
    #: Its folder, below the folder of all jobs.
    folder: str = ""
    #: Names of the slots that it holds (`cuda:0 · RTX 4090`), or held last.
    slots: tuple[str, ...] = ()
    estimate_s: float | None = None
    #: The study that it is a child of.
    parent_id: int | None = None
    #: Its name among the study's children.
    child_name: str | None = None
    #: `StudyOrder` as JSON, for a study.
    study: str | None = None
    is_pinned: bool = False
    is_shared: bool = False
    #: Its files were deleted to make room (retention).
    are_files_deleted: bool = False

    @property
    def name(self) -> str:
        return self.spec.name
