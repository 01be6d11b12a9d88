"""Studies in the queue, with the real dispatcher, the real `trainer study` and children that train by a formula."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot.cogs.study_command import compare_request
from bot.config import LimitSettings, QueueSettings
from bot.db import Database
from bot.errors import JobRefused, TooManyEpochs, TooManyRuns, TooManyWaiting
from bot.outbox import Outbox
from bot.queue import Dispatcher, EndReasonKind, Job, JobStore, NewJob, State, StopIntent, slots_of
from bot.queue.store.history import AuditReason
from bot.queue.store.study_store import StudyGoal
from bot.runners import LocalRunner
from bot.studies import MAX_FAILURES, StudyService, require_run
from tests.bot.conftest import CHANNEL, GUILD, claim, notifications
from tests.bot.fakes import FakeClock
from tests.trainer.fork_server import QUICK_CHARTS_VARIABLE, ForkServer
from tests.trainer.studies.study_helpers import ROOT, fake_trainer, make_study, real_trainer
from trainer.protocol.devices import Devices
from trainer.protocol.spec import Spec, make_spec
from trainer.protocol.study import StudyStep, make_study_request

RATES = "training.learning_rate=1e-4,3e-4,1e-3"


@dataclass
class Bench:
    """A queue that starts real processes."""

    db: Database
    store: JobStore
    dispatcher: Dispatcher
    studies: StudyService

    async def submit(self, spec: Spec, interaction: int = 1, **request: object) -> Job:
        return await self.store.submit(
            NewJob(
                interaction_id=interaction,
                guild_id=GUILD,
                channel_id=CHANNEL,
                owner_id=1,
                dataset_id=1,
                spec=spec,
                gpus=0,
                study=make_study_request(request).model_dump_json(),
            )
        )

    async def until(self, condition: Callable[[Job], bool], job_id: int = 1, within_s: float = 90) -> Job:
        deadline = time.monotonic() + within_s
        while not condition(job := await self.store.get(job_id)):
            assert time.monotonic() < deadline, (job.state, await self.children(job_id))
            await self.dispatcher.step()
            await asyncio.sleep(0.05)
        return job

    async def until_a_child_runs(self) -> None:
        while State.RUNNING not in (await self.children()).values():
            await self.dispatcher.step()
            await asyncio.sleep(0.05)

    async def children(self, job_id: int = 1) -> dict[str | None, State]:
        return {child.child_name: child.state for child in await self.store.studies.children(job_id)}


@asynccontextmanager
async def bot(db: Database, tmp_path: Path, trainer: tuple[str, ...] = (), slots: int = 2) -> AsyncIterator[Bench]:
    store = JobStore(
        db,
        Outbox(db),
        data_dir=tmp_path / "data",
        limits=LimitSettings(max_jobs_per_user=100),
        queue=QueueSettings(retry_pause_s=0),
    )
    await store.slots.set(slots_of(Devices(), slots))
    # Each step of a study draws its charts, which takes more than half of its time.
    env = {**os.environ, "PYTHONPATH": str(ROOT), QUICK_CHARTS_VARIABLE: "1"}
    studies = StudyService(store, command=trainer or real_trainer(), env=env)
    runner = LocalRunner(command=fake_trainer(), env=env)
    settings = QueueSettings(stop_grace_s=10, retry_pause_s=0)
    try:
        yield Bench(db, store, Dispatcher(store, runner, settings=settings, advance=studies.advance), studies)
    finally:
        await studies.close()


def behave(tmp_path: Path, **behaviors: Mapping[str, object]) -> None:
    """Set how children behave, by the name of their folder (`*`: all)."""
    (tmp_path / "data" / "jobs").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "jobs" / "behavior.json").write_text(json.dumps(behaviors), encoding="utf-8")


@pytest.fixture
def trainer(fork_server: ForkServer) -> tuple[str, ...]:
    return fork_server.command


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return make_study(tmp_path / "study")


@pytest.mark.slow
async def test_a_cross_validation_runs_its_folds_in_free_slots_and_ends_with_its_result(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="kfold", folds=3)
        running = await bench.until(lambda job: job.state is State.RUNNING)
        assert running.slots == ()
        job = await bench.until(lambda job: job.state.is_end)

        assert job.state is State.SUCCEEDED
        assert await bench.children() == dict.fromkeys(("fold 1", "fold 2", "fold 3", "final"), State.SUCCEEDED)
        assert job.end_reason is not None
        assert job.end_reason.kind is EndReasonKind.STUDY
        assert "Over 3 folds" in job.end_reason.message
        row = await db.one("SELECT study_step FROM job WHERE id = 1")
        assert row is not None
        step = StudyStep.model_validate_json(row["study_step"])
        assert (step.is_over, step.result) == (True, "final")
        assert (bench.store.job_dir(job) / step.page).exists()
        # One card and one message at the end; the children have none of their own.
        assert await notifications(db) == ["job:1:end"]
        cards = await db.all("SELECT job_id FROM card")
        assert [row["job_id"] for row in cards] == [1]


@pytest.mark.slow
async def test_a_comparison_pauses_its_children_at_each_rung_and_leaves_none_behind(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.3}})
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="compare", vary=[RATES])
        job = await bench.until(lambda job: job.state.is_end)

        assert job.state is State.SUCCEEDED
        states = await bench.children()
        assert states["winner"] is State.SUCCEEDED
        assert sorted(states.values()).count(State.CANCELLED) == 1, "one of three is ended early"
        assert all(state.is_end for state in states.values())
        assert [slot.job_id for slot in await bench.store.slots.all()] == [None, None]
        pauses = await db.all("SELECT why FROM audit WHERE verb = 'pause'")
        assert {row["why"] for row in pauses} == {AuditReason.EPOCH_REACHED}


@pytest.mark.slow
async def test_a_child_that_always_fails_is_left_out_and_the_study_ends(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"2": {"fails": True}})
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="kfold", folds=3)
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert (await bench.children())["fold 2"] is State.FAILED


@pytest.mark.slow
async def test_a_study_fails_if_all_children_fail_and_a_retry_runs_them_again(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"fails": True}})
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="kfold", folds=2)
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.FAILED
        assert set((await bench.children()).values()) == {State.FAILED}

        behave(tmp_path)
        await bench.store.retry(1, by=1)
        job = await bench.until(lambda job: job.state.is_end)
        assert (job.state, job.round) == (State.SUCCEEDED, 2)
        assert set((await bench.children()).values()) == {State.SUCCEEDED}


@pytest.mark.slow
async def test_a_cancelled_study_cancels_its_children(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path, trainer, slots=1) as bench:
        await bench.submit(spec, kind="kfold", folds=3)
        await bench.until_a_child_runs()
        await bench.store.request_stop(1, by=1, intent=StopIntent.CANCEL)
        await bench.until(lambda job: job.state is State.CANCELLED)
        assert set((await bench.children()).values()) == {State.CANCELLED}


@pytest.mark.slow
async def test_a_paused_study_frees_its_slots_and_resumes_where_it_was(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.15}})
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="kfold", folds=2)
        await bench.until_a_child_runs()
        await bench.store.request_stop(1, by=1, intent=StopIntent.PAUSE)
        await bench.until(lambda job: job.state is State.PAUSED)
        assert [slot.job_id for slot in await bench.store.slots.all()] == [None, None]
        await bench.store.resume(1, by=1)
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED


@pytest.mark.slow
async def test_a_restarted_bot_continues_the_study(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 0.15}})
    for _ in range(3):
        # Each bot loses its state after a moment, and the processes keep running.
        async with bot(db, tmp_path, trainer) as bench:
            if not await bench.store.recent(GUILD):
                await bench.submit(spec, kind="kfold", folds=2)
            for _ in range(15):
                await bench.dispatcher.step()
                await asyncio.sleep(0.05)
    async with bot(db, tmp_path, trainer) as bench:
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert await notifications(db) == ["job:1:end"]


async def test_a_study_that_cannot_run_is_refused_before_it_is_queued(db: Database, tmp_path: Path, spec: Spec) -> None:
    async with bot(db, tmp_path) as bench:
        runs = await bench.studies.plan(spec, make_study_request({"kind": "kfold", "folds": 2}), max_epochs=100)
        # With the last one, on all images.
        assert len(runs) == 3
        with pytest.raises(JobRefused, match="20") as refused:
            await bench.studies.plan(spec, make_study_request({"kind": "kfold", "folds": 20}), max_epochs=100)
        assert str(refused.value).endswith("Nothing was queued.")


@pytest.mark.parametrize(
    "vary",
    [
        'base={source="/data/jobs/900/output/diffusers"},{source="evil-owner/evil-model"}; training.epochs=999,1000',
        'samples={similarity_model="evil/x",prompts=["a fox"]},{similarity_model="evil/y",prompts=["a fox"]}',
        "training={epochs=1000},{epochs=999}",
        'mix=[{dataset="/data/datasets/1/prepared",weight=0.2}],[{dataset="/data/datasets/2/prepared",weight=0.2}]',
    ],
)
async def test_no_study_reaches_another_model_dataset_or_length(
    db: Database, tmp_path: Path, spec: Spec, vary: str
) -> None:
    async with bot(db, tmp_path) as bench:
        with pytest.raises(JobRefused):
            await bench.studies.plan(spec, compare_request(vary, finishes=True), max_epochs=100)


EPOCHS: dict[str, Any] = {"kind": "compare", "vary": ["training.epochs=10,50,1000"]}


async def test_the_runs_of_a_study_have_the_limits_of_its_owner(db: Database, tmp_path: Path, spec: Spec) -> None:
    request = make_study_request(EPOCHS)
    async with bot(db, tmp_path) as bench:
        with pytest.raises(TooManyEpochs) as refused:
            await bench.studies.plan(spec, request, max_epochs=999)
        assert (refused.value.epochs, refused.value.allowed) == (1000, 999)
        assert len(await bench.studies.plan(spec, request, max_epochs=1000)) == 3

        few = StudyService(bench.store, command=real_trainer(), env=os.environ, limits=LimitSettings(max_study_runs=2))
        with pytest.raises(TooManyRuns):
            await few.plan(spec, request, max_epochs=1000)


async def test_no_run_exceeds_the_configuration_however_the_study_was_queued(
    db: Database, tmp_path: Path, spec: Spec
) -> None:
    async with bot(db, tmp_path) as bench:
        await bench.submit(spec, **EPOCHS)
        job = await bench.until(lambda job: job.state.is_end)
        assert (job.state, await bench.children()) == (State.FAILED, {})
        assert job.end_reason is not None
        assert "1000 epochs are more than the 100" in job.end_reason.message


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"source": "evil-owner/evil-model"}},
        {"base": {"source": "tiny", "revision": "main"}},
        {"dataset": "/another"},
        {"mix": [{"dataset": "/another", "weight": 0.2}]},
        {"task": "classification", "method": {"kind": "full"}},
        {"samples": {"similarity_model": "evil/x", "prompts": ["a fox"]}},
    ],
)
def test_a_run_has_the_model_and_the_images_of_its_study(changes: dict[str, object]) -> None:
    settings = {"dataset": "/images", "base": {"source": "tiny"}}
    study = make_spec(settings)
    require_run(make_spec({**settings, "training": {"learning_rate": 3e-4}}), study, max_epochs=100)
    with pytest.raises(JobRefused, match=next(iter(changes))):
        require_run(make_spec({**settings, **changes}), study, max_epochs=100)


async def test_the_runs_of_a_study_wait_as_jobs_of_its_owner(store: JobStore, spec: Spec) -> None:
    def new(interaction: int, **more: Any) -> NewJob:
        return NewJob(
            interaction_id=interaction, guild_id=GUILD, channel_id=CHANNEL, owner_id=1, dataset_id=1, spec=spec,
            max_waiting=3, **more,
        )  # fmt: skip

    async def set_goals() -> int:
        """The children after a further step, which wants five."""
        await store.studies.set_goals(1, 1, goals, "{}")
        return len(await store.studies.children(1))

    goals = [StudyGoal(name=f"c{n}", folder=f"c{n}", spec=spec, until_epoch=None) for n in range(5)]
    await store.submit(new(1, gpus=0, study="{}"))
    assert await claim(store, 1) is not None
    assert (await set_goals(), await set_goals()) == (3, 3)
    with pytest.raises(TooManyWaiting):
        await store.submit(new(2))

    assert await store.attempts.claim() is not None
    assert (await set_goals(), await set_goals()) == (4, 4)
    # Other jobs of the owner do not keep a study from its next run.
    for child in (await store.studies.children(1))[1:]:
        await store.request_stop(child.id, by=1, intent=StopIntent.CANCEL)
    for interaction in (3, 4, 5):
        await store.submit(new(interaction))
    assert await set_goals() == 5


@pytest.mark.slow
async def test_a_cancelled_study_continues_when_it_is_retried(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path, trainer) as bench:
        await bench.submit(spec, kind="kfold", folds=2)
        await bench.until_a_child_runs()
        await bench.store.request_stop(1, by=1, intent=StopIntent.CANCEL)
        await bench.until(lambda job: job.state is State.CANCELLED)

        behave(tmp_path)
        await bench.store.retry(1, by=1)
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.SUCCEEDED
        assert set((await bench.children()).values()) == {State.SUCCEEDED}


@pytest.mark.slow
async def test_a_study_that_cannot_continue_ends_only_when_none_of_its_children_runs(
    db: Database, tmp_path: Path, spec: Spec, trainer: tuple[str, ...]
) -> None:
    behave(tmp_path, **{"*": {"epoch_s": 5}})
    async with bot(db, tmp_path, trainer) as bench:
        job = await bench.submit(spec, kind="kfold", folds=2)
        await bench.until_a_child_runs()
        # A damaged state file: the trainer refuses from here on.
        (bench.store.job_dir(job) / "study.json").write_text("{}", encoding="utf-8")
        job = await bench.until(lambda job: job.state.is_end)
        assert job.state is State.FAILED
        assert [slot.job_id for slot in await bench.store.slots.all()] == [None, None]
        assert all(state.is_end for state in (await bench.children()).values())


async def test_a_failed_step_is_repeated_with_growing_pauses(db: Database, tmp_path: Path, spec: Spec) -> None:
    async with bot(db, tmp_path) as bench:
        clock = FakeClock(0.0)
        failing = StudyService(bench.store, command=("false",), env={}, clock=clock)
        await bench.submit(spec, kind="kfold", folds=2)
        busy = await bench.store.attempts.claim()
        assert busy is not None

        async def advance(times: int) -> None:
            for _ in range(times):
                await failing.advance(busy)
                await asyncio.sleep(0.1)

        await advance(20)
        assert (await bench.store.get(1)).state is State.PREPARING, "a short failure ends no study"
        for _ in range(MAX_FAILURES):
            clock.advance(1000)
            await advance(3)
        job = await bench.store.get(1)
        assert job.state is State.FAILED
        assert job.end_reason is not None
        assert "cannot continue" in job.end_reason.message
        await failing.close()
