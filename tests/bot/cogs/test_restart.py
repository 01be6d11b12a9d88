"""The bot may be stopped and started at any time: trainings go on, and nothing is told twice or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import simcord

from bot.app.compose import compose
from bot.cogs.downloads import read_whole
from bot.outbox import Notice, NoticeKind
from tests.bot.cogs.conftest import FAKE_TRAINER, World, archive, config_for, kill_trainers, world

EPOCHS = 6


async def test_a_restart_in_the_middle_misses_and_repeats_no_post(data_dir: Path) -> None:
    config = config_for(data_dir, FAKE_STEP_S="0.15")
    env = None
    try:
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            env = simcord.Env(app.new_client(), settle_timeout=30)
            await env.start()
            guild = env.create_guild("Lab")
            channel = guild.create_text_channel("lab")
            ana = guild.add_member(env.create_user("ana"))
            lab = World(app=app, env=env, channel=channel, ana=ana, ben=ana)
            await ana.slash(channel, "finetune", confirm=False, dataset=archive(), epochs=EPOCHS, early_stop=False)
            await lab.until_shown("**epoch 2/")
        # The services are gone; the training is not.
        shown = len(lab.posts("**epoch "))
        await asyncio.sleep(1.5)
        assert len(lab.posts("**epoch ")) == shown
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            await env.restart_bot(app.new_client())
            await lab.until_shown("is done")
            assert [f"**epoch {n}/{EPOCHS}" in text for n, text in enumerate(lab.posts("**epoch "), 1)] == [
                True
            ] * EPOCHS
            assert len(lab.posts("is done")) == 1
            assert len(lab.posts("before training")) == 1
            job = await app.services.jobs.get(1)
            assert job.attempt == 1
            # A button that the first bot made, pressed at the second.
            result = await ana.click(channel.history()[0], custom_id="job:1:samples")
            assert result.response is not None
            await env.shutdown()
    finally:
        kill_trainers(data_dir)


async def test_a_killed_trainer_is_told_in_words_and_goes_on(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die:2") as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3)
        lost = await lab.until_shown("🔌")
        assert "died without a word" in lost
        await lab.until_shown("is done")
        assert [f"**epoch {n}/3" in text for n, text in enumerate(lab.posts("**epoch "), 1)] == [True] * 3
        assert (await lab.app.services.jobs.get(1)).attempt == 2


async def test_a_trainer_that_always_dies_is_given_up_and_its_owner_called(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="die_always:1") as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3)
        failed = await lab.until_shown("❌ #1 fox failed")
        assert f"<@{lab.ana.id}>" in failed
        assert "after 3 starts" in failed
        assert lab.called()[-1] == [lab.ana.id]


async def test_a_failure_says_what_to_do(data_dir: Path) -> None:
    async with world(data_dir, FAKE_TROUBLE="oom:2") as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3)
        failed = await lab.until_shown("❌ #1 fox failed")
        assert "It ran out of memory at step 9." in failed
        assert "→ Take rank 8." in failed


async def test_posts_wait_for_a_discord_that_is_down_and_then_come_in_order(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        lab.env.inject_error("POST", "/channels/*/messages", status=503, times=2)
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=2)
        await lab.until_shown("is done", 40)
        assert [f"**epoch {n}/2" in text for n, text in enumerate(lab.posts("**epoch "), 1)] == [True] * 2


async def test_news_of_no_job_are_told_once_and_call_nobody(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        notice = Notice(kind=NoticeKind.NEWS, job_id=0, detail=f"Back after 42 s, <@{lab.ana.id}>.")
        for _ in range(2):
            async with lab.app.db.transaction() as connection:
                await lab.app.outbox.put(connection, notice, channel_id=lab.channel.id, dedupe_key="news:1")
        assert "-# Darkroom · " in await lab.until_shown("Back after 42 s")
        assert len(lab.posts("Back after 42 s")) == 1
        assert lab.called()[-1] == []
