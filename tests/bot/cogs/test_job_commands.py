"""`/job` and the buttons of cards: pause, resume, retry, pin, share; by the owner, another member and a manager."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bot.queue import Job, PauseKind, State
from tests.bot.cogs.conftest import World, answer, world
from tests.bot.cogs.dataset_helpers import buttons, press
from tests.bot.cogs.test_finetune_command import limit_everyone
from tests.bot.cogs.test_job_buttons import SLOW, start, state, stop_menu
from trainer.exchange.job_dir import read_spec


async def job(lab: World, job_id: int = 1) -> Job:
    return await lab.jobs.get(job_id)


def card(lab: World) -> Any:
    return lab.channel.history()[0]


async def test_a_paused_training_frees_its_gpu_and_is_resumed_from_its_card(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        shown = await start(lab)
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job pause", id="1"))
        assert "pauses after this step" in answer(await press(lab.ana, await stop_menu(lab, shown), "Pause"))
        assert f"Paused by <@{lab.ana.id}>" in await lab.until_shown("⏸️ **#1")
        assert await state(lab) is State.PAUSED
        assert [slot.job_id for slot in await lab.jobs.slots.all()] == [None]
        await lab.until(lambda: "**Paused**" in lab.texts()[0])
        assert f"Paused by <@{lab.ana.id}> <t:" in lab.texts()[0]
        assert list(buttons(card(lab))) == ["Resume", "🖼️", "Details", "Cancel"]
        assert "#1 is already paused" in answer(await lab.ana.slash(lab.channel, "job pause", id="1"))
        assert "Only" in answer(await press(lab.ben, card(lab), "Resume"))
        assert "#1 continues where it stopped" in answer(await press(lab.ana, card(lab), "Resume"))
        await lab.until(lambda: "Attempt 2" in lab.texts()[0])
        assert "is not paused" in answer(await lab.ana.slash(lab.channel, "job resume", id="1"))
        assert lab.env.errors


async def test_a_command_stops_a_training_early_as_the_button_does(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        shown = await start(lab)
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job stop", id="1"))
        assert await lab.ben.autocomplete(lab.channel, "job stop", "id", "") == []
        assert [each["value"] for each in await lab.ana.autocomplete(lab.channel, "job stop", "id", "")] == ["1"]
        asked = (await lab.ana.slash(lab.channel, "job stop", id="1")).response.message
        by_button = await stop_menu(lab, shown)
        assert list(buttons(asked)) == list(buttons(by_button)) == ["Stop early", "Pause", "Cancel"]
        await press(lab.ana, asked, "Stop early")
        await lab.until_shown("is done")
        assert await state(lab) is State.STOPPED
        assert "has already ended" in answer(await lab.ana.slash(lab.channel, "job stop", id="1"))
        assert lab.env.errors


async def test_a_manager_may_pause_resume_and_cancel_any_job(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = lab.add_manager()
        assert "pauses" in answer(await manager.slash(lab.channel, "job pause", id="1"))
        await lab.until_shown(f"Paused by <@{manager.id}>")
        assert "continues" in answer(await manager.slash(lab.channel, "job resume", id="1"))
        await lab.until(lambda: "Stop…" in buttons(card(lab)))
        await manager.click(await stop_menu(lab, card(lab), manager), custom_id="job:1:cancel_now")
        await lab.until_shown(f"was cancelled by <@{manager.id}>")


async def test_a_queued_job_is_paused_and_cancelled(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        await lab.finetune(lab.ben, from_dataset="fox", epochs=2)
        assert "#2 is paused." in answer(await lab.ben.slash(lab.channel, "job pause", id="2"))
        assert await state(lab, 2) is State.PAUSED
        assert "⏸️ **#2 fox**" in answer(await lab.ana.slash(lab.channel, "queue"))
        assert "#2 is cancelled" in answer(await lab.ben.slash(lab.channel, "job cancel", id="2"))


async def test_only_the_owner_or_a_manager_retries_a_failed_job(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="missing_model:2") as lab:
        await lab.finetune(epochs=3)
        await lab.until_shown("❌ #1 fox failed")
        post = lab.channel.history()[-1]
        assert f"Only <@{lab.ana.id}>" in answer(await press(lab.ben, post, "Retry"))
        assert "#1 continues where it stopped" in answer(await press(lab.ana, post, "Retry"))
        await lab.until(lambda: len(lab.posts("❌ #1 fox failed")) == 2)
        assert "continues where it stopped" in answer(await lab.add_manager().slash(lab.channel, "job retry", id="1"))
        assert (await job(lab)).round == 3
        await lab.until(lambda: len(lab.posts("❌ #1 fox failed")) == 3)


async def test_a_retry_needs_gpu_hours_like_a_new_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
        await lab.finetune(seed=2)
        await lab.ana.slash(lab.channel, "job cancel", id="2")
        await limit_everyone(lab, gpu_hours_per_week=1e-9)
        reply = answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert "1e-09 GPU hours of this week are used or reserved" in reply
        # A job that cannot be retried is refused for that reason.
        assert "and #1 is not: done." in answer(await lab.ana.slash(lab.channel, "job retry", id="1"))
        # Some hours are left, but fewer than the estimate.
        needed_h = await lab.app.services.limits.needed_h(2)
        budget = await lab.app.services.limits.budget(lab.channel.guild.id, lab.ana.id, 1)
        assert needed_h
        await limit_everyone(lab, gpu_hours_per_week=budget.used_h + needed_h / 2)
        assert "This needs about" in answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert await state(lab, 2) is State.CANCELLED
        await limit_everyone(lab, gpu_hours_per_week=budget.used_h + needed_h * 2)
        assert "#2 starts again from the beginning" in answer(await lab.ana.slash(lab.channel, "job retry", id="2"))
        assert lab.env.errors


async def test_a_finished_training_goes_on_with_more_epochs(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(epochs=3)
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job extend", id="1", epochs=2))
        choices = await lab.ana.autocomplete(lab.channel, "job extend", "id", "")
        assert [choice["value"] for choice in choices] == ["1"]

        reply = answer(await lab.ana.slash(lab.channel, "job extend", id="1", epochs=2))

        assert "#1 continues from epoch 3 to epoch 5" in reply
        await lab.until(lambda: len(lab.posts("is done")) == 2)
        extended = await job(lab)
        assert (extended.state, extended.round, extended.attempt) == (State.SUCCEEDED, 2, 2)
        assert [ended.epoch for ended in extended.progress.epochs] == [1, 2, 3, 4, 5]
        assert read_spec(lab.jobs.job_dir(extended)) == extended.spec
        assert [stage.epochs for stage in extended.spec.stages] == [3, 2]
        # Once more: the stages add up.
        await lab.ana.slash(lab.channel, "job extend", id="1", epochs=1)
        await lab.until(lambda: len(lab.posts("is done")) == 3)
        assert [stage.epochs for stage in (await job(lab)).spec.stages] == [3, 2, 1]
        assert lab.env.errors


async def test_what_cannot_go_on_is_not_extended(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        assert "Only a finished training" in answer(await lab.ana.slash(lab.channel, "job extend", id="1", epochs=2))
        assert await state(lab) is State.RUNNING


async def test_an_extension_keeps_within_the_limits_of_a_member(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train(epochs=3)
        finished = await job(lab)
        await limit_everyone(lab, max_epochs=4)
        reply = answer(await lab.ana.slash(lab.channel, "job extend", id="1", epochs=2))
        assert "5 epochs are more than the 4" in reply
        await limit_everyone(lab, gpu_hours_per_week=1e-9)
        reply = answer(await lab.ana.slash(lab.channel, "job extend", id="1", epochs=1))
        assert "1e-09 GPU hours of this week are used or reserved" in reply
        await limit_everyone(lab, gpu_hours_per_week=100)
        shutil.rmtree(lab.jobs.job_dir(finished) / "checkpoints")
        reply = answer(await lab.ana.slash(lab.channel, "job extend", id="1", epochs=1))
        assert "checkpoints of #1 were deleted" in reply
        assert await job(lab) == finished
        assert lab.env.errors


async def test_only_the_owner_pins_a_job_and_a_second_pin_changes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job pin", id="1"))
        assert not (await job(lab)).is_pinned
        assert "#1 is pinned: " in answer(await lab.ana.slash(lab.channel, "job pin", id="1"))
        assert "#1 is already pinned: " in answer(await lab.ana.slash(lab.channel, "job pin", id="1"))
        assert (await job(lab)).is_pinned
        pins = [e for e in await lab.jobs.audit(guild_id=lab.channel.guild.id) if e.verb == "pin"]
        assert len(pins) == 1
        assert "no longer pinned" in answer(await lab.add_manager().slash(lab.channel, "job unpin", id="1"))
        assert "not pinned" in answer(await lab.ana.slash(lab.channel, "job unpin", id="1"))
        assert lab.env.errors


async def test_a_command_offers_the_jobs_that_it_applies_to(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        for verb, offered in {"pause": ["1"], "resume": [], "retry": [], "pin": ["1"], "unpin": []}.items():
            choices = await lab.ana.autocomplete(lab.channel, f"job {verb}", "id", "")
            assert [choice["value"] for choice in choices] == offered, verb
            assert await lab.ben.autocomplete(lab.channel, f"job {verb}", "id", "") == []


async def test_the_history_lists_attempts_and_changes(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die:2") as lab:
        await lab.finetune(epochs=3)
        await lab.until_shown("is done")
        shown = await lab.ben.slash(lab.channel, "job history", id="1")
        assert shown.response.ephemeral
        reply = answer(shown)
        assert "back in line: " in reply
        assert " · done" in reply
        assert f"<@{lab.ana.id}> queued this training" in reply


async def test_whoever_sees_a_finished_job_gets_its_files_at_any_time(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        await lab.until(lambda: "All files" in buttons(card(lab)))
        for shown in (
            await lab.ana.slash(lab.channel, "job files", id="1"),
            await lab.ben.slash(lab.channel, "job files", id="1"),
            await press(lab.ben, card(lab), "All files"),
        ):
            names = {file.filename for file in shown.response.attachments}
            assert names == {"fox-diffusers.safetensors", "fox-kohya.safetensors"}
            assert shown.response.ephemeral
        async with lab.app.db.transaction() as connection:
            await connection.execute("UPDATE job SET files_deleted_at = 1 WHERE id = 1")
        assert "were deleted to free disk space" in answer(await lab.ana.slash(lab.channel, "job files", id="1"))
        assert lab.env.errors


async def test_a_job_without_files_says_so(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        assert "#1 has no files yet (training)" in answer(await lab.ana.slash(lab.channel, "job files", id="1"))
