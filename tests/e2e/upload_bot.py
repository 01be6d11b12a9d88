"""A bot in a simulated Discord that receives one upload; a test may kill it.

Arguments (of a fork): DATA_DIR upload|page|look

`upload`: `/finetune` with six images, until it is answered. `page`: the same by the page. `look`: the next bot,
without a command, until no upload is pending.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from bot.app.compose import compose
from bot.config import WebSettings
from tests.bot.cogs import conftest
from tests.bot.cogs.conftest import archive, config_for, forked_trainer, world
from tests.bot.cogs.test_page_uploads import IMAGES, ask, finish, link_of, over, send

# Started before any fork of this process, so that they share it.
forked_trainer()


async def upload(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", dataset=archive())


async def page(data_dir: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = WebSettings(port=port, public_url=f"http://127.0.0.1:{port}")
    config_of = conftest.config_for
    conftest.config_for = lambda folder, **env: config_of(folder, **env).model_copy(update={"web": web})
    async with world(data_dir) as lab, aiohttp.ClientSession() as browser:
        address = link_of(await ask(lab))
        await send(browser, address, IMAGES)
        await finish(browser, address)
        await over(browser, address)


async def look(data_dir: Path) -> None:
    async with compose(config_for(data_dir), trainer=forked_trainer()) as app:
        while await app.services.uploads.unfinished():  # noqa: ASYNC110 - the bot sets no event for a test.
            await asyncio.sleep(0.02)


def main(arguments: Sequence[str]) -> int:
    data_dir, command = arguments
    asyncio.run({"upload": upload, "page": page, "look": look}[command](Path(data_dir)))
    return 0
