"""A review picture by picture: decisions are kept at once, outlive a restart, and are applied when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import simcord

from bot.app.compose import compose
from bot.cogs.downloads import read_whole
from bot.datasets import Dataset
from tests.bot.cogs.conftest import (
    FAKE_TRAINER,
    PNG,
    World,
    answer,
    archive,
    config_for,
    kill_trainers,
    texts,
    world,
)
from tests.bot.cogs.room import StrayPress, buttons, hand_in, press, shown_again


async def dataset_of(lab: World) -> Dataset:
    return await lab.app.services.datasets.named(lab.channel.guild.id, "fox")


async def review(lab: World, actor: Any = None) -> Any:
    actor = actor or lab.ana
    return (await actor.slash(lab.channel, "dataset review", dataset="fox")).response.message


def words(message: Any) -> str:
    return "\n".join(texts(message.components))


async def test_a_page_shows_the_picture_what_was_found_and_what_was_done(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab)
        text = words(page)
        assert "Review of fox · 1 of 2\n**Picture 7** · fox.zip!blur.png" in text
        assert "**blur** · kept: the edges are wide (measured 1.5, limit 1)" in text
        assert "Caption: a fox" in text
        assert [file.filename for file in page.attachments] == ["picture-7.png"]
        assert set(buttons(page)) == {"Keep", "Drop", "Edit caption", "▶️", "Done"}
        second = (await press(lab.ana, page, "▶️")).response.message
        assert "**near duplicate** · dropped" in words(second)
        assert [file.filename for file in second.attachments] == ["picture-8.png"]
        assert "◀️" in buttons(second)
        assert "1 of 2" in words((await press(lab.ana, second, "◀️")).response.message)


async def test_decisions_are_applied_when_it_is_done(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab)
        page = (await press(lab.ana, page, "Drop")).response.message
        assert "✓ Picture 7 is dropped." in words(page)
        page = (await press(lab.ana, page, "Keep")).response.message
        assert "All decided" in words(page)
        pending = await dataset_of(lab)
        assert (pending.is_pending, pending.counts.kept) == (True, 7)

        card = (await press(lab.ana, page, "Done")).response.message

        assert "🖼️ fox · 7 pictures" in words(card)
        done = await dataset_of(lab)
        report = await lab.app.services.datasets.report(done)
        assert [image.status for image in report.images[6:]] == ["dropped", "kept"]
        assert "Review 2 again" in buttons(card)


async def test_a_press_on_an_old_page_twice_is_one_decision(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab)
        drop = buttons(page)["Drop"]
        keep = buttons(page)["Keep"]
        await lab.ana.click(page, custom_id=drop)
        await lab.app.services.datasets.apply(1)
        twice = await lab.ana.click(await review(lab), custom_id=buttons(await review(lab))["Done"])
        assert twice.response is not None
        decisions = (await dataset_of(lab)).edits.decisions
        assert list(decisions.values()) == ["drop"]
        assert keep.removeprefix("ds:1:keep:") == next(iter(decisions))[:20]


async def test_a_caption_is_edited_in_a_form_and_counts_after_done(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab)
        form = await press(lab.ana, page, "Edit caption")
        assert form.modal["title"] == "Caption of picture 7"
        assert form.modal["components"][0]["component"]["value"] == "a fox"
        await lab.ana.submit_modal(form, {"caption": "a very\n blurred fox"})
        page = shown_again(lab, page)
        assert "Caption: a very blurred fox" in words(page)
        assert "by hand" in words(page)
        again = await press(lab.ana, page, "Edit caption")
        assert again.modal["components"][0]["component"]["value"] == "a very blurred fox"
        await press(lab.ana, shown_again(lab, page), "Done")
        report = await lab.app.services.datasets.report(await dataset_of(lab))
        assert report.images[6].caption == "a very blurred fox"


async def test_an_automatic_caption_is_right_when_somebody_says_so(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab, archive(6, bare__png=PNG + b"bare"))
        captions = lab.app.services.config.captions.model_copy(update={"model": "blip"})
        await lab.app.services.datasets.caption(1, captions)
        page = await review(lab)
        assert "Caption: an animal\n-# 2 words · blip · not looked at yet" in words(page)
        page = (await press(lab.ana, page, "Looks right")).response.message
        assert "✓ Picture 7 has the right caption." in words(page)
        card = (await press(lab.ana, page, "Done")).response.message
        assert "by a model" not in words(card)
        assert (await dataset_of(lab)).counts.automatic == 0


async def test_strangers_may_look_and_not_decide_and_who_manages_the_server_may(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab, lab.ben)
        for label in ("Keep", "Drop", "Edit caption"):
            told = answer(await press(lab.ben, page, label))
            assert f"Only <@{lab.ana.id}> or somebody who may manage the server can decide about" in told
        assert "2 of 2" in words((await press(lab.ben, page, "▶️")).response.message)
        assert (await dataset_of(lab)).edits.decisions == {}
        lead = lab.channel.guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        boss = lab.channel.guild.add_member(lab.env.create_user("boss"), roles=[lead])
        await press(boss, await review(lab, boss), "Drop")
        assert len((await dataset_of(lab)).edits.decisions) == 1


async def test_two_who_review_at_once_lose_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        lead = lab.channel.guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        boss = lab.channel.guild.add_member(lab.env.create_user("boss"), roles=[lead])
        anas, bosss = await review(lab), await review(lab, boss)
        bosss = (await press(boss, bosss, "▶️")).response.message
        await press(lab.ana, anas, "Drop")
        await press(boss, bosss, "Keep")
        assert sorted((await dataset_of(lab)).edits.decisions.values()) == ["drop", "keep"]


async def test_a_restart_in_the_middle_loses_no_decision_and_its_buttons_go_on(data_dir: Path) -> None:
    config = config_for(data_dir)
    try:
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            env: Any = simcord.Env(app.new_client(), settle_timeout=30)
            await env.start()
            guild = env.create_guild("Lab")
            channel = guild.create_text_channel("lab")
            ana = guild.add_member(env.create_user("ana"))
            lab = World(app=app, env=env, channel=channel, ana=ana, ben=ana)
            await hand_in(lab)
            page = await review(lab)
            page = (await press(ana, page, "Drop")).response.message
        async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
            lab.app = app
            await env.restart_bot(app.new_client())
            page = (await press(ana, page, "Keep")).response.message
            await press(ana, page, "Done")
            report = await app.services.datasets.report(await dataset_of(lab))
            assert [image.status for image in report.images[6:]] == ["dropped", "kept"]
            await env.shutdown()
    finally:
        kill_trainers(data_dir)


async def test_decisions_that_nobody_applied_are_said_and_can_be(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        await press(lab.ana, await review(lab), "Drop")
        card = (await lab.ben.slash(lab.channel, "dataset inspect", dataset="fox")).response.message
        assert "Decisions are written down and not applied yet" in words(card)
        card = (await press(lab.ben, card, "Apply decisions")).response.message
        assert "🖼️ fox · 6 pictures" in words(card)
        assert "not applied yet" not in words(card)


async def test_too_few_left_is_said_and_the_review_goes_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab, archive(4, blur__png=PNG + b"blur"))
        page = (await press(lab.ana, await review(lab), "Drop")).response.message
        told = await press(lab.ana, page, "Done")
        assert "Only 4 usable images" in "\n".join(texts(told.followups[-1].components))
        page = (await press(lab.ana, shown_again(lab, page), "Keep")).response.message
        assert "🖼️ fox · 5 pictures" in words((await press(lab.ana, page, "Done")).response.message)


async def test_nothing_to_review_is_said(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab, archive())
        told = answer(await lab.ana.slash(lab.channel, "dataset review", dataset="fox"))
        assert "Nothing in fox needs a look" in told


async def test_buttons_of_a_deleted_dataset_and_of_a_picture_that_is_gone_are_answered(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await hand_in(lab)
        page = await review(lab)
        client: Any = lab.env.bot
        stray = StrayPress(lab)
        client.dispatch("dataset_button", stray, 1, "keep", "0" * 20)
        client.dispatch("dataset_button", stray, 1, "dance", "")
        await lab.until(lambda: len(stray.told) == 2)
        assert sorted(stray.told)[0].startswith("This button is from another version of me")
        assert sorted(stray.told)[1].startswith("This picture is no longer among those to review")
        await lab.app.services.datasets.delete(1)
        for label in ("Keep", "Edit caption", "▶️", "Done"):
            assert "There is no dataset" in answer(await press(lab.ana, page, label)), label
