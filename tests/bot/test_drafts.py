"""Requests that wait for "Go on": kept for a day, let go once, cancelled only while they wait."""

from __future__ import annotations

import asyncio

import pytest

from bot.db import Database
from bot.errors import DraftEnded
from bot.queue import Draft, DraftState, DraftStore, JobStore, NewJob
from tests.bot.conftest import GUILD
from tests.bot.fakes import Clock
from trainer.protocol.spec import make_spec

DAY_S = 86_400


@pytest.fixture
def drafts(db: Database, clock: Clock) -> DraftStore:
    return DraftStore(db, now=clock)


async def keep(drafts: DraftStore, interaction: int = 1, owner: int = 5) -> Draft:
    return await drafts.keep(
        interaction_id=interaction, guild_id=GUILD, channel_id=1, owner_id=owner, dataset_id=1, wishes="{}"
    )


async def test_the_same_command_twice_is_one_draft(drafts: DraftStore) -> None:
    one, two = await asyncio.gather(keep(drafts), keep(drafts))
    assert one == two
    assert (await keep(drafts, 2)).id != one.id


async def test_a_draft_goes_again_and_again_and_is_then_not_cancelled(drafts: DraftStore) -> None:
    draft = await keep(drafts)
    for _ in range(2):
        assert (await drafts.go(draft.id)).interaction_id == 1
    assert not await drafts.cancel(draft.id)
    assert (await drafts.get(draft.id)).state is DraftState.GOING


async def test_a_cancelled_draft_goes_nowhere(drafts: DraftStore) -> None:
    draft = await keep(drafts)
    assert await drafts.cancel(draft.id)
    assert not await drafts.cancel(draft.id)
    for call in (drafts.go(draft.id), drafts.get(draft.id)):
        with pytest.raises(DraftEnded, match="was cancelled"):
            await call
    assert await drafts.waiting(5, 1) is None


async def test_a_draft_waits_for_a_day_and_is_then_swept(drafts: DraftStore, clock: Clock, db: Database) -> None:
    draft = await keep(drafts)
    clock.advance(DAY_S - 1)
    assert await drafts.get(draft.id) == draft == await drafts.waiting(5, 1)
    assert await drafts.sweep() == 0
    clock.advance(2)
    with pytest.raises(DraftEnded, match="older than a day"):
        await drafts.go(draft.id)
    assert await drafts.waiting(5, 1) is None
    assert await drafts.sweep() == 1
    assert await db.all("SELECT * FROM draft") == []


async def test_a_refused_one_waits_again_unless_its_job_is_there(drafts: DraftStore, store: JobStore) -> None:
    draft = await keep(drafts)
    await drafts.go(draft.id)
    assert await drafts.waiting(5, 1) is None
    await drafts.stay(draft.id)
    assert (await drafts.waiting(5, 1)) == draft
    await drafts.go(draft.id)
    spec = make_spec({"name": "fox", "dataset": "/nowhere"})
    await store.submit(NewJob(interaction_id=1, guild_id=GUILD, channel_id=1, owner_id=5, dataset_id=1, spec=spec))
    await drafts.stay(draft.id)
    assert not await drafts.cancel(draft.id)


async def test_the_newest_of_ones_own_is_the_one_that_waits(drafts: DraftStore) -> None:
    await keep(drafts, 1)
    await keep(drafts, 2, owner=6)
    newest = await keep(drafts, 3)
    assert await drafts.waiting(5, 1) == newest
