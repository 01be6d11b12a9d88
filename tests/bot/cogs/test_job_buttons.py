"""Buttons of jobs, and `/job`: who may press them, what they do, and that a second press does nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import discord
import pytest

from bot.queue import State
from tests.bot.cogs.conftest import World, answer, world
from tests.bot.cogs.dataset_helpers import press, press_forged
from trainer.exchange.job_dir import LOG_FILE

#: So slow that a job is still in its first epochs when the test presses.
SLOW = "0.3"


async def start(lab: World, **options: Any) -> discord.Message:
    """Start a training of Ana's; return its card after the first epoch."""
    await lab.finetune(epochs=50, **options)
    await lab.until_shown("**Epoch 1 of 50")
    await lab.until(lambda: "better than the base model" in lab.texts()[0])
    card: discord.Message = lab.channel.history()[0]
    return card


async def stop_menu(lab: World, card: discord.Message, member: Any = None) -> discord.Message:
    """Press [Stop…] on a card; return the question."""
    pressed = await (member or lab.ana).click(card, custom_id="job:1:stop")
    question: discord.Message = pressed.followups[-1] if pressed.followups else pressed.response.message
    return question


async def state(lab: World, job_id: int = 1) -> State:
    return (await lab.jobs.get(job_id)).state


async def test_another_member_may_look_but_not_stop(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        for verb in ("stop", "cancel", "cancel_now", "keep_best", "pause", "continue", "retry_rate", "retry_px"):
            reply = await press_forged(lab, f"job:1:{verb}", lab.ben)
            assert f"Only <@{lab.ana.id}> or a manager of the server can" in reply
        assert await state(lab) is State.RUNNING
        for verb in ("details", "log", "history", "compare"):
            assert "#1" in await press_forged(lab, f"job:1:{verb}", lab.ben), verb
        samples = await lab.ben.click(card, custom_id="job:1:samples")
        # The training continues in the meantime.
        [epoch] = re.findall(r"epoch (\d+)", answer(samples))
        assert samples.response.ephemeral
        assert [file.filename for file in samples.response.attachments] == [f"samples-e{epoch}.png"]


async def test_cancel_pressed_twice_stops_once(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        card = await start(lab)
        first = answer(await lab.ana.click(await stop_menu(lab, card), custom_id="job:1:cancel_now"))
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
        reply = answer(await lab.ana.click(await stop_menu(lab, card), custom_id="job:1:keep_best"))
        assert "#1 stops here. Its best epoch is tested and saved." in reply
        assert f"Stopped early by <@{lab.ana.id}>." in await lab.until_shown("is done")
        assert await state(lab) is State.STOPPED


async def test_the_queue_is_refreshed_in_place(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        board = (await lab.ben.slash(lab.channel, "queue")).response.message
        await lab.finetune(lab.ben, from_dataset="fox", epochs=2, name="second")
        assert "#2 second" in answer(await press(lab.ben, board, "Refresh"))


async def test_a_training_that_took_long_is_cancelled_after_a_question(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.cogs.job_actions._ASK_AFTER_S", 0.0)
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        asked = await lab.ana.slash(lab.channel, "job cancel", id="1")
        assert "has trained for" in answer(asked)
        assert await state(lab) is State.RUNNING
        assert "stops after this step" in answer(await press(lab.ana, asked.response.message, "Cancel"))
        assert await state(lab) in {State.STOPPING, State.CANCELLED}


async def test_a_diverged_training_is_retried_at_a_third_of_the_rate(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="diverged:2") as lab:
        await lab.finetune(epochs=3, lr=3e-4)
        await lab.until_shown("❌ #1 fox failed")
        failed = lab.channel.history()[-1]
        reply = answer(await press(lab.ana, failed, "Retry with a third of the rate"))
        assert "Queued #2 “fox”" in reply
        first, second = await lab.jobs.get(1), await lab.jobs.get(2)
        assert second.spec.training.learning_rate == pytest.approx(1e-4)
        assert second.spec.training.epochs == first.spec.training.epochs == 3
        again = answer(await press(lab.ana, failed, "Retry with a third of the rate"))
        assert "#2" in again
        assert "Nothing was queued" in again


async def test_a_note_is_on_the_card_and_the_log_names_no_folder(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job note", id="1", text="mine"))
        assert "now says: “for the poster”" in answer(
            await lab.ana.slash(lab.channel, "job note", id="1", text="for the poster")
        )
        await lab.until(lambda: "📝 for the poster" in lab.texts()[0])
        folder = lab.jobs.job_dir(await lab.jobs.get(1))
        (folder / LOG_FILE).write_text(f"step 1\rstep 2\n\x1b[31m{folder}/spec.json\x1b[0m\n")
        log = answer(await lab.ben.slash(lab.channel, "job logs", id="1"))
        assert "step 2\n…/spec.json" in log
        assert str(data_dir) not in log
        assert "is removed" in answer(await lab.ana.slash(lab.channel, "job note", id="1"))
        assert lab.env.errors


async def test_a_queued_job_is_cancelled_from_its_receipt(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        receipt = await lab.finetune(lab.ben, from_dataset="fox", epochs=2)
        assert "next in line" in answer(receipt)
        reply = answer(await lab.ben.click(receipt.response.message, custom_id="job:2:cancel"))
        assert "#2 is cancelled and no longer waits." in reply
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
        assert board.index("#1 fox") < board.index("next in line")
        choices = await lab.ben.autocomplete(lab.channel, "job status", "id", "fo")
        assert choices[0]["name"].startswith("#1 · fox · training")
        assert choices[0]["value"] == "1"
        assert "There is no job “nothing” here" in answer(await lab.ben.slash(lab.channel, "job status", id="nothing"))
        assert "There is no job #99 here" in answer(await lab.ben.slash(lab.channel, "job status", id="99"))
        assert lab.env.errors


async def test_a_button_of_another_version_is_answered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        assert "belongs to another version of me" in await press_forged(lab, "job:1:dance")
