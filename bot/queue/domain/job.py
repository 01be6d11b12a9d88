"""The job: one frozen record, its states, and the one table of legal transitions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, Self

from bot.db import Row
from bot.errors import NotATraining
from bot.queue.domain.job_progress import Progress
from bot.runners import Handle
from trainer.protocol.events import Phase, TerminalEvent, parse_event
from trainer.protocol.frozen import Frozen
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import SamplingSpec
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyRequest


class State(StrEnum):
    """The state of a job; the last four are ends."""

    QUEUED = "queued"
    #: It holds its slots; the trainer starts, loads and encodes.
    PREPARING = "preparing"
    RUNNING = "running"
    #: Asked to stop; the trainer saves its checkpoint. `Job.stop_intent` is what follows.
    STOPPING = "stopping"
    #: Stopped at a checkpoint, without slots, until a user resumes it.
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    #: A user ended the training early; its best epoch was tested and exported.
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in ENDS

    @property
    def is_active(self) -> bool:
        """True if it holds slots."""
        return self in ACTIVE


#: Every legal transition. The store changes a state only along it, in one guarded UPDATE (docs/reliability.md).
TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.PREPARING, State.PAUSED, State.CANCELLED}),
    # Back to queued: the process was lost, or failed in a way that another attempt may overcome.
    State.PREPARING: frozenset(
        {State.RUNNING, State.QUEUED, State.STOPPING, State.SUCCEEDED, State.STOPPED, State.FAILED}
    ),
    State.RUNNING: frozenset({State.QUEUED, State.STOPPING, State.SUCCEEDED, State.STOPPED, State.FAILED}),
    State.STOPPING: frozenset(
        {State.QUEUED, State.PAUSED, State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED}
    ),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    # A user's extension: the same job continues from its checkpoint with more epochs, in its next round.
    State.SUCCEEDED: frozenset({State.QUEUED}),
    State.STOPPED: frozenset({State.QUEUED}),
    # A user's Retry: as it was, in its next round.
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}

ENDS = frozenset({State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED})
#: States that hold slots.
ACTIVE = frozenset({State.PREPARING, State.RUNNING, State.STOPPING})
#: States from which a job continues, by itself or when a user resumes it.
LIVING = ACTIVE | {State.QUEUED, State.PAUSED}


class StopIntent(StrEnum):
    """What follows when a running job has stopped."""

    CANCEL = "cancel"
    #: End the training; test and export the best checkpoint (`trainer run --finish`).
    KEEP_BEST = "keep_best"
    #: Free the GPU until a user resumes the job.
    PAUSE = "pause"
    #: Free the GPU and wait at the front of the queue: the machine is drained, or a training window closes.
    REQUEUE = "requeue"


class Priority(IntEnum):
    """Queue priority; within a priority, owners are served round-robin."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


class EndReasonKind(StrEnum):
    """Why an attempt ended, or why its job ended as it did."""

    #: The process exited without a terminal event.
    PROCESS_DIED = "process_died"
    #: Its machine went down.
    NODE_LOST = "node_lost"
    #: Killed: no heartbeat for `stalled_for_s`.
    NO_HEARTBEAT = "no_heartbeat"
    #: Killed: heartbeats, but no event for `stalled_for_s`.
    NO_PROGRESS = "no_progress"
    #: No process could be started; `message` is the error's sentence.
    LAUNCH_FAILED = "launch_failed"
    #: The trainer's `failed` event; `message` is its message.
    TRAINER_FAILED = "trainer_failed"
    #: It stopped although the queue had not asked it to.
    STOPPED_EXTERNALLY = "stopped_externally"
    #: It was to keep its best epoch, and had none yet.
    NOTHING_TO_KEEP = "nothing_to_keep"
    #: A study's verdict or error; `message` is the trainer's sentence.
    STUDY = "study"


class EndReason(Frozen):
    """Why an attempt ended and what follows: data, made into a sentence by `bot.ui.end_reasons`."""

    kind: EndReasonKind
    message: str = ""
    stalled_for_s: float = 0.0
    #: Attempts that counted, this one included if it does, and how many may count.
    attempt: int = 0
    max_attempts: int = 0
    #: The epoch in progress, and the newest one in a checkpoint; 0: none.
    epoch: int = 0
    kept_epoch: int = 0
    #: Another attempt follows.
    is_retried: bool = False
    #: This attempt counts against the limit.
    is_counted: bool = True
    #: No further attempt follows a second failure of this kind.
    is_only_retry: bool = False
    #: New upper limit of the images in memory at once.
    micro_batch: int | None = None


_NO_PROGRESS = Progress()


