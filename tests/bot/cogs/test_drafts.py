"""`/finetune` shows the dataset first: nothing is queued until "Go on", and then once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import simcord

from bot.app.compose import compose
from bot.cogs.downloads import read_whole
from bot.queue import Job, RoleLimit
from tests.bot.cogs.conftest import FAKE_TRAINER, World, answer, archive, config_for, kill_trainers, texts, world
from tests.bot.cogs.room import DEFECTIVE, StrayPress, buttons, press, shown_again


async def ask(lab: World, **options: Any) -> Any:
    """Ana's `/finetune`; the card that she gets."""
    result = await lab.ana.slash(lab.channel, "finetune", **{"dataset": DEFECTIVE, "epochs": 2, **options})
    return result.response.message


async def jobs(lab: World) -> list[Job]:
    return await lab.app.services.jobs.recent(lab.channel.guild.id)


def words(message: Any) -> str:
    return "\n".join(texts(message.components))


async def test_the_report_is_shown_and_nothing_is_queued_until_go_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, prompts="a fox", name="Red One")
        assert "🖼️ fox · 7 pictures" in words(card)
        assert "**red-one** · 2 epochs, early stop · base tiny · preset" in words(card)
        assert "Nothing is queued yet" in words(card)
        assert list(buttons(card)) == ["▶️", "Fix: review 2 findings", "Download report", "Go on", "Cancel"]
        assert card.flags.ephemeral
        assert await jobs(lab) == []
        assert lab.channel.history() == []

        receipt = (await press(lab.ana, card, "Go on")).response.message

        assert "✅ **Queued #1 “red-one”**" in words(receipt)
        (job,) = await jobs(lab)
        assert (job.spec.training.epochs, job.spec.samples.prompts) == (2, ("a fox",))
        assert job.owner_id == lab.ana.id
        await lab.until_shown("is done")


async def test_go_on_pressed_twice_is_one_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        draft = buttons(card)["Go on"]
        await lab.ana.click(card, custom_id=draft)
        client: Any = lab.env.bot
        for _ in range(2):
            client.dispatch("dataset_button", StrayPress(lab), 1, "go", draft.rpartition(":")[2])
        await lab.until_shown("is done")
        assert len(await jobs(lab)) == 1


