"""The queue as plain Python: what the real one is compared with, rule for rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bot.queue import ACTIVE, ENDS, MOVES, State, StopIntent
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S
from trainer.protocol.events import FailureKind

STRENGTH = (StopIntent.REQUEUE, StopIntent.PAUSE, StopIntent.KEEP_BEST, StopIntent.CANCEL)
RETRY_PAUSE_S = 30.0
MAX_ATTEMPTS = 3


@dataclass(kw_only=True)
class ModelJob:
    """What the model knows of a job."""

    id: int
    owner: int
    priority: int
    gpus: int
    run_after: float
    max_running: int | None
    turn: int
    #: When it came into line, by a count of its own.
    queued_as: int
    state: State = State.QUEUED
    is_front: bool = False
    is_finishing: bool = False
    intent: StopIntent | None = None
    attempt: int = 0
    excused: int = 0
    round: int = 1
    kept_epoch: int = 0
    seq: int = 0
    slots: list[int] = field(default_factory=list)
    #: Every state that it was in.
    path: list[State] = field(default_factory=lambda: [State.QUEUED])
    ends: Counter[int] = field(default_factory=Counter)

    def go(self, state: State) -> None:
        assert state in MOVES[self.state], (self.id, self.state, state)
        self.state = state
        self.path.append(state)
        if state in ENDS:
            self.ends[self.round] += 1

    @property
    def place(self) -> tuple[bool, int, int, int]:
        return (not self.is_front, -self.priority, self.turn, self.id)


class Model:
    """Jobs, slots and the line."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.jobs: dict[int, ModelJob] = {}
        #: The last turn that each (person, priority) was served.
        self.served: Counter[tuple[int, int]] = Counter()
        self.is_halted = False
        self._queued = 0
        #: How often somebody's first in line was overtaken, by (its job, when it was queued, the person who did).
        self.overtaken: Counter[tuple[int, int, int]] = Counter()

    # -- the line ----------------------------------------------------------------------------------------------

    def line(self) -> list[ModelJob]:
        return sorted((job for job in self.jobs.values() if job.state is State.QUEUED), key=lambda job: job.place)

    def next_turn(self, owner: int, priority: int) -> int:
        mine = (owner, priority)
        waiting = [job.turn for job in self.line() if (job.owner, job.priority) == mine and not job.is_front]
        being_served = max((turn for (_, at), turn in self.served.items() if at == priority), default=0)
        return max(max(waiting, default=0) + 1, self.served[mine] + 1, being_served)

    def in_line(self) -> int:
        self._queued += 1
        return self._queued

    def leave_line(self, job: ModelJob, turn: int, priority: int) -> None:
        """The owner's later ones move up."""
        for other in self.line():
            if (other.owner, other.priority) == (job.owner, priority) and not other.is_front and other.turn > turn:
                other.turn -= 1

    def active(self) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in ACTIVE]

    def free(self) -> list[int]:
        held = {slot for job in self.active() for slot in job.slots}
        return [slot for slot in range(1, self.slots + 1) if slot not in held]

    def is_ready(self, job: ModelJob, now: float) -> bool:
        is_time = job.run_after <= now or (job.attempt > 0 and job.run_after > now + MAX_RETRY_PAUSE_S)
        running = sum(other.owner == job.owner for other in self.active())
        return is_time and (job.max_running is None or running < job.max_running)

    def claim(self, now: float) -> ModelJob | None:
        first = next((job for job in self.line() if self.is_ready(job, now)), None)
        if self.is_halted or first is None or len(self.free()) < first.gpus:
            return None
        if not first.is_front:
            self._count_overtaken(first, now)
            who = (first.owner, first.priority)
            self.served[who] = max(self.served[who], first.turn)
        first.slots = self.free()[: first.gpus]
        first.attempt += 1
        first.is_front, first.run_after = False, 0.0
        first.intent = first.intent if first.is_finishing else None
        first.go(State.PREPARING)
        return first

    def _count_overtaken(self, job: ModelJob, now: float) -> None:
        """Whom this claim overtakes: those whose first of this priority was in line before it, and may start."""
        for owner in {other.owner for other in self.line()} - {job.owner}:
            theirs = [other for other in self.line() if other.owner == owner and other.priority == job.priority]
            head = next((other for other in theirs if not other.is_front), None)
            # Those of one turn go by their numbers, which a retried job keeps.
            if head and self.is_ready(head, now) and head.queued_as < job.queued_as and job.turn < head.turn:
                self.overtaken[head.id, head.queued_as, job.owner] += 1

    # -- people ------------------------------------------------------------------------------------------------

    def stop(self, job: ModelJob, intent: StopIntent) -> None:
        is_kept = intent is StopIntent.KEEP_BEST
        waits = job.state in {State.QUEUED, State.PAUSED}
        was_in_line = job.state is State.QUEUED and not job.is_front
        turn = job.turn
        if waits and (intent is StopIntent.CANCEL or (is_kept and not job.kept_epoch)):
            job.intent = StopIntent.CANCEL
            job.go(State.CANCELLED)
        elif waits and is_kept and not job.is_finishing:
            if job.state is State.PAUSED:
                job.go(State.QUEUED)
            job.is_finishing = job.is_front = True
            job.intent, job.run_after = intent, 0.0
        elif job.state is State.QUEUED and intent is StopIntent.PAUSE:
            job.intent = intent
            job.go(State.PAUSED)
        elif job.state is State.STOPPING:
            assert job.intent is not None
            is_stronger = STRENGTH.index(intent) > STRENGTH.index(job.intent)
            if is_stronger and (intent is StopIntent.CANCEL or not job.is_finishing):
                job.intent = intent
            return
        elif job.state in {State.PREPARING, State.RUNNING}:
            if intent in {StopIntent.CANCEL, StopIntent.REQUEUE} or not job.is_finishing:
                job.intent = intent
                job.go(State.STOPPING)
            return
        else:
            return
        if was_in_line:
            self.leave_line(job, turn, job.priority)

    def resume(self, job: ModelJob) -> None:
        if job.state is State.PAUSED:
            if not job.is_front:
                job.turn = self.next_turn(job.owner, job.priority)
            job.run_after, job.intent, job.queued_as = 0.0, None, self.in_line()
            job.go(State.QUEUED)

    def retry(self, job: ModelJob) -> None:
        if job.state in {State.FAILED, State.CANCELLED}:
            job.turn, job.queued_as = self.next_turn(job.owner, job.priority), self.in_line()
            job.round += 1
            job.excused, job.run_after, job.is_front, job.is_finishing = job.attempt, 0.0, False, False
            job.intent = None
            job.go(State.QUEUED)

    def bump(self, job: ModelJob, priority: int) -> None:
        if job.state is State.QUEUED and job.priority != priority:
            before, turn = job.priority, job.turn
            job.turn = 0 if job.is_front else self.next_turn(job.owner, priority)
            job.priority, job.queued_as = priority, self.in_line()
            if not job.is_front:
                self.leave_line(job, turn, before)

    # -- ends of starts ----------------------------------------------------------------------------------------

    def settle(self, job: ModelJob, state: State, *, excused: bool = False, pause_s: float = 0, now: float = 0) -> None:
        job.slots = []
        job.excused += excused
        job.is_front = state in {State.QUEUED, State.PAUSED}
        job.run_after = now + pause_s if pause_s else 0.0
        job.go(state)

    def starts(self, job: ModelJob) -> int:
        return job.attempt - job.excused

    def pause_s(self, job: ModelJob) -> float:
        return float(min(RETRY_PAUSE_S * 2 ** max(0, self.starts(job) - 1), MAX_RETRY_PAUSE_S))

    def finished(self, job: ModelJob) -> None:
        self.settle(job, State.STOPPED if job.is_finishing else State.SUCCEEDED)

    def stopped(self, job: ModelJob, *, has_checkpoint: bool) -> None:
        if job.state is not State.STOPPING or job.intent is StopIntent.REQUEUE:
            self.settle(job, State.QUEUED, excused=True)
        elif job.intent is StopIntent.KEEP_BEST and has_checkpoint:
            job.is_finishing = True
            self.settle(job, State.QUEUED, excused=True)
        elif job.intent is StopIntent.PAUSE:
            self.settle(job, State.PAUSED, excused=True)
        else:
            self.settle(job, State.CANCELLED)

    def failed(self, job: ModelJob, kind: FailureKind, now: float) -> None:
        is_stopping = job.state is State.STOPPING
        if is_stopping and job.intent is StopIntent.CANCEL:
            self.settle(job, State.CANCELLED)
            return
        once = kind is FailureKind.BUG and self.starts(job) == 1
        if self.starts(job) >= MAX_ATTEMPTS or not (kind is FailureKind.DEVICE_LOST or once):
            self.settle(job, State.FAILED)
            return
        job.is_finishing |= is_stopping and job.intent is StopIntent.KEEP_BEST
        if is_stopping and job.intent is StopIntent.PAUSE:
            self.settle(job, State.PAUSED)
        else:
            self.settle(job, State.QUEUED, pause_s=0 if once else self.pause_s(job), now=now)

    def lost(self, job: ModelJob, now: float, *, is_cut_off: bool) -> None:
        is_kept = job.intent is StopIntent.KEEP_BEST and job.kept_epoch > 0
        if job.state is State.STOPPING and not is_kept:
            after = {StopIntent.PAUSE: State.PAUSED, StopIntent.REQUEUE: State.QUEUED}
            state = after.get(job.intent, State.CANCELLED) if job.intent else State.CANCELLED
            self.settle(job, state, excused=state is not State.CANCELLED)
        elif is_cut_off or self.starts(job) < MAX_ATTEMPTS:
            job.is_finishing |= job.state is State.STOPPING
            pause_s = 0 if is_cut_off else self.pause_s(job)
            self.settle(job, State.QUEUED, excused=is_cut_off, pause_s=pause_s, now=now)
        else:
            self.settle(job, State.FAILED)
