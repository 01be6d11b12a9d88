"""Buttons of jobs, and `/job`: who may press them, what they do, and that a second press does nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import discord

from bot.queue import State
from tests.bot.cogs.conftest import World, answer, text_of, world
from tests.bot.cogs.dataset_helpers import press_forged

#: So slow that a job is still in its first epochs when the test presses.
SLOW = "0.3"


async def start(lab: World, **options: Any) -> discord.Message:
    """Start a training of Ana's; return its card after the first epoch."""
    await lab.finetune(epochs=50, **options)
    await lab.until_shown("**epoch 1/50")
    await lab.until(lambda: "better than the base model" in lab.texts()[0])
    card: discord.Message = lab.channel.history()[0]
    return card


async def state(lab: World, job_id: int = 1) -> State:
    return (await lab.jobs.get(job_id)).state


async def test_another_member_may_look_but_not_stop(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        for verb in ("cancel", "keep_best", "pause"):
            reply = answer(await lab.ben.click(card, custom_id=f"job:1:{verb}"))
            assert f"Only <@{lab.ana.id}> or a manager of the server can" in reply
        assert await state(lab) is State.RUNNING
        samples = await lab.ben.click(card, custom_id="job:1:samples")
        # The training continues in the meantime.
        [epoch] = re.findall(r"samples after epoch (\d+)", answer(samples))
        assert samples.response.ephemeral
        assert [file.filename for file in samples.response.attachments] == [f"samples-e{epoch}.png"]


async def test_cancel_pressed_twice_stops_once(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        first = answer(await lab.ana.click(card, custom_id="job:1:cancel"))
        second = answer(await lab.ana.slash(lab.channel, "job cancel", id="1"))
        assert "stops after this step" in first
        assert "already stopping" in second or "already ended" in second
        await lab.until_shown("was cancelled by")
        await lab.until(lambda: "**Cancelled**" in lab.texts()[0])
        assert "#1 has already ended: cancelled." in answer(await lab.ana.slash(lab.channel, "job cancel", id="1"))
        assert len(lab.posts("was cancelled by")) == 1


async def test_keep_best_ends_with_a_lora(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        reply = answer(await lab.ana.click(card, custom_id="job:1:keep_best"))
        assert "#1 stops here; its best epoch is tested and exported." in reply
        assert f"It was ended early by <@{lab.ana.id}>." in await lab.until_shown("is done")
        assert await state(lab) is State.STOPPED


async def test_refresh_redraws_the_card_in_place(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        count = len(lab.channel.history())
        await lab.ben.click(card, custom_id="job:1:refresh")
        shown = lab.channel.history()[0]
        assert shown.id == card.id
        assert "Training" in text_of(shown)
        assert len(lab.channel.history()) <= count + 1


async def test_a_queued_job_is_cancelled_from_its_receipt(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        receipt = await lab.finetune(lab.ben, from_dataset="fox", epochs=2)
        assert "1st in line" in answer(receipt)
        reply = answer(await lab.ben.click(receipt.response.message, custom_id="job:2:cancel"))
        assert "#2 is cancelled; it no longer waits." in reply
        assert await state(lab, 2) is State.CANCELLED


async def test_status_list_and_queue_show_the_jobs(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        await lab.finetune(lab.ben, from_dataset="fox", epochs=2, name="second")
        assert "🟢 #1 fox" in answer(await lab.ben.slash(lab.channel, "job status", id="#1"))
        assert "#2 second" in answer(await lab.ben.slash(lab.channel, "job status", id="sec"))
        listed = answer(await lab.ben.slash(lab.channel, "job list"))
        assert listed.index("#2 second") < listed.index("#1 fox")
        board = answer(await lab.ben.slash(lab.channel, "queue"))
        assert board.index("#1 fox") < board.index("1st in line")
        choices = await lab.ben.autocomplete(lab.channel, "job status", "id", "fo")
        assert choices[0]["name"].startswith("#1 · fox · running ")
        assert choices[0]["value"] == "1"
        assert 'There is no job "nothing" here' in answer(await lab.ben.slash(lab.channel, "job status", id="nothing"))
        assert "There is no job #99 here" in answer(await lab.ben.slash(lab.channel, "job status", id="99"))
        assert lab.env.errors


async def test_a_button_of_another_version_is_answered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        assert "belongs to another version of me" in await press_forged(lab, "job:1:dance")