@dataclass(frozen=True, kw_only=True)
class _Requested:
    """What a job is before and after it is accepted, apart from its settings."""

    #: Discord's interaction ID: the same one twice is one job. None: a child of a study.
    interaction_id: int | None = None
    guild_id: int
    channel_id: int
    owner_id: int
    #: 0: none, of a sampling of a base model or of a file from elsewhere.
    dataset_id: int
    #: The training whose results it draws with, or starts from; None: of no training of this bot.
    source_id: int | None = None
    priority: Priority = Priority.NORMAL
    #: Slots that it needs; 0 for a study, whose children need them.
    gpus: int = 1
    #: It is not started before this moment (a delayed start, or a back-off); None: at once.
    run_after: datetime | None = None
    #: How many of its owner's jobs may run at once; None: any number.
    max_running: int | None = None
    #: How many may be queued at once, the children of studies included; None: the configured number.
    max_waiting: int | None = None
    #: Of data and settings; two jobs with the same one are duplicates.
    fingerprint: str | None = None
    #: Expected seconds, as estimated when it was queued (of a study: of all its runs together); None: unknown.
    estimate_s: float | None = None
    #: `StudyRequest` as JSON; None: it is no study.
    study: str | None = None
    #: The study that it is a child of.
    parent_id: int | None = None
    #: Its name among the study's children.
    child_name: str | None = None
    #: Its folder, below the folder of all jobs; empty: named by its ID.
    folder: str = ""
    #: A child stops at the end of this epoch; None: it runs to its end.
    until_epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewJob(_Requested):
    """A job before it is accepted: what was requested."""

    spec: Spec | SamplingSpec
    #: Of a sampling; that of a training is in its spec.
    title: str = ""

    @property
    def kind(self) -> JobKind:
        return JobKind.TRAIN if isinstance(self.spec, Spec) else JobKind.SAMPLE

    @property
    def name(self) -> str:
        return self.spec.name if isinstance(self.spec, Spec) else self.title


@dataclass(frozen=True, kw_only=True)
class Job(_Requested):
    """One accepted job, as the database has it."""

    id: int
    kind: JobKind = JobKind.TRAIN
    name: str
    #: Empty: it has no dataset.
    dataset_name: str
    #: `spec` or `sampling` as JSON: lists of jobs need none of it, and parsing one takes longer than all else.
    spec_json: str
    state: State
    stop_intent: StopIntent | None = None
    #: The user who stopped it.
    stopped_by: int | None = None
    #: Number of its newest attempt, the fencing token; 0 before the first.
    attempt: int
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    progress: Progress = _NO_PROGRESS
    #: When the newest attempt's last event was ingested; None: none yet.
    last_event_at: datetime | None = None
    #: The newest terminal event.
    terminal_event: TerminalEvent | None = None
    #: Why the newest attempt ended, where its terminal event does not say.
    end_reason: EndReason | None = None
    #: 1, and one more with each Retry and each extension.
    round: int = 1
    #: Names of the slots that it holds or held last: `GPU 0 · RTX 4090`.
    slots: tuple[str, ...] = ()
    #: What a person wrote on it.
    note: str = ""
    is_pinned: bool = False
    is_shared: bool = False
    #: Its files were deleted to make room (retention).
    are_files_deleted: bool = False
    #: Of a private dataset: its owner, and whom they named; empty: everyone may see what was trained on it.
    private_to: tuple[int, ...] = ()

    @property
    def hides_pictures(self) -> bool:
        """True if its posts show no pictures: they are of a private dataset, and its owner did not ask for them."""
        return bool(self.private_to) and self.owner_id != self.private_to[0]

    @property
    def card_id(self) -> int:
        """The job whose card shows it: a child of a study has none of its own."""
        return self.parent_id or self.id

    @property
    def is_sampling(self) -> bool:
        """True if it draws with what was trained, and trains nothing itself."""
        return self.kind is JobKind.SAMPLE

    @property
    def spec(self) -> Spec:
        """The settings of a training.

        Raises:
            NotATraining: It is a sampling.
        """
        if self.is_sampling:
            raise NotATraining(job_id=self.id)
        return _parse_spec(self.spec_json)

    @property
    def sampling(self) -> SamplingSpec:
        """What a sampling draws."""
        return _parse_sampling(self.spec_json)

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Return the job of a row of `job_sql.JOBS`."""
        return cls._of(_job_values(dict(zip(row.keys(), row, strict=True))))

    def changed(self, **changes: Any) -> Self:
        """As `dataclasses.replace`, in a tenth of the time."""
        return self._of({**vars(self), **changes})

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        """As `cls(**values)` with a value for each field: a frozen dataclass sets its 50 fields one by one."""
        job = object.__new__(cls)
        vars(job).update(values)
        return job


def _job_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job. Takes a dictionary: `Row` searches its 50 columns by name each time."""
    terminal_event = None if row["terminal_event"] is None else parse_event(row["terminal_event"])
    assert terminal_event is None or isinstance(terminal_event, TerminalEvent)
    return {
        **dict(zip(_AS_STORED, _stored_values(row), strict=True)),
        "folder": folder_of(row),
        "spec_json": row["spec"],
        "kind": JobKind(row["kind"]),
        "dataset_id": row["dataset_id"] or 0,
        "dataset_name": row["dataset_name"] or "",
        "priority": Priority(row["priority"]),
        "run_after": _moment(row["run_after"] or None),
        "state": State(row["state"]),
        "stop_intent": None if row["stop_intent"] is None else StopIntent(row["stop_intent"]),
        "created_at": _moment(row["created_at"]),
        "started_at": _moment(row["started_at"]),
        "ended_at": _moment(row["ended_at"]),
        "progress": _progress(row["progress"], row["step"]),
        "last_event_at": _moment(row["last_event_at"]),
        "terminal_event": terminal_event,
        "end_reason": None if row["end_reason"] is None else EndReason.model_validate_json(row["end_reason"]),
        "slots": tuple(row["slot_names"].split(", ")) if row["slot_names"] else (),
        "is_pinned": row["pinned_at"] is not None,
        "is_shared": row["shared_at"] is not None,
        "are_files_deleted": row["files_deleted_at"] is not None,
        "private_to": _members(row["private_to"]),
    }


