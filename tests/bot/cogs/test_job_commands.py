"""`/job` and the buttons of cards: pause, resume, retry, pin, share; each by its owner, a stranger and a manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import pytest

from bot.queue import HaltKind, Job, State
from tests.bot.cogs.conftest import World, answer, archive, world
from tests.bot.cogs.room import buttons, press
from tests.bot.cogs.test_buttons import SLOW, start, state
from tests.bot.cogs.test_finetune import limit_everyone


def boss(lab: World) -> Any:
    """Somebody who may manage the server."""
    guild = lab.channel.guild
    lead = guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
    return guild.add_member(lab.env.create_user("boss"), roles=[lead])


async def job(lab: World, job_id: int = 1) -> Job:
    return await lab.app.services.jobs.get(job_id)


def card(lab: World) -> Any:
    return lab.channel.history()[0]


async def done(lab: World, **options: Any) -> None:
    """A training of Ana's that has succeeded."""
    await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1, **options)
    await lab.until_shown("is done")


async def test_a_paused_training_frees_its_gpu_and_goes_on_by_its_card(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        shown = await start(lab)
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job pause", id="1"))
        assert "pauses after this step" in answer(await press(lab.ana, shown, "Pause"))
        assert f"Paused by <@{lab.ana.id}>" in await lab.until_shown("⏸️ **#1")
        assert await state(lab) is State.PAUSED
        assert [slot.job_id for slot in await lab.app.services.jobs.slots.all()] == [None]
        await lab.until(lambda: "**Paused**" in lab.texts()[0])
        assert f"Paused by <@{lab.ana.id}> <t:" in lab.texts()[0]
        assert list(buttons(card(lab))) == ["Resume", "Cancel", "Samples", "Refresh"]
        assert "#1 is paused already" in answer(await lab.ana.slash(lab.channel, "job pause", id="1"))
        assert "Only" in answer(await press(lab.ben, card(lab), "Resume"))
        assert "#1 goes on from its checkpoint" in answer(await press(lab.ana, card(lab), "Resume"))
        await lab.until(lambda: "attempt 2" in lab.texts()[0])
        assert "is not paused" in answer(await lab.ana.slash(lab.channel, "job resume", id="1"))
        assert lab.env.errors


async def test_who_manages_the_server_may_pause_and_resume_anybodys(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = boss(lab)
        assert "pauses" in answer(await manager.slash(lab.channel, "job pause", id="1"))
        await lab.until_shown(f"· Paused by <@{manager.id}>")
        assert "goes on" in answer(await manager.slash(lab.channel, "job resume", id="1"))


async def test_a_waiting_job_is_held_and_cancelled(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        await lab.ben.slash(lab.channel, "finetune", confirm=False, from_dataset="fox", epochs=2)
        assert "#2 is paused." in answer(await lab.ben.slash(lab.channel, "job pause", id="2"))
        assert await state(lab, 2) is State.PAUSED
        assert "⏸️ **#2 fox**" in answer(await lab.ana.slash(lab.channel, "queue"))
        assert "#2 is cancelled" in answer(await lab.ben.slash(lab.channel, "job cancel", id="2"))


async def test_a_failed_training_is_tried_again_by_its_owner_or_a_manager_only(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="oom:2") as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3)
        await lab.until_shown("❌ #1 fox failed")
        post = lab.channel.history()[-1]
        assert f"Only <@{lab.ana.id}>" in answer(await press(lab.ben, post, "Retry"))
        assert "#1 is tried again from its checkpoint" in answer(await press(lab.ana, post, "Retry"))
        await lab.until(lambda: len(lab.posts("❌ #1 fox failed")) == 2)
        assert "is tried again" in answer(await boss(lab).slash(lab.channel, "job retry", id="1"))
        assert (await job(lab)).round == 3
        await lab.until(lambda: len(lab.posts("❌ #1 fox failed")) == 3)


async def test_a_success_is_not_tried_again(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab)
        told = answer(await lab.ana.slash(lab.channel, "job retry", id="1"))
        assert "#1 is not failed or cancelled: done." in told


async def test_a_retry_is_held_to_the_weeks_hours_as_a_new_job_is(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab)
        await lab.app.services.jobs.switch.halt(HaltKind.PAUSE, by=1)
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1, seed=2)
        await lab.ana.slash(lab.channel, "job cancel", id="2")
        await limit_everyone(lab, gpu_hours_per_week=1e-9)
        told = answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert "The 1e-09 GPU-h that you have a week are used or promised to your other jobs." in told
        # For what is no Retry there is a better answer.
        assert "#1 is not failed or cancelled: done." in answer(await lab.ana.slash(lab.channel, "job retry", id="1"))
        # What is left is more than nothing, and less than it was believed to need.
        needed_h = await lab.app.services.limits.needed_h(2)
        budget = await lab.app.services.limits.budget(lab.channel.guild.id, lab.ana.id, 1)
        assert needed_h
        await limit_everyone(lab, gpu_hours_per_week=budget.used_h + needed_h / 2)
        assert "This needs ≈" in answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert await state(lab, 2) is State.CANCELLED
        await limit_everyone(lab, gpu_hours_per_week=budget.used_h + needed_h * 2)
        assert "#2 is tried again" in answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert lab.env.errors


async def test_pins_are_the_owners_and_a_second_one_changes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab)
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job pin", id="1"))
        assert not (await job(lab)).is_pinned
        assert "#1 is pinned: " in answer(await lab.ana.slash(lab.channel, "job pin", id="1"))
        assert "#1 is pinned already: " in answer(await lab.ana.slash(lab.channel, "job pin", id="1"))
        assert (await job(lab)).is_pinned
        pins = [e for e in await lab.app.services.jobs.audit(guild_id=lab.channel.guild.id) if e.verb == "pin"]
        assert len(pins) == 1
        assert "no longer pinned" in answer(await boss(lab).slash(lab.channel, "job unpin", id="1"))
        assert "not pinned" in answer(await lab.ana.slash(lab.channel, "job unpin", id="1"))
        assert lab.env.errors


