"""A bot in a simulated Discord that receives one upload; a test may kill it.

python tests/e2e/upload_bot.py DATA_DIR upload|look

`upload`: `/finetune` with six images, until it is answered. `look`: the next bot, without a command, until no upload
is pending.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bot.app.compose import compose
from tests.bot.cogs.conftest import FAKE_TRAINER, archive, config_for, world


async def upload(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", dataset=archive())


async def look(data_dir: Path) -> None:
    async with compose(config_for(data_dir), trainer=FAKE_TRAINER) as app:
        while await app.services.uploads.all():  # noqa: ASYNC110 - the bot sets no event for a test.
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run({"upload": upload, "look": look}[sys.argv[2]](Path(sys.argv[1])))