#: Fields of `Job` that their column holds as they are.
_AS_STORED = (
    *("id", "interaction_id", "guild_id", "channel_id", "owner_id", "source_id", "name", "gpus"),
    *("max_running", "max_waiting", "fingerprint", "estimate_s", "study", "parent_id", "child_name", "until_epoch"),
    *("stopped_by", "attempt", "round", "note"),
)
_stored_values = itemgetter(*_AS_STORED)


@dataclass(frozen=True, kw_only=True)
class ActiveJob(Job):
    """A job that holds slots, with its process."""

    handle: Handle | None
    #: Bytes of events.jsonl that were ingested, and the `seq` of the last event.
    read_bytes: int
    last_seq: int
    #: The attempt only tests and exports.
    is_finishing: bool
    #: The epoch that it exports; None: the best one.
    chosen_epoch: int | None = None
    #: When it was asked to stop, or killed because it hung; None: neither.
    stop_sent_at: float | None
    #: GPUs that it holds, as in CUDA_VISIBLE_DEVICES; empty: those that the machine gives.
    devices: tuple[str, ...]
    #: Upper limit of the images in memory at once, after it ran out of memory.
    micro_batch: int | None
    #: Attempts that do not count against the limit.
    uncounted: int
    #: When its newest attempt was claimed.
    claimed_at: float

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Return the job of a row of `job_sql.ACTIVE_JOBS`."""
        values = dict(zip(row.keys(), row, strict=True))
        more = {
            "handle": None if values["handle"] is None else Handle(values["handle"]),
            "read_bytes": values["read_bytes"],
            "last_seq": values["last_seq"],
            "is_finishing": bool(values["is_finishing"]),
            "chosen_epoch": values["chosen_epoch"],
            "stop_sent_at": values["stop_sent_at"],
            "devices": tuple(values["devices"].split(",")) if values["devices"] else (),
            "micro_batch": values["micro_batch"],
            "uncounted": values["uncounted"],
            "claimed_at": values["claimed_at"] or 0.0,
        }
        return cls._of({**_job_values(values), **more})

    @property
    def is_study(self) -> bool:
        """True for a study, which has no process of its own."""
        return self.study is not None

    @property
    def is_loading(self) -> bool:
        """True until this attempt has sent an event other than that it loads its model."""
        return self.last_event_at is None or self.progress.phase is Phase.LOADING

    @property
    def counted_attempts(self) -> int:
        """Attempts that count against the limit, this one included."""
        return self.attempt - self.uncounted


def fingerprint(
    spec: Spec, dataset_digest: str, mix_digests: Sequence[str] = (), *, study: StudyRequest | None = None
) -> str:
    """Return the SHA-256 of the settings, with the datasets' digests in place of their folders.

    Two jobs with one fingerprint make the same weights; the seed counts. A study of some settings is another job than
    a training with them.

    Args:
        spec: The settings; name and preset do not count.
        dataset_digest: `DatasetReport.digest`.
        mix_digests: The same for each part of `spec.mix`, in order.
        study: What the study asks.
    """
    settings = json.loads(spec.model_dump_json(exclude={"name", "preset"}))
    settings["dataset"] = dataset_digest
    for part, digest in zip(settings["mix"], mix_digests, strict=True):
        part["dataset"] = digest
    if study is not None:
        settings["study"] = study.model_dump(mode="json")
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def folder_of(row: Row | Mapping[str, Any]) -> str:
    """A job's folder below the folder of all jobs; a child's lies in its study's."""
    return str(row["folder"] or row["id"])


#: Running jobs are read every second, and it never changes.
@lru_cache(maxsize=256)
def _parse_spec(text: str) -> Spec:
    return Spec.model_validate_json(text)


@lru_cache(maxsize=64)
def _parse_sampling(text: str) -> SamplingSpec:
    return SamplingSpec.model_validate_json(text)


#: An epoch changes it, a step does not.
@lru_cache(maxsize=64)
def _parse_progress(text: str) -> Progress:
    return Progress.model_validate_json(text)


#: A row is read twice: to look at the job, and to ingest what its trainer wrote.
@lru_cache(maxsize=64)
def _progress(text: str, step: str | None) -> Progress:
    progress = _parse_progress(text)
    return progress if step is None else progress.model_copy(update={"step": parse_event(step)})


def _members(private_to: str | None) -> tuple[int, ...]:
    if private_to is None:
        return ()
    owner_id, guests = json.loads(private_to)
    return (owner_id, *guests)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
