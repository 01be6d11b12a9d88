"""The bot's services in a process that a test may kill, with a file where Discord would be.

python tests/e2e/bare_bot.py DATA_DIR ZIP
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from bot.app import compose as composition
from bot.config import CardSettings, Config, QueueSettings, StorageSettings
from bot.queue import NewJob
from bot.ui.layout import MessageContent
from trainer.protocol.presets import spec_from_preset

CHANNEL, GUILD, OWNER, INTERACTION = 100, 10, 1, 77
QUICK = {
    "training": {"epochs": 4, "repeats": 3, "trigger": ""},
    "samples": {"steps": 2, "prompts": ["a red star"]},
    "validation": {"draws": 1},
    "early_stopping": {"enabled": False},
}


class FileDiscord:
    """`Post`: each message a line; the same nonce again is the message already made, as on Discord."""

    path: Path

    def __init__(self, client: Callable[[], object]) -> None:
        self._client = client

    async def send(self, channel_id: int, message: MessageContent, nonce: str) -> int:
        known = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        for number, each in enumerate(known, 1):
            if each["nonce"] == nonce:
                return number
        line = json.dumps({"nonce": nonce, "text": _text(message)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return len(known) + 1

    async def edit(self, channel_id: int, message_id: int, message: MessageContent) -> None:
        assert 1 <= message_id <= len(self.path.read_text(encoding="utf-8").splitlines())

    async def find(self, channel_id: int, marker: str) -> int | None:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return next((number for number, line in enumerate(lines, 1) if marker in line), None)


def _text(message: MessageContent) -> str:
    return "\n".join(getattr(item, "content", "") for item in message.layout.walk_children())


async def _bytes_of(path: Path) -> AsyncIterator[bytes]:
    yield await asyncio.to_thread(path.read_bytes)


async def _nothing(_: Any) -> AsyncIterator[bytes]:
    yield b""


async def work(data_dir: Path, archive: Path) -> None:
    """Queue the job once, and work until it has ended and all is told."""
    setattr(composition, "Poster", FileDiscord)  # noqa: B010 - the name is imported there, not exported
    config = Config(
        storage=StorageSettings(data_dir=data_dir),
        cards=CardSettings(edit_interval_s=1.0),
        queue=QueueSettings(poll_s=0.1),
    )
    async with composition.compose(config, download=_nothing) as app:
        services = app.services
        if not await services.jobs.recent(GUILD, limit=1):
            received = await services.datasets.receive(archive.name, _bytes_of(archive))
            dataset = await services.datasets.prepare(received, guild_id=GUILD, owner_id=OWNER)
            spec = spec_from_preset("lora", dataset=str(dataset.folder), base="tiny", changes=QUICK)
            await services.jobs.submit(
                NewJob(
                    interaction_id=INTERACTION,
                    guild_id=GUILD,
                    channel_id=CHANNEL,
                    owner_id=OWNER,
                    dataset_id=dataset.id,
                    spec=spec,
                )
            )
        while True:
            (job,) = await services.jobs.recent(GUILD, limit=1)
            if job.state.is_end and not await app.outbox.depth():
                return
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    FileDiscord.path = Path(sys.argv[1]).with_suffix(".discord")
    FileDiscord.path.touch()
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2])))
