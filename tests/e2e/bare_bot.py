"""The bot's services in a process that a test may kill, with a file in place of Discord.

Arguments (of a fork): DATA_DIR ZIP BASE, and the command of the trainer
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from bot.app import compose as composition
from bot.config import CardSettings, Config, QueueSettings, StorageSettings, TrainerSettings
from bot.datasets import Upload
from bot.queue import NewJob
from bot.ui.layout import MessageContent
from tests.e2e.team_bot import FileDiscord
from trainer.protocol.presets import spec_from_preset

CHANNEL, GUILD, OWNER, INTERACTION = 100, 10, 1, 77
QUICK = {
    "training": {"epochs": 4, "repeats": 3, "trigger": ""},
    "samples": {"steps": 2, "prompts": ["a red star"], "unrelated_prompts": [], "every_epochs": 1},
    "exports": {"every_epochs": None},
    # The end, with its test and files, is in tests/e2e/test_warm.py.
    "validation": {"timesteps": 2, "draws": 1, "test": False},
    "early_stopping": {"enabled": False},
}


class RenderedDiscord(FileDiscord):
    """Writes the text of rendered messages."""

    async def send(self, channel_id: int, message: MessageContent, nonce: str) -> int:
        return await super().send(channel_id, _text(message), nonce)


def _text(message: MessageContent) -> str:
    return "\n".join(getattr(item, "content", "") for item in message.layout.walk_children())


async def _bytes_of(path: Path) -> AsyncIterator[bytes]:
    yield await asyncio.to_thread(path.read_bytes)


async def _nothing(_: Any) -> AsyncIterator[bytes]:
    yield b""


async def work(data_dir: Path, archive: Path, base: Path, trainer: Sequence[str]) -> None:
    """Queue the job once, and run until it has ended and every message is sent."""
    discord = RenderedDiscord(data_dir.with_suffix(".discord"))
    setattr(composition, "Poster", lambda client, **_callbacks: discord)  # noqa: B010 - the name is imported there, not exported
    config = Config(
        storage=StorageSettings(data_dir=data_dir),
        cards=CardSettings(edit_interval_s=1.0, epoch_interval_s=0),
        queue=QueueSettings(poll_s=0.1),
        # tests/e2e/test_warm.py has one. Here each bot would load another one that gets no job.
        trainer=TrainerSettings(warm=False),
    )
    async with composition.compose(config, trainer=trainer, download=_nothing) as app:
        services = app.services
        if not await services.jobs.recent(GUILD, limit=1):
            received = await services.datasets.receive([Upload(name=archive.name, chunks=_bytes_of(archive))])
            dataset = await services.datasets.prepare(received, guild_id=GUILD, owner_id=OWNER)
            spec = spec_from_preset("lora", dataset=str(dataset.folder), base=str(base), changes=QUICK)
            new = NewJob(
                interaction_id=INTERACTION, guild_id=GUILD, channel_id=CHANNEL, owner_id=OWNER, dataset_id=dataset.id,
                spec=spec,
            )  # fmt: skip
            await services.jobs.submit(new)
        while True:
            (job,) = await services.jobs.recent(GUILD, limit=1)
            if job.state.is_end and not await app.outbox.depth():
                return
            await asyncio.sleep(0.1)


def main(arguments: Sequence[str]) -> int:
    data_dir, archive, base, *trainer = arguments
    asyncio.run(work(Path(data_dir), Path(archive), Path(base), trainer))
    return 0
