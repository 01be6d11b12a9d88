"""Uploads that a restart interrupts are answered by the next bot, in the channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import discord

from bot.cogs.attachments import read_attachment
from bot.cogs.services import Download
from bot.datasets import UploadKind
from tests.bot.cogs.conftest import (
    World,
    answer,
    archive,
    first_bot,
    next_bot,
    text_of,
)
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged, upload_dataset

#: Longer than any test; it is always interrupted.
LONG_S = "600"


async def cancel_command(command_task: asyncio.Task[Any]) -> None:
    """Cancel an unfinished command, as the end of `asyncio.run` does."""
    commands = [task for task in asyncio.all_tasks() if task.get_name() == "CommandTree-invoker"]
    assert commands
    for task in (*commands, command_task):
        task.cancel()
    await asyncio.wait([*commands, command_task])


@asynccontextmanager
async def interrupted(
    data_dir: Path,
    condition: Callable[[World], Any],
    *,
    download: Download = read_attachment,
    command: str = "finetune",
    before: Callable[[World], Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Yield the lab with the second bot; the first one ended once `condition` held, before it answered Ana."""
    async with first_bot(data_dir, FAKE_PREPARE_S=LONG_S if before is None else "0") as lab:
        if before is not None:
            await before(lab)
        object.__setattr__(lab.app.services, "download", download)
        command_task = asyncio.create_task(lab.ana.slash(lab.channel, command, **options))
        await until_async(lambda: condition(lab))
        await cancel_command(command_task)
        assert len(await lab.app.services.uploads.unfinished()) == 1
    async with next_bot(lab, data_dir):
        yield lab
        assert await lab.app.services.uploads.unfinished() == []


async def until_async(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - no event is set.
            await asyncio.sleep(0.02)


async def is_received(lab: World) -> bool:
    return any(upload.sha256 for upload in await lab.app.services.uploads.unfinished())


async def is_tracked(lab: World) -> bool:
    return bool(await lab.app.services.uploads.unfinished())


async def never(_: discord.Attachment) -> AsyncIterator[bytes]:
    yield b"PK"
    await asyncio.sleep(600)


async def test_an_interrupted_request_waits_behind_a_button_for_its_owner(data_dir: Path) -> None:
    async with interrupted(data_dir, is_received, dataset=archive(), epochs=1, name="Red One") as lab:
        text = await lab.until_shown("I was restarted")
        assert f"<@{lab.ana.id}> I was restarted while preparing **fox.zip**." in text
        assert "It is ready now (dataset **fox**, 6 images kept), and your request waits:" in text
        assert lab.mentions()[-1] == [lab.ana.id]
        (post,) = lab.channel.history()
        custom_id = buttons(post)["Show my request"]
        reply = await press_forged(lab, custom_id, user=lab.ben)
        assert f"Only <@{lab.ana.id}> can continue with this request." in reply

        card = (await press(lab.ana, post, "Show my request")).response.message
        assert "Train “red-one”?" in text_of(card)
        assert card.flags.ephemeral
        assert "Queued #1 “red-one”" in answer(await press(lab.ana, card, "Start training"))
        await lab.until_shown("is done")
        assert "already queued as #1" in answer(await press(lab.ana, post, "Show my request"))
        assert len(lab.posts("I was restarted")) == 1
        assert len(await lab.recent()) == 1


async def test_an_interrupted_download_is_reported(data_dir: Path) -> None:
    async with interrupted(data_dir, is_tracked, download=never, dataset=archive()) as lab:
        text = await lab.until_shown("I was restarted")
        assert "before **fox.zip** had arrived. Nothing was queued; run /finetune again." in text
        assert lab.mentions()[-1] == [lab.ana.id]
        assert buttons(lab.channel.history()[0]) == {}


async def test_interrupted_additional_files_are_reported(data_dir: Path) -> None:
    async def is_add(lab: World) -> bool:
        return any(upload.kind is UploadKind.ADD for upload in await lab.app.services.uploads.unfinished())

    async with interrupted(
        data_dir,
        is_add,
        download=never,
        command="dataset add",
        before=upload_dataset,
        dataset="fox",
        file=("b.png", b"b"),
    ) as lab:
        text = await lab.until_shown("I was restarted")
        assert "before **b.png** had arrived. Nothing was changed; run /dataset add again." in text
