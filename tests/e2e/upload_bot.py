"""A bot in a simulated Discord, to which one person hands in one archive; a test may kill it.

python tests/e2e/upload_bot.py DATA_DIR hand_in|look

`hand_in`: `/finetune` with six pictures, until it is answered. `look`: what the next bot does about it, which nobody
talks to, until nobody waits for an answer.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bot.app.compose import compose
from tests.bot.cogs.conftest import FAKE_TRAINER, archive, config_for, world


async def hand_in(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", dataset=archive())


async def look(data_dir: Path) -> None:
    async with compose(config_for(data_dir), trainer=FAKE_TRAINER) as app:
        while await app.services.uploads.all():  # noqa: ASYNC110 - the bot sets no event for a test.
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run({"hand_in": hand_in, "look": look}[sys.argv[2]](Path(sys.argv[1])))
