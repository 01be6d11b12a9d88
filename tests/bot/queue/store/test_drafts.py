"""Drafts: kept for a day, queued once, cancelled only while they wait."""

from __future__ import annotations

import asyncio

import pytest

from bot.db import Database
from bot.errors import DraftEnded, NoSuchJob, TooManyDrafts
from bot.queue import Draft, DraftStore, JobStore, NewJob, State
from tests.bot.conftest import GUILD
from tests.bot.fakes import FakeClock
from trainer.protocol.spec import make_spec

DAY_S = 86_400


@pytest.fixture
def drafts(db: Database, clock: FakeClock) -> DraftStore:
    return DraftStore(db, clock=clock)


async def add(drafts: DraftStore, interaction: int = 1, owner: int = 5) -> Draft:
    return await drafts.add(
        interaction_id=interaction, guild_id=GUILD, channel_id=1, owner_id=owner, dataset_id=1, request="{}"
    )


async def test_the_same_command_twice_is_one_draft(drafts: DraftStore) -> None:
    one, two = await asyncio.gather(add(drafts), add(drafts))
    assert one == two
    assert (await add(drafts, 2)).id != one.id


async def test_a_person_has_so_many_drafts(db: Database, clock: FakeClock) -> None:
    drafts = DraftStore(db, max_waiting=2, clock=clock)
    first, _second = await add(drafts, 1), await add(drafts, 2)
    with pytest.raises(TooManyDrafts):
        await add(drafts, 3)
    # The same command twice is one draft; those of others do not count.
    assert await add(drafts, 1) == first
    await add(drafts, 4, owner=6)
    await drafts.cancel(first.id)
    await add(drafts, 3)
    clock.advance(DAY_S + 1)
    await add(drafts, 5)


def job_of(draft: Draft) -> NewJob:
    spec = make_spec({"name": "fox", "dataset": "/nowhere"})
    return NewJob(
        interaction_id=draft.interaction_id, guild_id=GUILD, channel_id=1, owner_id=5, dataset_id=1, spec=spec
    )


async def test_a_draft_becomes_its_job_once_and_cannot_be_cancelled_then(drafts: DraftStore, store: JobStore) -> None:
    draft = await add(drafts)
    jobs = await asyncio.gather(*(store.submit(job_of(draft)) for _ in range(3)))
    assert [(job.interaction_id, job.state) for job in jobs] == [(draft.interaction_id, State.QUEUED)] * 3
    assert len({job.id for job in jobs}) == 1
    assert not await drafts.cancel(draft.id)
    assert (await drafts.get(draft.id)).job_id == jobs[0].id
    assert await drafts.waiting(5, 1) is None


async def test_a_cancelled_draft_cannot_be_queued(drafts: DraftStore, store: JobStore) -> None:
    draft = await add(drafts)
    assert await drafts.cancel(draft.id)
    assert not await drafts.cancel(draft.id)
    with pytest.raises(DraftEnded, match="was cancelled"):
        await drafts.get(draft.id)
    with pytest.raises(DraftEnded, match="was cancelled"):
        await store.submit(job_of(draft))
    assert await drafts.waiting(5, 1) is None


async def test_a_draft_is_no_job_yet(drafts: DraftStore, store: JobStore) -> None:
    draft = await add(drafts)
    assert (await store.recent(GUILD), await store.queued_ids()) == ([], [])
    with pytest.raises(NoSuchJob):
        await store.get(draft.id)


async def test_drafts_leave_no_holes_in_the_numbers_of_jobs(drafts: DraftStore, store: JobStore) -> None:
    numbers = []
    for interaction in (1, 3, 5):
        await add(drafts, interaction)
        started = await add(drafts, interaction + 1)
        numbers.append((await store.submit(job_of(started))).id)
    assert numbers == [1, 2, 3]


async def test_a_draft_expires_after_a_day(drafts: DraftStore, clock: FakeClock, db: Database) -> None:
    draft = await add(drafts)
    clock.advance(DAY_S - 1)
    assert await drafts.get(draft.id) == draft == await drafts.waiting(5, 1)
    assert await drafts.sweep() == 0
    clock.advance(2)
    with pytest.raises(DraftEnded, match="older than a day"):
        await drafts.get(draft.id)
    assert await drafts.waiting(5, 1) is None
    assert await drafts.sweep() == 1
    assert await db.all("SELECT * FROM draft") == []


async def test_a_job_outlives_its_draft(drafts: DraftStore, store: JobStore, clock: FakeClock) -> None:
    draft = await add(drafts)
    await store.submit(job_of(draft))
    clock.advance(2 * DAY_S)
    assert await drafts.sweep() == 0
    assert (await drafts.get(draft.id)).id == draft.id


async def test_the_newest_draft_of_an_owner_is_the_one_that_waits(drafts: DraftStore) -> None:
    await add(drafts, 1)
    await add(drafts, 2, owner=6)
    newest = await add(drafts, 3)
    assert await drafts.waiting(5, 1) == newest
