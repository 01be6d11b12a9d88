"""A bot that ends while it looks at what somebody handed in: the next one says what became of it, in the channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import discord
import simcord

from bot.app.compose import App, compose
from bot.cogs.downloads import Download, read_whole
from bot.config import Config
from bot.datasets import UploadKind
from tests.bot.cogs.conftest import FAKE_TRAINER, World, answer, archive, config_for, kill_trainers, texts
from tests.bot.cogs.room import StrayPress, buttons, hand_in, press

#: Longer than any test: whoever waits for it is cut off.
LONG_S = "600"


@asynccontextmanager
async def bot(config: Config) -> AsyncIterator[App]:
    async with compose(config, trainer=FAKE_TRAINER, download=read_whole) as app:
        yield app


@asynccontextmanager
async def lab_of(app: App) -> AsyncIterator[World]:
    env: Any = simcord.Env(app.new_client(), settle_timeout=30)
    await env.start()
    try:
        guild = env.create_guild("Lab")
        channel = guild.create_text_channel("lab")
        ana, ben = (guild.add_member(env.create_user(name)) for name in ("ana", "ben"))
        yield World(app=app, env=env, channel=channel, ana=ana, ben=ben)
    finally:
        await env.shutdown()


async def cut_off(asking: asyncio.Task[Any]) -> None:
    """What the end of `asyncio.run` does to a command that is not done."""
    commands = [task for task in asyncio.all_tasks() if task.get_name() == "CommandTree-invoker"]
    assert commands
    for task in (*commands, asking):
        task.cancel()
    await asyncio.wait([*commands, asking])


@asynccontextmanager
async def restarted_in_the_middle(
    data_dir: Path,
    is_so: Callable[[World], Any],
    *,
    download: Download = read_whole,
    command: str = "finetune",
    before: Callable[[World], Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """The lab with the second bot; the first was ended in peace once `is_so`, with Ana's command not answered."""
    try:
        async with bot(config_for(data_dir, FAKE_PREPARE_S=LONG_S if before is None else "0")) as app:
            lab_context = lab_of(app)
            lab = await lab_context.__aenter__()
            if before is not None:
                await before(lab)
            object.__setattr__(app.services, "download", download)
            asking = asyncio.create_task(lab.ana.slash(lab.channel, command, **options))
            await until_async(lambda: is_so(lab))
            await cut_off(asking)
            assert len(await app.services.uploads.all()) == 1
        async with bot(config_for(data_dir)) as app:
            lab.app = app
            await lab.env.restart_bot(app.new_client())
            yield lab
            assert await app.services.uploads.all() == []
            await lab_context.__aexit__(None, None, None)
    finally:
        kill_trainers(data_dir)


async def until_async(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await is_so():  # noqa: ASYNC110 - nobody would set an event.
            await asyncio.sleep(0.02)


async def is_received(lab: World) -> bool:
    return any(upload.sha256 for upload in await lab.app.services.uploads.all())


async def is_noted(lab: World) -> bool:
    return bool(await lab.app.services.uploads.all())


async def never(_: discord.Attachment) -> AsyncIterator[bytes]:
    yield b"PK"
    await asyncio.sleep(600)


async def test_a_request_cut_off_by_a_restart_waits_behind_a_button_for_its_owner(data_dir: Path) -> None:
    async with restarted_in_the_middle(data_dir, is_received, dataset=archive(), epochs=1, name="Red One") as lab:
        text = await lab.until_shown("I was restarted")
        assert f"<@{lab.ana.id}> I was restarted while I looked at **fox.zip**." in text
        assert "It is examined now (dataset **fox**, 6 images kept), and your request waits:" in text
        assert lab.called()[-1] == [lab.ana.id]
        (post,) = lab.channel.history()
        stranger = StrayPress(lab, lab.ben)
        _, dataset_id, verb, draft_id = buttons(post)["Show my request"].split(":")
        lab.env.bot.dispatch("dataset_button", stranger, int(dataset_id), verb, draft_id)
        await lab.until(lambda: bool(stranger.told))
        assert f"Only <@{lab.ana.id}> can go on with this request." in stranger.told[0]

        card = (await press(lab.ana, post, "Show my request")).response.message
        assert "**red-one** · 1 epoch" in "\n".join(texts(card.components))
        assert card.flags.ephemeral
        assert "Queued #1 “red-one”" in answer(await press(lab.ana, card, "Go on"))
        await lab.until_shown("is done")
        assert "This request is #1 by now." in answer(await press(lab.ana, post, "Show my request"))
        assert len(lab.posts("I was restarted")) == 1
        assert len(await lab.app.services.jobs.recent(lab.channel.guild.id)) == 1


async def test_one_that_was_to_be_queued_at_once_waits_too(data_dir: Path) -> None:
    async with restarted_in_the_middle(data_dir, is_received, dataset=archive(), epochs=1, confirm=False) as lab:
        assert "waits for **Go on**" in await lab.until_shown("I was restarted")
        assert await lab.app.services.jobs.recent(lab.channel.guild.id) == []


async def test_a_download_cut_off_by_a_restart_is_asked_for_again(data_dir: Path) -> None:
    async with restarted_in_the_middle(data_dir, is_noted, download=never, dataset=archive()) as lab:
        text = await lab.until_shown("I was restarted")
        assert "before **fox.zip** had arrived. Nothing was queued; run /finetune again." in text
        assert lab.called()[-1] == [lab.ana.id]
        assert buttons(lab.channel.history()[0]) == {}


async def test_a_refusal_is_said_by_the_next_bot(data_dir: Path) -> None:
    async with restarted_in_the_middle(data_dir, is_received, dataset=("notes.zip", b"no zip")) as lab:
        text = await lab.until_shown("I was restarted")
        assert "notes.zip is not a zip archive. Nothing was queued." in text


async def test_more_files_cut_off_by_a_restart_are_asked_for_again(data_dir: Path) -> None:
    async def is_add(lab: World) -> bool:
        return any(upload.kind is UploadKind.ADD for upload in await lab.app.services.uploads.all())

    async with restarted_in_the_middle(
        data_dir,
        is_add,
        download=never,
        command="dataset add",
        before=hand_in,
        dataset="fox",
        file=("b.png", b"b"),
    ) as lab:
        text = await lab.until_shown("I was restarted")
        assert "before **b.png** had arrived. Nothing was changed; run /dataset add again." in text
