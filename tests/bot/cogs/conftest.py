"""The real bot (services, commands, a real child process for the trainer) in a simulated Discord."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import simcord

from bot.app.compose import App, compose
from bot.cogs.downloads import read_whole
from bot.config import Config
from trainer.protocol.process import read_process_file

FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
#: The bot joins with what an invitation grants.
PNG = b"\x89PNG\r\n"


def archive(images: int = 6, **others: bytes) -> tuple[str, bytes]:
    """An attachment: `fox.zip` with so many pictures."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for number in range(images):
            packed.writestr(f"{number}.png", PNG + bytes([number]))
        for name, data in others.items():
            packed.writestr(name.replace("__", "."), data)
    return "fox.zip", file.getvalue()


@dataclass
class World:
    """One server with two people and the bot."""

    app: App
    env: Any
    channel: Any
    ana: Any
    ben: Any

    def texts(self) -> list[str]:
        return ["\n".join(texts(message.components)) for message in self.channel.history(viewer=None)]

    def called(self) -> list[list[int]]:
        """Whom each message calls, oldest first."""
        stored = self.env.backend.messages[self.channel.id]
        return [sorted(stored[message_id].ping_user_ids) for message_id in sorted(stored)]

    def posts(self, word: str) -> list[str]:
        return [text for text in self.texts() if word in text]

    async def until(self, is_so: Callable[[], bool], seconds: float = 20) -> None:
        """Wait in real time; the services are no part of the simulation."""
        try:
            async with asyncio.timeout(seconds):
                while not is_so():  # noqa: ASYNC110 - nobody would set an event.
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(
                "it did not come to pass; the channel shows:\n" + "\n---\n".join(self.texts())
            ) from None

    async def until_shown(self, word: str, seconds: float = 20) -> str:
        await self.until(lambda: bool(self.posts(word)), seconds)
        return self.posts(word)[0]


def texts(components: Any) -> list[str]:
    found: list[str] = []
    for component in components:
        if isinstance(component, dict):
            found += [component["content"]] if component.get("content") else []
            found += texts(component.get("components", []))
        else:
            found += [component.content] if getattr(component, "content", None) else []
            found += texts(getattr(component, "children", ()))
    return found


def answer(result: Any) -> str:
    """What the person who acted was told."""
    assert result.response is not None, result
    return "\n".join(texts(result.response.components))


def config_for(folder: Path, **trainer_env: str) -> Config:
    return Config.model_validate_json(
        Config()
        .model_copy(
            update={
                "storage": Config().storage.model_copy(update={"data_dir": folder}),
                "cards": Config().cards.model_copy(update={"edit_interval_s": 1.0}),
                "queue": Config().queue.model_copy(update={"poll_s": 0.05, "retry_pause_s": 0.0}),
                # The disk of whoever runs the tests may be as full as it likes.
                "health": Config().health.model_copy(update={"min_free_gib": 0.0}),
                "trainer": Config().trainer.model_copy(update={"env": trainer_env}),
            }
        )
        .model_dump_json()
    )


@asynccontextmanager
async def world(folder: Path, **trainer_env: str) -> AsyncIterator[World]:
    config = config_for(folder, **trainer_env)
    try:
        async with (
            compose(config, trainer=FAKE_TRAINER, download=read_whole) as app,
            simcord.run(app.new_client(), settle_timeout=30) as env,
        ):
            guild = env.create_guild("Lab")
            channel = guild.create_text_channel("lab")
            ana, ben = (guild.add_member(env.create_user(name)) for name in ("ana", "ben"))
            yield World(app=app, env=env, channel=channel, ana=ana, ben=ben)
    finally:
        kill_trainers(folder)


def kill_trainers(folder: Path) -> None:
    """Trainings outlive the bot; they must not outlive a test."""
    for job_dir in (folder / "jobs").glob("*"):
        identity = read_process_file(job_dir)
        if identity and identity.is_alive():
            os.kill(identity.pid, signal.SIGKILL)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
