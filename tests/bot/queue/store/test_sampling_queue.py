"""Samplings in the queue: before trainings that wait, fair between people, and never in their way for long."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bot.config import LimitSettings, QueueSettings, RetentionSettings, SamplingSettings
from bot.db import Database
from bot.errors import JobFilesDeleted
from bot.outbox import NotificationKind, Outbox
from bot.queue import Job, JobStore, NewJob, State, StopIntent
from bot.queue.domain.verbs import TooManySamplings
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.queue.planning.retention import Storage
from bot.queue.planning.windows import ALWAYS_OPEN
from tests.bot.conftest import CHANNEL, GUILD, Submit, claim, notifications, set_slots
from tests.bot.fake_events import failed, finished, image_drawn, sampling_finished, sampling_started, started
from tests.bot.fakes import FakeClock
from trainer.protocol.events import Event, FailureKind, SamplingStarted
from trainer.protocol.run_options import JobKind
from trainer.protocol.sampling import SamplingSpec, make_sampling_spec

_numbers = itertools.count(2_000_000)


def spec(images: int = 2) -> SamplingSpec:
    return make_sampling_spec(
        {"models": [{"kind": "base"}], "prompts": [{"prompt": "a fox"}], "seeds": list(range(images))}
    )


def new_sampling(*, owner: int = 1, guild: int = GUILD, source: int | None = None, images: int = 2) -> NewJob:
    return NewJob(
        interaction_id=next(_numbers),
        guild_id=guild,
        channel_id=CHANNEL,
        owner_id=owner,
        dataset_id=0,
        source_id=source,
        spec=spec(images),
        title="fox",
        max_running=1,
    )


async def sample(store: JobStore, *, owner: int = 1, source: int | None = None) -> Job:
    return await store.submit(new_sampling(owner=owner, source=source))


def drawn(*, first: int = 1) -> list[Event]:
    """All events of a sampling of two images."""
    images = [image_drawn(first + 1 + cell, cell) for cell in (0, 1)]
    return [sampling_started(first), *images, sampling_finished(first + 3)]


async def end(store: JobStore, job: Job, events: list[Event]) -> None:
    assert await store.attempts.ingest(job.id, 1, events, 100)


async def test_a_sampling_goes_before_trainings_also_before_interrupted_ones(store: JobStore, submit: Submit) -> None:
    await submit()
    running = await claim(store, 1)
    assert running is not None
    await submit(owner=2)
    # The first one waits at the front of the queue.
    await store.request_stop(1, by=1, intent=StopIntent.PAUSE)
    assert await store.attempts.lost(1, 1)
    await store.resume(1, by=1)
    drawing = await sample(store, owner=3)

    assert await store.queued_ids() == [drawing.id, 1, 2]
    assert await store.queue_positions([1, 2, drawing.id]) == {drawing.id: 1, 1: 2, 2: 3}
    assert [job.id for job in await store.living(GUILD)] == [drawing.id, 1, 2]
    claimed = await claim(store, 1)
    assert claimed is not None
    assert (claimed.id, claimed.kind) == (drawing.id, JobKind.SAMPLE)


async def test_samplings_are_served_by_turns_and_one_of_a_person_at_a_time(store: JobStore) -> None:
    for owner in (1, 1, 1, 2, 3):
        await sample(store, owner=owner)
    assert await store.queued_ids() == [1, 4, 5, 2, 3], "everyone's first before anyone's second"

    claimed = [await claim(store, 4) for _ in range(4)]
    assert [job and job.id for job in claimed] == [1, 4, 5, None], "the fourth slot waits for another person"


async def test_a_training_gets_its_turn_after_five_samplings(store: JobStore, submit: Submit) -> None:
    await set_slots(store, 1)
    await submit()
    started_: list[int] = []
    for number in range(8):
        await sample(store, owner=10 + number)
    for _ in range(7):
        claimed = await store.attempts.claim()
        assert claimed is not None
        started_.append(claimed.id)
        await end(store, claimed, drawn() if claimed.is_sampling else [started(1), finished(2)])

    assert started_ == [2, 3, 4, 5, 6, 1, 7], "the training has waited for five, and then the others go on"


async def test_a_sampling_runs_beside_a_training_only_where_that_is_allowed(
    db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path, store: JobStore, submit: Submit
) -> None:
    beside = JobStore(
        db, outbox, data_dir=tmp_path / "data", sampling=SamplingSettings(beside_training=True), clock=clock
    )
    await submit()
    assert (await claim(store, 1)) is not None
    await submit(owner=2)
    first = await sample(store, owner=3)
    await sample(store, owner=4)

    assert await store.attempts.claim() is None, "by default it waits for the slot"
    claimed = await beside.attempts.claim()
    assert claimed is not None
    assert (claimed.id, claimed.devices) == (first.id, ())
    assert await beside.attempts.claim() is None, "one at a time"
    # The training that ends frees one slot, and the sampling beside it none.
    forecasts = Forecaster(db, beside.control, Estimates(db), windows=ALWAYS_OPEN, clock=clock)
    assert (await forecasts.all())[first.id].seconds is not None

    # It did not fit: it gets a slot of its own.
    await end(beside, claimed, [failed(1, FailureKind.OUT_OF_MEMORY)])
    again = await beside.get(first.id)
    assert again.state is State.QUEUED
    clock.advance(1000)
    assert await beside.attempts.claim() is None, "it does not share again, and none passes it"
    await end(beside, await beside.get(1), [started(1), finished(2)])
    claimed = await beside.attempts.claim()
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == (first.id, 2)
    assert [slot.job_id for slot in await beside.slots.all()] == [first.id]


async def test_a_member_and_a_server_have_only_so_many_waiting(
    db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path
) -> None:
    few = SamplingSettings(max_waiting_per_user=2, max_waiting=3)
    limits = LimitSettings(max_jobs_per_user=1)
    store = JobStore(db, outbox, data_dir=tmp_path, limits=limits, queue=QueueSettings(), sampling=few, clock=clock)
    await set_slots(store, 1)
    for owner in (1, 1):
        await sample(store, owner=owner)
    with pytest.raises(TooManySamplings) as refused:
        await sample(store, owner=1)
    assert refused.value.is_own
    await sample(store, owner=2)
    with pytest.raises(TooManySamplings) as refused:
        await sample(store, owner=3)
    assert not refused.value.is_own
    assert len(await store.queued_ids()) == 3


async def test_what_is_drawn_is_kept_over_a_loss_and_called_out_once(store: JobStore, db: Database) -> None:
    job = await sample(store)
    assert (await claim(store, 1)) is not None
    assert await store.attempts.ingest(job.id, 1, drawn()[:2], 50)
    assert (await store.get(job.id)).state is State.RUNNING
    assert await store.attempts.lost(job.id, 1)
    assert (await claim(store, 1)) is not None
    # The second run tells again how many there are.
    again = SamplingStarted(
        seq=3, time=0, device="cpu", precision="fp32", width=64, height=64, images=2, already_drawn=1
    )
    last = [event.model_copy(update={"seq": event.seq + 1}) for event in drawn()[2:]]
    assert await store.attempts.ingest(job.id, 2, [again, *last], 100)

    ended = await store.get(job.id)
    assert (ended.state, ended.progress.drawn, ended.progress.images) == (State.SUCCEEDED, 2, 2)
    assert ended.progress.newest_cells == (0, 1)
    assert await notifications(db) == [f"job:{job.id}:end"]
    row = await db.one("SELECT notification, thread_of FROM outbox")
    assert row is not None
    assert NotificationKind.DRAWN in row["notification"]
    assert row["thread_of"] == 0, "its card is where it is called out"
    card = await db.one("SELECT thread_id FROM card WHERE job_id = ?", (job.id,))
    assert card is not None
    assert card["thread_id"] == 0, "no thread of its own"


async def test_a_training_that_is_drawn_with_keeps_its_files(
    store: JobStore, submit: Submit, db: Database, clock: FakeClock, tmp_path: Path
) -> None:
    await submit()
    training = await claim(store, 1)
    assert training is not None
    await end(store, training, [started(1), finished(2)])
    (tmp_path / "data" / "jobs" / "1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "data" / "jobs" / "1" / "checkpoints" / "w").write_bytes(b"w" * 100)
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    storage = Storage(db, data_dir=tmp_path / "data", settings=settings, clock=clock)
    clock.advance(400 * 86_400)

    async def due() -> list[int]:
        plan, _totals = await storage.survey()
        return [deletion.job_id for deletion in plan.deletions]

    assert await due() == [1]
    drawing = await sample(store, source=1)
    assert 1 not in await due()
    await store.request_stop(drawing.id, by=1, intent=StopIntent.CANCEL)
    assert await due() == [1]

    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET files_deleted_at = 1 WHERE id = 1")
    with pytest.raises(JobFilesDeleted):
        await sample(store, source=1)
