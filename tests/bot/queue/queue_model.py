"""A model of the queue in plain Python, for comparison with the real one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bot.queue import ACTIVE, ENDS, TRANSITIONS, State, StopIntent
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S
from trainer.protocol.events import FailureKind
from trainer.protocol.run_options import JobKind

STRENGTH = (StopIntent.REQUEUE, StopIntent.PAUSE, StopIntent.KEEP_BEST, StopIntent.CANCEL)
RETRY_PAUSE_S = 30.0
MAX_ATTEMPTS = 3
#: Samplings before a training that could start.
IN_A_ROW = 5

#: Jobs are served by turns within one of these: owner, kind, priority.
Line = tuple[int, JobKind, int]


@dataclass(kw_only=True)
class ModelJob:
    """A job in the model."""

    id: int
    owner: int
    priority: int
    gpus: int
    run_after: float
    max_running: int | None
    turn: int
    #: Rises with each time that a job is queued.
    queued_as: int
    kind: JobKind = JobKind.TRAIN
    state: State = State.QUEUED
    is_front: bool = False
    is_finishing: bool = False
    intent: StopIntent | None = None
    attempt: int = 0
    uncounted: int = 0
    round: int = 1
    kept_epoch: int = 0
    seq: int = 0
    #: Of its newest attempt; 0: it has none.
    claimed_as: int = 0
    slots: list[int] = field(default_factory=list)
    #: Its states, in order.
    path: list[State] = field(default_factory=lambda: [State.QUEUED])
    ends: Counter[int] = field(default_factory=Counter)

    def enter(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], (self.id, self.state, state)
        self.state = state
        self.path.append(state)
        if state in ENDS:
            self.ends[self.round] += 1

    @property
    def order(self) -> tuple[bool, bool, int, int, int]:
        return (self.kind is JobKind.TRAIN, not self.is_front, -self.priority, self.turn, self.id)

    @property
    def line(self) -> Line:
        return (self.owner, self.kind, self.priority)


class Model:
    """Jobs, slots and the order of the queue."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        #: A sampling may run without a slot.
        self.shares = False
        self.jobs: dict[int, ModelJob] = {}
        #: The last turn that was served in each line.
        self.served: Counter[Line] = Counter()
        self.is_paused = False
        self._queued = 0
        #: How often an owner's first job was overtaken, by (its job, `queued_as`, the owner who did).
        self.overtaken: Counter[tuple[int, int, int]] = Counter()

    # -- the queue ---------------------------------------------------------------------------------------------

    def queue(self) -> list[ModelJob]:
        return sorted((job for job in self.jobs.values() if job.state is State.QUEUED), key=lambda job: job.order)

    def next_turn(self, mine: Line) -> int:
        waiting = [job.turn for job in self.queue() if job.line == mine and not job.is_front]
        being_served = max((turn for (_, *others), turn in self.served.items() if others == [*mine[1:]]), default=0)
        return max(max(waiting, default=0) + 1, self.served[mine] + 1, being_served)

    def next_number(self) -> int:
        self._queued += 1
        return self._queued

    def leave_queue(self, line: Line, turn: int) -> None:
        """Move up the owner's later jobs."""
        for other in self.queue():
            if other.line == line and not other.is_front and other.turn > turn:
                other.turn -= 1

    def active(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in ACTIVE]

    def free(self) -> list[int]:
        held = {slot for job in self.active() for slot in job.slots}
        return [slot for slot in range(1, self.slots + 1) if slot not in held]

    def is_ready(self, job: ModelJob, now: float) -> bool:
        is_time = job.run_after <= now or (job.attempt > 0 and job.run_after > now + MAX_RETRY_PAUSE_S)
        running = sum((other.owner, other.kind) == (job.owner, job.kind) for other in self.active())
        return is_time and (job.max_running is None or running < job.max_running)

    def claim(self, now: float) -> ModelJob | None:
        first = self._first_ready(now)
        if self.is_paused or first is None:
            return None
        if len(self.free()) < first.gpus and not self._may_share(first):
            return None
        if not first.is_front:
            self._count_overtaken(first, now)
            self.served[first.line] = max(self.served[first.line], first.turn)
        first.slots = self.free()[: first.gpus]
        first.attempt += 1
        first.claimed_as = 1 + max(job.claimed_as for job in self.jobs.values())
        first.is_front, first.run_after = False, 0.0
        first.intent = first.intent if first.is_finishing else None
        first.enter(State.PREPARING)
        return first

    def _first_ready(self, now: float) -> ModelJob | None:
        ready = [job for job in self.queue() if self.is_ready(job, now)]
        trainings = [job for job in ready if job.kind is JobKind.TRAIN]
        claimed = sorted((job for job in self.jobs.values() if job.claimed_as), key=lambda job: -job.claimed_as)
        newest = [job.kind for job in claimed[:IN_A_ROW]]
        if newest == [JobKind.SAMPLE] * IN_A_ROW and trainings:
            return trainings[0]
        return next(iter(ready), None)

    def _may_share(self, job: ModelJob) -> bool:
        is_new_sampling = job.kind is JobKind.SAMPLE and not job.attempt
        return self.shares and is_new_sampling and all(other.kind is JobKind.TRAIN for other in self.active())

    def _count_overtaken(self, job: ModelJob, now: float) -> None:
        """Count the owners whose first job of this priority was queued earlier, and may start."""
        for owner in {other.owner for other in self.queue()} - {job.owner}:
            theirs = [other for other in self.queue() if other.line == (owner, *job.line[1:])]
            head = next((other for other in theirs if not other.is_front), None)
            # Within a turn the ID decides, and a retried job keeps its ID.
            if head and self.is_ready(head, now) and head.queued_as < job.queued_as and job.turn < head.turn:
                self.overtaken[head.id, head.queued_as, job.owner] += 1

    # -- users ------------------------------------------------------------------------------------------------

    def stop(self, job: ModelJob, intent: StopIntent) -> None:
        is_kept = intent is StopIntent.KEEP_BEST
        waits = job.state in {State.QUEUED, State.PAUSED}
        was_queued = job.state is State.QUEUED and not job.is_front
        line, turn = job.line, job.turn
        if waits and (intent is StopIntent.CANCEL or (is_kept and not job.kept_epoch)):
            job.intent = StopIntent.CANCEL
            job.enter(State.CANCELLED)
        elif waits and is_kept and not job.is_finishing:
            if job.state is State.PAUSED:
                job.enter(State.QUEUED)
            job.is_finishing = job.is_front = True
            job.intent, job.run_after = intent, 0.0
        elif job.state is State.QUEUED and intent is StopIntent.PAUSE:
            job.intent = intent
            job.enter(State.PAUSED)
        elif job.state is State.STOPPING:
            assert job.intent is not None
            is_stronger = STRENGTH.index(intent) > STRENGTH.index(job.intent)
            if is_stronger and (intent is StopIntent.CANCEL or not job.is_finishing):
                job.intent = intent
            return
        elif job.state in {State.PREPARING, State.RUNNING}:
            if intent in {StopIntent.CANCEL, StopIntent.REQUEUE} or not job.is_finishing:
                job.intent = intent
                job.enter(State.STOPPING)
            return
        else:
            return
        if was_queued:
            self.leave_queue(line, turn)

    def resume(self, job: ModelJob) -> None:
        if job.state is State.PAUSED:
            if not job.is_front:
                job.turn = self.next_turn(job.line)
            job.run_after, job.intent, job.queued_as = 0.0, None, self.next_number()
            job.enter(State.QUEUED)

    def retry(self, job: ModelJob) -> None:
        if job.state in {State.FAILED, State.CANCELLED}:
            self.next_round(job)

    def extend(self, job: ModelJob) -> None:
        if job.kind is JobKind.TRAIN and job.state in {State.SUCCEEDED, State.STOPPED}:
            self.next_round(job)

    def next_round(self, job: ModelJob) -> None:
        job.turn, job.queued_as = self.next_turn(job.line), self.next_number()
        job.round += 1
        job.uncounted, job.run_after, job.is_front, job.is_finishing = job.attempt, 0.0, False, False
        job.intent = None
        job.enter(State.QUEUED)

    def bump(self, job: ModelJob, priority: int) -> None:
        if job.state is State.QUEUED and job.priority != priority:
            before, turn = job.line, job.turn
            job.turn = 0 if job.is_front else self.next_turn((job.owner, job.kind, priority))
            job.priority, job.queued_as = priority, self.next_number()
            if not job.is_front:
                self.leave_queue(before, turn)

    # -- ends of attempts ----------------------------------------------------------------------------------------

    def settle(
        self, job: ModelJob, state: State, *, uncounted: bool = False, pause_s: float = 0, now: float = 0
    ) -> None:
        job.slots = []
        job.uncounted += uncounted
        job.is_front = state in {State.QUEUED, State.PAUSED}
        job.run_after = now + pause_s if pause_s else 0.0
        job.enter(state)

    def counted_attempts(self, job: ModelJob) -> int:
        return job.attempt - job.uncounted

    def pause_s(self, job: ModelJob) -> float:
        return float(min(RETRY_PAUSE_S * 2 ** max(0, self.counted_attempts(job) - 1), MAX_RETRY_PAUSE_S))

    def finished(self, job: ModelJob) -> None:
        self.settle(job, State.STOPPED if job.is_finishing else State.SUCCEEDED)

    def stopped(self, job: ModelJob, *, has_checkpoint: bool) -> None:
        if job.state is not State.STOPPING or job.intent is StopIntent.REQUEUE:
            self.settle(job, State.QUEUED, uncounted=True)
        elif job.intent is StopIntent.KEEP_BEST and has_checkpoint:
            job.is_finishing = True
            self.settle(job, State.QUEUED, uncounted=True)
        elif job.intent is StopIntent.PAUSE:
            self.settle(job, State.PAUSED, uncounted=True)
        else:
            self.settle(job, State.CANCELLED)

    def failed(self, job: ModelJob, kind: FailureKind, now: float) -> None:
        is_stopping = job.state is State.STOPPING
        if is_stopping and job.intent is StopIntent.CANCEL:
            self.settle(job, State.CANCELLED)
            return
        once = kind is FailureKind.BUG and self.counted_attempts(job) == 1
        if self.counted_attempts(job) >= MAX_ATTEMPTS or not (kind is FailureKind.DEVICE_LOST or once):
            self.settle(job, State.FAILED)
            return
        job.is_finishing |= is_stopping and job.intent is StopIntent.KEEP_BEST
        if is_stopping and job.intent is StopIntent.PAUSE:
            self.settle(job, State.PAUSED)
        else:
            self.settle(job, State.QUEUED, pause_s=0 if once else self.pause_s(job), now=now)

    def lost(self, job: ModelJob, now: float, *, is_node_lost: bool) -> None:
        is_kept = job.intent is StopIntent.KEEP_BEST and job.kept_epoch > 0
        if job.state is State.STOPPING and not is_kept:
            after = {StopIntent.PAUSE: State.PAUSED, StopIntent.REQUEUE: State.QUEUED}
            state = after.get(job.intent, State.CANCELLED) if job.intent else State.CANCELLED
            self.settle(job, state, uncounted=state is not State.CANCELLED)
        elif is_node_lost or self.counted_attempts(job) < MAX_ATTEMPTS:
            job.is_finishing |= job.state is State.STOPPING
            pause_s = 0 if is_node_lost else self.pause_s(job)
            self.settle(job, State.QUEUED, uncounted=is_node_lost, pause_s=pause_s, now=now)
        else:
            self.settle(job, State.FAILED)
