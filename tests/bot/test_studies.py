"""Studies in the queue: the real `trainer study`, real child processes that train by a formula, the real dispatcher."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.config import LimitSettings, QueueSettings
from bot.db import Database
from bot.errors import JobRefused
from bot.outbox import Outbox
from bot.queue import Dispatcher, Job, JobStore, NewJob, State, StopIntent, slots_of
from bot.runners import LocalRunner
from bot.studies import Studies
from bot.studies.studies import MAX_FAILURES
from tests.bot.conftest import CHANNEL, GUILD, notices
from tests.bot.fakes import Clock
from tests.trainer.studies.studying import make_study
from trainer.protocol.devices import Devices
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyStep, make_study_order

FAKE_TRAINER = (sys.executable, str(Path(__file__).parents[1] / "trainer" / "studies" / "fake_trainer.py"))
TRAINER = (sys.executable, "-m", "trainer")
RATES = "training.learning_rate=1e-4,3e-4,1e-3"
ROOT = Path(__file__).parents[2]


@dataclass
class Room:
    """A bot's queue over real processes."""

    db: Database
    store: JobStore
    dispatcher: Dispatcher
    studies: Studies

    async def order(self, spec: Spec, interaction: int = 1, **order: object) -> Job:
        return await self.store.submit(
            NewJob(
                interaction_id=interaction,
                guild_id=GUILD,
                channel_id=CHANNEL,
                owner_id=1,
                dataset_id=1,
                spec=spec,
                gpus=0,
                study=make_study_order(order).model_dump_json(),
            )
        )

    async def until(self, claim: Callable[[Job], bool], job_id: int = 1, within_s: float = 90) -> Job:
        deadline = time.monotonic() + within_s
        while not claim(job := await self.store.get(job_id)):
            assert time.monotonic() < deadline, (job.state, await self.children(job_id))
            await self.dispatcher.step()
            await asyncio.sleep(0.05)
        return job

    async def children(self, job_id: int = 1) -> dict[str | None, State]:
        return {child.child_name: child.state for child in await self.store.children(job_id)}


@asynccontextmanager
async def bot(db: Database, tmp_path: Path, slots: int = 2) -> AsyncIterator[Room]:
    store = JobStore(
        db,
        Outbox(db),
        data_dir=tmp_path / "data",
        limits=LimitSettings(max_jobs_per_user=100),
        queue=QueueSettings(retry_pause_s=0),
    )
    await store.slots.set(slots_of(Devices(), slots))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    studies = Studies(store, command=TRAINER, env=env)
    runner = LocalRunner(command=FAKE_TRAINER, env=env)
    settings = QueueSettings(stop_grace_s=10, retry_pause_s=0)
    try:
        yield Room(db, store, Dispatcher(store, runner, settings=settings, advance=studies.advance), studies)
    finally:
        await studies.close()


def behave(tmp_path: Path, **behaviours: Mapping[str, object]) -> None:
    """How children behave, by the name of their folder (`*`: all)."""
    (tmp_path / "data" / "jobs").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "jobs" / "behaviour.json").write_text(json.dumps(behaviours), encoding="utf-8")


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return make_study(tmp_path / "study")


async def test_a_cross_validation_runs_its_folds_in_free_slots_and_ends_with_its_result(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="kfold", folds=3)
        running = await room.until(lambda job: job.state is State.RUNNING)
        assert running.slots == ()
        job = await room.until(lambda job: job.state.is_end)

        assert job.state is State.SUCCEEDED
        assert await room.children() == dict.fromkeys(("fold 1", "fold 2", "fold 3", "final"), State.SUCCEEDED)
        assert job.end_reason is not None
        assert "Over 3 folds" in job.end_reason
        row = await db.one("SELECT study_step FROM job WHERE id = 1")
        assert row is not None
        step = StudyStep.model_validate_json(row["study_step"])
        assert (step.is_over, step.result) == (True, "final")
        assert (room.store.job_dir(job) / step.page).exists()
        # One card, one end: nothing of the children is told by itself.
        assert await notices(db) == ["job:1:end"]
        cards = await db.all("SELECT job_id FROM card")
        assert [row["job_id"] for row in cards] == [1]


async def test_a_comparison_pauses_at_its_looks_and_leaves_nothing_behind(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.3}})
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="compare", vary=[RATES])
        job = await room.until(lambda job: job.state.is_end)

        assert job.state is State.SUCCEEDED
        states = await room.children()
        assert states["winner"] is State.SUCCEEDED
        assert sorted(states.values()).count(State.CANCELLED) == 1, "one of three is ended early"
        assert all(state.is_end for state in states.values())
        assert [slot.job_id for slot in await room.store.slots.all()] == [None, None]
        looks = await db.all("SELECT why FROM audit WHERE verb = 'pause'")
        assert {row["why"] for row in looks} == {"epoch 2 is reached"}


