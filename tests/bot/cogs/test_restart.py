"""The bot may be restarted at any time: trainings continue, and each message is posted exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bot.outbox import Notification, NotificationKind
from bot.ui.admin_news import BackupFailed
from tests.bot.cogs.conftest import World, answer, first_bot, next_bot, world
from tests.bot.cogs.dataset_helpers import press, upload_dataset

EPOCHS = 6


def assert_epochs_in_order(lab: World, epochs: int) -> None:
    """Assert that the thread has one post for each epoch, in order."""
    posts = lab.posts("**Epoch ")
    assert len(posts) == epochs
    assert all(f"**Epoch {number} of {epochs}" in text for number, text in enumerate(posts, 1))


async def test_a_restart_misses_and_repeats_no_post(data_dir: Path) -> None:
    async with first_bot(data_dir, FAKE_STEP_S="0.15") as lab:
        await lab.finetune(epochs=EPOCHS, early_stop=False)
        await lab.until_shown("**Epoch 2 of")
    # The services have ended; the training has not.
    shown = len(lab.posts("**Epoch "))
    await asyncio.sleep(1.5)
    assert len(lab.posts("**Epoch ")) == shown
    async with next_bot(lab, data_dir, FAKE_STEP_S="0.15"):
        await lab.until_shown("is done")
        await lab.until_sent()
        assert_epochs_in_order(lab, EPOCHS)
        assert len(lab.posts("is done")) == 1
        assert len(lab.posts("Before training")) == 1
        assert (await lab.jobs.get(1)).attempt == 1
        # A button that the first bot made.
        result = await lab.ana.click(lab.channel.history()[0], custom_id="job:1:samples")
        assert result.response is not None


async def test_a_killed_trainer_is_reported_and_its_job_continues(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die:2") as lab:
        await lab.finetune(epochs=3)
        await lab.until_shown("🔌")
        await lab.until_shown("is done")
        await lab.until_sent()
        assert_epochs_in_order(lab, 3)
        assert (await lab.jobs.get(1)).attempt == 2


async def test_a_job_whose_trainer_always_dies_fails_and_notifies_its_owner(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die_always:1") as lab:
        await lab.finetune(epochs=3)
        failed = await lab.until_shown("❌ #1 fox failed")
        assert f"<@{lab.ana.id}>" in failed
        assert (await lab.jobs.get(1)).attempt == 3
        assert lab.mentions()[-1] == [lab.ana.id]


async def test_a_failure_is_posted_with_its_hint(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="oom:2") as lab:
        await lab.finetune(epochs=3)
        failed = await lab.until_shown("❌ #1 fox failed")
        assert "It ran out of memory at step 9." in failed
        assert "**What you can do**: Take rank 8." in failed


async def test_posts_wait_while_discord_is_down_and_keep_their_order(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        lab.env.inject_error("POST", "/channels/*/messages", status=503, times=2)
        await lab.finetune(epochs=2)
        await lab.until_shown("is done")
        await lab.until_sent()
        assert_epochs_in_order(lab, 2)


async def test_news_is_posted_once_and_notifies_no_one(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        detail = BackupFailed(error=f"No space, <@{lab.ana.id}>.").model_dump_json()
        notification = Notification(kind=NotificationKind.NEWS, dedupe_key="news:1", detail=detail)
        for _attempt in range(2):
            async with lab.app.db.transaction() as connection:
                await lab.app.outbox.put(connection, notification, channel_id=lab.channel.id)
        await lab.until_shown("No space")
        await lab.until_sent()
        assert len(lab.posts("No space")) == 1
        assert lab.mentions()[-1] == []


async def test_a_form_that_an_earlier_bot_opened_gives_back_what_was_typed(data_dir: Path) -> None:
    async with first_bot(data_dir) as lab:
        await upload_dataset(lab)
        rules = await lab.ana.slash(lab.channel, "dataset captions", dataset="fox")
        quiet = await press(lab.ana, (await lab.ana.slash(lab.channel, "notify")).response.message, "Quiet hours")
    async with next_bot(lab, data_dir):
        told = answer(await lab.ana.submit_modal(rules, {"prefix": "a drawing\nof @everyone ", "strip": "blurry"}))
        assert "restarted while this form was open, or" in told
        assert "a drawing" in told
        assert "blurry" in told
        assert "22:15" in answer(await lab.ana.submit_modal(quiet, {"begins": "22:15", "ends": "", "zone": ""}))
        assert (await lab.app.services.datasets.get(1)).edits.rules.prefix == ""
        # The next one works.
        again = await lab.ana.slash(lab.channel, "dataset captions", dataset="fox")
        assert "restarted" not in answer(await lab.ana.submit_modal(again, {"prefix": "a drawing of "}))
