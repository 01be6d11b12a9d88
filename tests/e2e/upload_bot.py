"""A bot in a simulated Discord that receives one upload; a test may kill it.

Arguments (of a fork): DATA_DIR upload|look

`upload`: `/finetune` with six images, until it is answered. `look`: the next bot, without a command, until no upload
is pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from bot.app.compose import compose
from tests.bot.cogs.conftest import archive, config_for, forked_trainer, world

# Started before any fork of this process, so that they share it.
forked_trainer()


async def upload(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", dataset=archive())


async def look(data_dir: Path) -> None:
    async with compose(config_for(data_dir), trainer=forked_trainer()) as app:
        while await app.services.uploads.all():  # noqa: ASYNC110 - the bot sets no event for a test.
            await asyncio.sleep(0.02)


def main(arguments: Sequence[str]) -> int:
    data_dir, command = arguments
    asyncio.run({"upload": upload, "look": look}[command](Path(data_dir)))
    return 0