async def test_a_child_that_always_fails_is_left_out_and_the_study_ends(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    behave(tmp_path, **{"2": {"fails": True}})
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="kfold", folds=3)
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert (await room.children())["fold 2"] is State.FAILED


async def test_a_study_of_which_nothing_came_fails_and_its_retry_tries_all_again(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    behave(tmp_path, **{"*": {"fails": True}})
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="kfold", folds=2)
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.FAILED
        assert set((await room.children()).values()) == {State.FAILED}

        behave(tmp_path)
        await room.store.retry(1, by=1)
        job = await room.until(lambda job: job.state.is_end)
        assert (job.state, job.round) == (State.SUCCEEDED, 2)
        assert set((await room.children()).values()) == {State.SUCCEEDED}


async def test_a_cancelled_study_takes_its_children_along(db: Database, tmp_path: Path, spec: Spec) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path, slots=1) as room:
        await room.order(spec, kind="kfold", folds=3)
        while State.RUNNING not in (await room.children()).values():
            await room.dispatcher.step()
            await asyncio.sleep(0.05)
        await room.store.request_stop(1, by=1, intent=StopIntent.CANCEL)
        await room.until(lambda job: job.state is State.CANCELLED)
        assert set((await room.children()).values()) == {State.CANCELLED}


async def test_a_paused_study_frees_its_slots_and_goes_on_where_it_was(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.3}})
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="kfold", folds=2)
        while State.RUNNING not in (await room.children()).values():
            await room.dispatcher.step()
            await asyncio.sleep(0.05)
        await room.store.request_stop(1, by=1, intent=StopIntent.PAUSE)
        await room.until(lambda job: job.state is State.PAUSED)
        assert [slot.job_id for slot in await room.store.slots.all()] == [None, None]
        await room.store.resume(1, by=1)
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED


async def test_a_bot_that_comes_back_goes_on_with_the_study(db: Database, tmp_path: Path, spec: Spec) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.3}})
    for _ in range(3):
        # Each bot forgets everything after a moment, wherever it is; the processes run on.
        async with bot(db, tmp_path) as room:
            if not await room.store.recent(GUILD):
                await room.order(spec, kind="kfold", folds=2)
            for _ in range(15):
                await room.dispatcher.step()
                await asyncio.sleep(0.05)
    async with bot(db, tmp_path) as room:
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert await notices(db) == ["job:1:end"]


async def test_a_study_that_cannot_be_is_refused_before_it_is_queued(db: Database, tmp_path: Path, spec: Spec) -> None:
    async with bot(db, tmp_path) as room:
        await room.studies.check(spec, make_study_order({"kind": "kfold", "folds": 2}))
        with pytest.raises(JobRefused, match="20") as refused:
            await room.studies.check(spec, make_study_order({"kind": "kfold", "folds": 20}))
        assert str(refused.value).endswith("Nothing was queued.")


async def test_a_cancelled_study_goes_on_when_it_is_retried(db: Database, tmp_path: Path, spec: Spec) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path) as room:
        await room.order(spec, kind="kfold", folds=2)
        while State.RUNNING not in (await room.children()).values():
            await room.dispatcher.step()
            await asyncio.sleep(0.05)
        await room.store.request_stop(1, by=1, intent=StopIntent.CANCEL)
        await room.until(lambda job: job.state is State.CANCELLED)

        behave(tmp_path)
        await room.store.retry(1, by=1)
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert set((await room.children()).values()) == {State.SUCCEEDED}


async def test_a_study_that_cannot_go_on_ends_only_when_nothing_below_it_runs(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path) as room:
        job = await room.order(spec, kind="kfold", folds=2)
        while State.RUNNING not in (await room.children()).values():
            await room.dispatcher.step()
            await asyncio.sleep(0.05)
        # Somebody changes the question: the trainer refuses from here on.
        order = room.store.job_dir(job) / "study.json"
        order.write_text("{}", encoding="utf-8")
        job = await room.until(lambda job: job.state.is_end)
        assert job.state is State.FAILED
        assert [slot.job_id for slot in await room.store.slots.all()] == [None, None]
        assert all(state.is_end for state in (await room.children()).values())


async def test_a_trainer_that_gives_no_answer_is_asked_again_later_and_later(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    async with bot(db, tmp_path) as room:
        clock = Clock(0.0)
        silent = Studies(room.store, command=("false",), env={}, monotonic=clock)
        await room.order(spec, kind="kfold", folds=2)
        busy = await room.store.runs.claim()
        assert busy is not None

        async def ask(times: int) -> None:
            for _ in range(times):
                await silent.advance(busy)
                await asyncio.sleep(0.1)

        await ask(20)
        assert (await room.store.get(1)).state is State.PREPARING, "a moment's trouble ends no study"
        for _ in range(MAX_FAILURES):
            clock.advance(1000)
            await ask(3)
        job = await room.store.get(1)
        assert job.state is State.FAILED
        assert job.end_reason is not None
        assert "cannot go on" in job.end_reason
        await silent.close()