async def test_cancel_queues_nothing_and_keeps_the_dataset(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        told = await press(lab.ana, card, "Cancel")
        assert "Cancelled; nothing was queued. The dataset is kept." in answer(told)
        assert await jobs(lab) == []
        assert await lab.app.services.datasets.named(lab.channel.guild.id, "fox")
        stale = StrayPress(lab)
        client: Any = lab.env.bot
        client.dispatch("dataset_button", stale, 1, "go", "1")
        await lab.until(lambda: bool(stale.told))
        assert "This request was cancelled; nothing was queued." in stale.told[0]


async def test_sheets_turn_with_the_question_on_the_card(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        turned = (await press(lab.ana, card, "▶️")).response.message
        assert [file.filename for file in turned.attachments] == ["fox-prepared-2.png"]
        assert "Go on" in buttons(turned)
        assert "Queued #1" in answer(await press(lab.ana, turned, "Go on"))


async def test_fix_leads_through_the_review_and_back_to_the_question(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        page = (await press(lab.ana, card, "Fix")).response.message
        page = (await press(lab.ana, page, "Drop")).response.message
        back = (await press(lab.ana, page, "Done")).response.message
        assert "🖼️ fox · 6 pictures" in words(back)
        assert "Go on" in buttons(back)
        await press(lab.ana, back, "Go on")
        (job,) = await jobs(lab)
        dataset = await lab.app.services.datasets.get(job.dataset_id)
        assert job.spec.dataset == str(dataset.folder)
        assert dataset.folder.name != "prepared"


async def test_go_on_takes_decisions_with_it_that_nobody_applied(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        await press(lab.ana, page, "Drop")
        assert "6 images, 2 skipped" in answer(await press(lab.ana, shown_again(lab, card), "Go on"))
        (job,) = await jobs(lab)
        assert not job.spec.dataset.endswith("prepared")


async def test_a_job_keeps_its_revision_while_the_dataset_moves_on(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await press(lab.ana, await ask(lab), "Go on")
        (job,) = await jobs(lab)
        page = (await lab.ana.slash(lab.channel, "dataset review", dataset="fox")).response.message
        page = (await press(lab.ana, page, "Drop")).response.message
        await press(lab.ana, page, "Done")
        moved = await lab.app.services.datasets.get(job.dataset_id)
        (same,) = await jobs(lab)
        assert same.spec.dataset == job.spec.dataset != str(moved.folder)
        assert (Path(job.spec.dataset) / "report.json").exists()


async def test_a_refused_go_leaves_the_question_open(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        for number in range(4):
            await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(6 + number), epochs=2)
        card = await ask(lab)
        told = await press(lab.ana, card, "Go on")
        assert "You have 3 of 3 jobs waiting" in "\n".join(texts(told.followups[-1].components))
        assert await lab.app.services.drafts.waiting(lab.ana.id, 5)
        await lab.ana.slash(lab.channel, "job cancel", id="2")
        assert "Queued #5" in answer(await press(lab.ana, shown_again(lab, card), "Go on"))


async def test_the_same_again_asks_beside_the_question_and_leaves_it_open(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await press(lab.ana, await ask(lab), "Go on")
        card = await ask(lab, name="twin")
        told = await press(lab.ana, card, "Go on")
        notice = told.followups[-1].message
        assert "Same data and settings as **#1**" in words(notice)
        assert "Go on" in buttons(shown_again(lab, card))
        stranger = StrayPress(lab, lab.ben)
        client: Any = lab.env.bot
        client.dispatch("dataset_button", stranger, 1, "again", "2")
        await lab.until(lambda: bool(stranger.told))
        assert "can go on with this request" in stranger.told[0]
        assert "Queued #2 “twin”" in answer(await press(lab.ana, notice, "Queue anyway"))
        # The card's own button says what became of it.
        assert "Queued #2 “twin”" in answer(await press(lab.ana, shown_again(lab, card), "Go on"))
        assert len(await jobs(lab)) == 2


async def test_the_question_says_how_long_it_would_take_once_that_is_known(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab, early_stop=False)
        assert "runs about" not in words(card)
        await press(lab.ana, card, "Go on")
        await lab.until_shown("is done")
        assert "runs about" in words(await ask(lab, seed=7, early_stop=False))


async def test_what_one_may_ask_for_is_looked_at_again_when_it_goes(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        guild_id = lab.channel.guild.id
        await lab.app.services.limits.set(guild_id, RoleLimit(role_id=guild_id, max_epochs=1), by=1)
        told = await press(lab.ana, card, "Go on")
        assert "2 epochs are more than the 1" in "\n".join(texts(told.followups[-1].components))
        assert await jobs(lab) == []


async def test_a_dataset_that_was_deleted_meanwhile_is_said(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        card = await ask(lab)
        await lab.app.services.datasets.delete(1)
        told = await press(lab.ana, card, "Go on")
        assert "There is no dataset" in "\n".join(texts(told.followups[-1].components))
        assert await jobs(lab) == []


async def test_a_known_dataset_is_shown_too_and_a_stranger_may_train_on_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await press(lab.ana, await ask(lab), "Cancel")
        card = (await lab.ben.slash(lab.channel, "finetune", from_dataset="fox", epochs=1)).response.message
        assert "Queued #2" in answer(await press(lab.ben, card, "Go on"))
        assert [job.owner_id for job in await jobs(lab)] == [lab.ben.id]


async def test_nobody_lets_somebody_elses_request_go(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await ask(lab)
        stranger = StrayPress(lab, lab.ben)
        client: Any = lab.env.bot
        for verb in ("go", "cancel"):
            client.dispatch("dataset_button", stranger, 1, verb, "1")
        await lab.until(lambda: len(stranger.told) == 2)
        assert all(f"Only <@{lab.ana.id}> can go on with this request." in told for told in stranger.told)
        assert await jobs(lab) == []


async def test_a_question_outlives_a_restart_and_is_one_job(data_dir: Path) -> None:
    config = config_for(data_dir)
    try:
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            env: Any = simcord.Env(app.new_client(), settle_timeout=30)
            await env.start()
            guild = env.create_guild("Lab")
            channel = guild.create_text_channel("lab")
            ana = guild.add_member(env.create_user("ana"))
            lab = World(app=app, env=env, channel=channel, ana=ana, ben=ana)
            card = await ask(lab)
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            lab.app = app
            await env.restart_bot(app.new_client())
            assert "Queued #1" in answer(await press(ana, card, "Go on"))
            await lab.until_shown("is done")
            assert len(await jobs(lab)) == 1
            await env.shutdown()
    finally:
        kill_trainers(data_dir)
