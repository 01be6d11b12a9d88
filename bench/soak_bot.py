"""The bot of the soak: the real queue, outbox and runner, with a file in place of Discord.

python -m bench.soak_bot DATA_DIR
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from bot.config import CardSettings, QueueSettings
from bot.db import DATABASE_FILE, hold_data_folder, open_db
from bot.outbox import MessageForm, Notification, Outbox, Sender
from bot.queue import Dispatcher, JobStore
from bot.runners import LocalRunner

log = logging.getLogger(__name__)

DISCORD_FILE = "discord.jsonl"
SETTINGS = QueueSettings(max_attempts=20, poll_s=0.05, retry_pause_s=0, stop_grace_s=2)


class FileDiscord:
    """Implements `Transport` on a file, one line per message; as on Discord, a nonce is accepted once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._texts: dict[str, str] = {line["nonce"]: line["text"] for line in lines if line["text"]}

    def is_ready(self) -> bool:
        return True

    async def open_dm(self, user_id: int) -> int:
        return user_id

    async def send(self, channel_id: int, message: str, nonce: str) -> int:
        # A repeated nonce makes no second message; it is recorded as a line without text.
        is_new = nonce not in self._texts
        line = {"nonce": nonce, "channel": channel_id, "text": message if is_new else ""}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        self._texts.setdefault(nonce, message)
        return list(self._texts).index(nonce) + 1

    async def edit(self, channel_id: int, message_id: int, message: str) -> None:
        assert 1 <= message_id <= len(self._texts), f"there is no message {message_id}"

    async def delete(self, channel_id: int, message_id: int) -> None:
        raise AssertionError("no card is replaced")

    async def find(self, channel_id: int, nonce: str) -> int | None:
        return next((number for number, known in enumerate(self._texts, 1) if known == nonce), None)

    async def start_thread(self, channel_id: int, message_id: int, name: str) -> int:
        return message_id


async def render(notification: Notification, form: MessageForm) -> str:
    return f"{notification.kind} of #{notification.job_id}"


async def work(data_dir: Path) -> None:
    """Run the queue until it is killed."""
    with hold_data_folder(data_dir):
        async with open_db(data_dir / DATABASE_FILE) as db:
            outbox = Outbox(db)
            store = JobStore(db, outbox, data_dir=data_dir, queue=SETTINGS)
            runner = LocalRunner(command=(sys.executable, "-m", "bench.soak_trainer"))
            cards = CardSettings(edit_interval_s=1, epoch_interval_s=0)
            sender = Sender(outbox, FileDiscord(data_dir / DISCORD_FILE), render, settings=cards, poll_s=0.2)
            # `bench.soak` kills the bot only after this line.
            log.info("at work")
            async with asyncio.TaskGroup() as group:
                group.create_task(Dispatcher(store, runner, settings=SETTINGS).run())
                group.create_task(sender.run())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(work(Path(sys.argv[1])))
