"""The real queue on SQLite and a model of it in plain Python agree, whatever users, trainers and clocks do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bot.config import LimitSettings, QueueSettings, SamplingSettings
from bot.db import Database, open_db
from bot.outbox import Outbox
from bot.queue import ACTIVE, TRANSITIONS, JobStore, NewJob, PauseKind, Priority, State, StopIntent
from tests.bot import fake_events, fakes
from tests.bot.conftest import CHANNEL, GUILD, add_dataset, notifications, set_slots
from tests.bot.queue.queue_model import MAX_ATTEMPTS, RETRY_PAUSE_S, Model, ModelJob
from trainer.protocol.events import Event, FailureKind
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.spec import make_spec

SLOTS = 3
OWNERS = st.integers(1, 4)
PICK = st.integers(0, 1_000)
SPEC = make_spec({"name": "fox", "dataset": "/nowhere"})
SAMPLING = make_sampling_spec({"models": [{"kind": "base"}], "prompts": [{"prompt": "a fox"}]})
T = TypeVar("T")


class QueueMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="darkroom-"))
        self.clock = fakes.FakeClock()
        self.model = Model(SLOTS)
        self.interactions = 0
        self.read_bytes = 0
        self.run(self.open(shares=False))
        self.run(add_dataset(self.db))
        self.run(set_slots(self.store, SLOTS))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        # Without a loop, which takes longer than most of this work: `statements_at_once` has nothing to wait for.
        try:
            work.send(None)
        except StopIteration as returned:
            result: T = returned.value
            return result
        raise AssertionError(f"{work} waits")

    async def open(self, *, shares: bool) -> None:
        self.stack = AsyncExitStack()
        self.db: Database = await self.stack.enter_async_context(open_db(self.folder / "darkroom.db"))
        self.store = JobStore(
            self.db,
            Outbox(self.db, clock=self.clock),
            data_dir=self.folder,
            limits=LimitSettings(max_jobs_per_user=100),
            sampling=SamplingSettings(beside_training=shares, max_waiting_per_user=100, max_waiting=1000),
            queue=QueueSettings(retry_pause_s=RETRY_PAUSE_S, max_attempts=MAX_ATTEMPTS),
            clock=self.clock,
        )

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        shutil.rmtree(self.folder)

    def job(self, pick: int) -> ModelJob:
        return self.model.jobs[pick % len(self.model.jobs) + 1]

    def active_job(self, pick: int) -> ModelJob:
        active = self.model.active()
        return active[pick % len(active)]

    # -- users ------------------------------------------------------------------------------------------------

    @initialize(owners=st.lists(OWNERS, min_size=8, max_size=8), shares=st.booleans())
    def a_full_queue(self, owners: list[int], shares: bool) -> None:
        self.restart(shares)
        for number, owner in enumerate(owners):
            self.submit(JobKind.TRAIN, owner, Priority.NORMAL, 1 + (number == 5), 0, None)
        self.claim_all()

    @rule(
        kind=st.sampled_from(JobKind),
        owner=OWNERS,
        priority=st.sampled_from([*Priority, Priority.NORMAL, Priority.NORMAL]),
        gpus=st.sampled_from([1, 1, 1, 2]),
        delay_s=st.sampled_from([0, 0, 0, 600]),
        max_running=st.sampled_from([None, None, 1]),
    )
    def submit(
        self, kind: JobKind, owner: int, priority: Priority, gpus: int, delay_s: int, max_running: int | None
    ) -> None:
        self.interactions += 1
        gpus = gpus if kind is JobKind.TRAIN else 1
        new = self._new(kind, owner, priority, gpus, delay_s, max_running)
        job = self.run(self.store.submit(new))
        turn = self.model.next_turn((owner, kind, priority))
        self.model.jobs[job.id] = ModelJob(
            id=job.id,
            kind=kind,
            owner=owner,
            priority=priority,
            gpus=gpus,
            run_after=new.run_after.timestamp() if new.run_after else 0.0,
            max_running=max_running,
            turn=turn,
            queued_as=self.model.next_number(),
        )
        # Pressed twice, or redelivered by Discord: one job.
        assert self.run(self.store.submit(new)).id == job.id

    def _new(
        self, kind: JobKind, owner: int, priority: Priority, gpus: int, delay_s: int, max_running: int | None
    ) -> NewJob:
        is_sampling = kind is JobKind.SAMPLE
        return NewJob(
            interaction_id=self.interactions,
            guild_id=GUILD,
            channel_id=CHANNEL,
            owner_id=owner,
            dataset_id=0 if is_sampling else 1,
            # The first of the full queue.
            source_id=1 if is_sampling else None,
            spec=SAMPLING if is_sampling else SPEC,
            title="fox",
            priority=priority,
            gpus=gpus,
            run_after=datetime.fromtimestamp(self.clock.at + delay_s, UTC) if delay_s else None,
            max_running=max_running,
        )

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK, intent=st.sampled_from(StopIntent))
    def stop(self, pick: int, intent: StopIntent) -> None:
        job = self.job(pick)
        self.model.stop(job, intent)
        assert self.run(self.store.request_stop(job.id, by=9, intent=intent)).state is job.state

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        job = self.job(pick)
        self.model.resume(job)
        self.run(self.store.resume(job.id, by=9))

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        job = self.job(pick)
        self.model.retry(job)
        self.run(self.store.retry(job.id, by=9))

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def extend(self, pick: int) -> None:
        job = self.job(pick)
        self.model.extend(job)
        found = self.run(self.store.get(job.id))
        self.run(self.store.extend(found, SPEC, fingerprint="extended", estimate_s=None, by=9, max_waiting=None))

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK, priority=st.sampled_from(Priority))
    def bump(self, pick: int, priority: Priority) -> None:
        job = self.job(pick)
        self.model.bump(job, priority)
        self.run(self.store.bump(job.id, priority, by=9))

    @rule(kind=st.sampled_from([None, None, *PauseKind]))
    def pause_queue(self, kind: PauseKind | None) -> None:
        self.model.is_paused = kind is not None
        if kind is None:
            self.run(self.store.control.resume(by=9))
        else:
            self.run(self.store.control.pause(kind, by=9))
        if kind is PauseKind.DRAIN:
            for job in self.model.active():
                self.model.stop(job, StopIntent.REQUEUE)
            self.run(self.store.requeue_all(by=9, why="a new driver"))

    # -- the machine -------------------------------------------------------------------------------------------

    @rule()
    def claim(self) -> None:
        expected = self.model.claim(self.clock.at)
        claimed = self.run(self.store.attempts.claim())
        assert (claimed and claimed.id) == (expected and expected.id)
        assert max(self.model.overtaken.values(), default=0) <= 1, self.model.overtaken

    @rule(owner=OWNERS)
    def samplings_and_trainings_take_turns(self, owner: int) -> None:
        """More samplings than go before a training, each drawn at once."""
        for number in range(7):
            self.submit(JobKind.SAMPLE, 1 + (owner + number) % 4, Priority.NORMAL, 1, 0, 1)
            self.finish_one_and_start_the_next()

    @rule(owner=OWNERS)
    def a_sampling_that_ran_beside_trainings_is_lost(self, owner: int) -> None:
        """It does not run without a slot again."""
        self.claim_all()
        self.submit(JobKind.SAMPLE, owner, Priority.NORMAL, 1, 0, None)
        self.claim()
        for number, job in enumerate(self.model.active()):
            if not job.slots:
                self.lose(number, is_node_lost=True)
                self.claim()
                break

    @rule()
    def claim_all(self) -> None:
        for _ in range(SLOTS):
            self.claim()

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK, intent=st.sampled_from(StopIntent))
    def stop_at_a_checkpoint(self, pick: int, intent: StopIntent) -> None:
        job_id = self.active_job(pick).id
        self.stop(job_id - 1, intent)
        if self.model.jobs[job_id].state is State.STOPPING:
            self.trainer_stops(self.model.active().index(self.model.jobs[job_id]), has_checkpoint=True)

    @rule()
    def finish_one_and_start_the_next(self) -> None:
        if active := self.model.active():
            self.finish(len(active) - 1)
        self.claim()

    @rule(seconds=st.sampled_from([1, 31, 700, 100_000, -700, -100_000]))
    def clock_jumps(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(shares=st.booleans())
    def restart(self, shares: bool) -> None:
        self.model.shares = shares
        self.run(self.stack.aclose())
        self.run(self.open(shares=shares))

    def ingest(self, job: ModelJob, event: Event) -> None:
        self.read_bytes += 10
        assert self.run(self.store.attempts.ingest(job.id, job.attempt, [event], self.read_bytes))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK)
    def trainer_starts(self, pick: int) -> None:
        job = self.active_job(pick)
        job.seq += 1
        if job.state is State.PREPARING:
            job.enter(State.RUNNING)
        is_sampling = job.kind is JobKind.SAMPLE
        self.ingest(job, (fake_events.sampling_started if is_sampling else fake_events.started)(job.seq))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK)
    def epoch_ends_or_image_is_drawn(self, pick: int) -> None:
        job = self.active_job(pick)
        job.seq += 1
        if job.kind is JobKind.SAMPLE:
            self.ingest(job, fake_events.image_drawn(job.seq))
            return
        job.kept_epoch += 1
        self.ingest(job, fake_events.epoch_ended(job.seq, job.kept_epoch))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        job = self.active_job(pick)
        job.seq += 1
        self.model.finished(job)
        is_sampling = job.kind is JobKind.SAMPLE
        self.ingest(job, (fake_events.sampling_finished if is_sampling else fake_events.finished)(job.seq))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK, has_checkpoint=st.booleans())
    def trainer_stops(self, pick: int, has_checkpoint: bool) -> None:
        job = self.active_job(pick)
        job.seq += 1
        has_checkpoint &= job.kind is JobKind.TRAIN
        self.model.stopped(job, has_checkpoint=has_checkpoint)
        self.ingest(job, fake_events.stopped(job.seq, checkpoint="checkpoints/last" if has_checkpoint else None))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK, kind=st.sampled_from([FailureKind.BAD_DATASET, FailureKind.DEVICE_LOST, FailureKind.BUG]))
    def fail(self, pick: int, kind: FailureKind) -> None:
        job = self.active_job(pick)
        job.seq += 1
        self.model.failed(job, kind, self.clock.at)
        self.ingest(job, fake_events.failed(job.seq, kind))

    @precondition(lambda self: self.model.active())
    @rule(pick=PICK, is_node_lost=st.sampled_from([False, False, True]))
    def lose(self, pick: int, is_node_lost: bool) -> None:
        job = self.active_job(pick)
        self.model.lost(job, self.clock.at, is_node_lost=is_node_lost)
        assert self.run(self.store.attempts.lost(job.id, job.attempt, is_node_lost=is_node_lost))

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def a_superseded_attempt_sends_events(self, pick: int) -> None:
        job = self.job(pick)
        assert not self.run(
            self.store.attempts.ingest(job.id, job.attempt - 1, [fake_events.finished(job.seq + 1)], 10**9)
        )
        assert not self.run(self.store.attempts.lost(job.id, job.attempt - 1))

    # -- what must always hold ---------------------------------------------------------------------------------

    @invariant()
    def jobs_are_as_in_the_model(self) -> None:
        rows = self.run(self.db.all("SELECT * FROM job ORDER BY id"))
        assert [
            (row["id"], row["state"], row["priority"], row["is_front"], row["attempt"], row["uncounted"], row["round"],
             row["turn"], row["run_after"], row["is_finishing"])
            for row in rows
        ] == [
            (job.id, job.state, job.priority, job.is_front, job.attempt, job.uncounted, job.round,
             job.turn, job.run_after, job.is_finishing)
            for job in self.model.jobs.values()
        ]  # fmt: skip

    @invariant()
    def the_queue_is_as_in_the_model(self) -> None:
        line = [job.id for job in self.model.queue()]
        assert self.run(self.store.queued_ids()) == line
        for place, job_id in enumerate(line[:3], start=1):
            assert self.run(self.store.queue_position(job_id)) == place

    @invariant()
    def active_jobs_hold_their_slots(self) -> None:
        held = self.run(self.db.all("SELECT job_id, attempt, position FROM slot WHERE job_id IS NOT NULL"))
        assert sorted((row["job_id"], row["attempt"], row["position"]) for row in held) == sorted(
            (job.id, job.attempt, slot) for job in self.model.active() for slot in job.slots
        )
        beside = [job for job in self.model.active() if len(job.slots) != job.gpus]
        assert len(beside) <= 1
        assert all(job.kind is JobKind.SAMPLE and not job.slots for job in beside)
        open_attempts = self.run(self.db.all("SELECT job_id, attempt FROM attempt WHERE ended_at IS NULL"))
        assert {tuple(row) for row in open_attempts} == {(job.id, job.attempt) for job in self.model.active()}

    @invariant()
    def each_end_is_notified_once(self) -> None:
        keys = self.run(notifications(self.db))
        assert len(keys) == len(set(keys))
        ends = [key for key in keys if ":end" in key]
        expected = [
            f"job:{job.id}:end" + (f":{number}" if number > 1 else "")
            for job in self.model.jobs.values()
            for number, count in job.ends.items()
            for _ in range(count)
        ]
        assert sorted(ends) == sorted(expected)

    @invariant()
    def the_audit_is_a_chain_of_legal_transitions(self) -> None:
        rows = self.run(self.db.all("SELECT job_id, before, after FROM audit WHERE job_id IS NOT NULL ORDER BY id"))
        paths: dict[int, list[State]] = {}
        for row in rows:
            path = paths.setdefault(row["job_id"], [])
            assert row["before"] == (path[-1] if path else None)
            after = State(row["after"])
            assert not path or after is path[-1] or after in TRANSITIONS[path[-1]]
            if not path or after is not path[-1]:
                path.append(after)
        assert paths == {job.id: job.path for job in self.model.jobs.values()}

    @invariant()
    def no_job_runs_without_a_slot(self) -> None:
        busy = self.run(self.store.attempts.active())
        assert {each.id for each in busy} == {job.id for job in self.model.active()}
        assert all(each.state in ACTIVE for each in busy)


EXAMPLES = int(os.environ.get("DARKROOM_EXAMPLES", "40"))


QueueMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == 40,
    suppress_health_check=list(HealthCheck),
)
TestQueue = pytest.mark.usefixtures("statements_at_once")(QueueMachine.TestCase)