async def test_shared_samples_are_seen_by_all_and_taken_back_by_the_owner(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab, prompts="a red fox")
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job share", id="1"))
        shared = await lab.ana.slash(lab.channel, "job share", id="1")
        assert not shared.response.ephemeral
        assert f"**fox** by <@{lab.ana.id}>" in answer(shared)
        assert "a red fox · seed 0" in answer(shared)
        assert (await job(lab)).is_shared
        again = await lab.ana.slash(lab.channel, "job share", id="1")
        assert again.response.ephemeral
        assert "#1 is shared already" in answer(again)
        message = shared.response.message
        assert "Only" in answer(await press(lab.ben, message, "Unshare"))
        await press(lab.ana, message, "Unshare")
        assert not (await job(lab)).is_shared
        assert message.id not in [each.id for each in lab.channel.history()]
        assert "#1 is not shared." in answer(await lab.ana.slash(lab.channel, "job unshare", id="1"))
        assert lab.env.errors


async def test_a_share_that_cannot_be_posted_leaves_no_mark(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab)
        lab.env.inject_error("POST", "/interactions/*/callback", status=500, times=1)
        await lab.ana.slash(lab.channel, "job share", id="1")
        assert not (await job(lab)).is_shared
        assert lab.env.errors


@pytest.mark.parametrize(
    ("verb", "offered"), [("pause", ["#1 · "]), ("resume", []), ("retry", []), ("pin", ["#1 · "]), ("unpin", [])]
)
async def test_a_command_offers_what_makes_sense(data_dir: Path, verb: str, offered: list[str]) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        choices = await lab.ana.autocomplete(lab.channel, f"job {verb}", "id", "")
        assert [choice["name"][:5] for choice in choices] == offered
        assert await lab.ben.autocomplete(lab.channel, f"job {verb}", "id", "") == []


async def test_history_tells_each_start_and_change(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die:2") as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3)
        await lab.until_shown("is done")
        shown = await lab.ben.slash(lab.channel, "job history", id="1")
        assert shown.response.ephemeral
        told = answer(shown)
        assert "then queued: The training process of" in told
        assert "then succeeded" in told
        assert f"<@{lab.ana.id}> · submit" in told


async def test_a_duplicates_open_button_shows_the_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await done(lab)
        shown = await lab.ana.slash(lab.channel, "finetune", confirm=False, from_dataset="fox", epochs=1)
        assert "Same data and settings as **#1**" in answer(shown)
        assert "✅ #1 fox" in answer(await press(lab.ana, shown.response.message, "Open #1"))
