"""The real bot (services, commands, a real child process for the trainer) in a simulated Discord."""

from __future__ import annotations

import asyncio
import atexit
import functools
import io
import json
import os
import shlex
import signal
import socket
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord

from bot.app.compose import App, compose
from bot.cogs.attachments import read_attachment
from bot.config import Config, ModelSettings, WebSettings
from bot.queue import Job, JobStore
from tests.trainer.fork_server import ForkServer
from trainer.exchange.process import read_process_file

#: The simple trainer in a fresh process.
FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("simple_trainer.py")))


@functools.cache
def forked_trainer() -> tuple[str, ...]:
    """Return the same command without 0.3 s of imports: each is a fork of one process."""
    server = ForkServer("tests.bot.cogs.simple_trainer:main")
    atexit.register(server.__exit__)
    # Each bot asks for its GPUs. There are none, and a shell says so in a tenth of the time that Python takes to start.
    script = f'[ "$1" = devices ] && echo "{{}}" && exit; exec {shlex.join(server.command)} "$@"'
    return ("/bin/sh", "-c", script, "trainer")


PNG = b"\x89PNG\r\n"
#: simcord tells the channel of each thread; Discord only of one that starts from an older message.
_THREAD_CREATED = discord.MessageType.thread_created


def archive(images: int = 6, **others: bytes) -> tuple[str, bytes]:
    """An attachment: `fox.zip` with this many images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for number in range(images):
            packed.writestr(f"{number}.png", PNG + bytes([number]))
        for name, data in others.items():
            packed.writestr(name.replace("__", "."), data)
    return "fox.zip", file.getvalue()


def settings_file(**settings: Any) -> tuple[str, bytes]:
    """A `.toml` file with these settings, an option of `/finetune`."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "settings.toml", "\n".join(lines).encode()


def with_settings_file(options: dict[str, Any]) -> dict[str, Any]:
    """Put settings that are no options of `/finetune` into its `.toml` file."""
    others = {name: options.pop(name) for name in ("seed", "early_stop", "lr", "rank") if name in options}
    return {**options, "settings": settings_file(**others)} if others else options


@dataclass
class World:
    """One server with two members and the bot."""

    app: App
    env: Any
    channel: Any
    ana: Any
    ben: Any

    @property
    def jobs(self) -> JobStore:
        return self.app.services.jobs

    async def recent(self) -> list[Job]:
        """The jobs of the server, newest first."""
        return await self.jobs.recent(self.channel.guild.id)

    async def finetune(self, actor: Any = None, **options: Any) -> Any:
        """Run `/finetune` as Ana or `actor`, on six images unless `from_dataset` is given, without confirmation."""
        images = {} if "from_dataset" in options else {"dataset": archive()}
        asked = with_settings_file({"confirm": False, "epochs": 1, **images, **options})
        return await (actor or self.ana).slash(self.channel, "finetune", **asked)

    async def until_sent(self) -> None:
        """Wait until no message waits: those of a thread may come after the result in the channel."""
        async with asyncio.timeout(60):
            while await self.app.outbox.depth():  # noqa: ASYNC110 - no event is set.
                await asyncio.sleep(0.02)

    async def train(self, **options: Any) -> None:
        """Run a training of Ana's to its end."""
        await self.finetune(**options)
        await self.until_shown("is done")
        await self.until_sent()

    def add_manager(self) -> Any:
        """Add a member who may manage the server."""
        guild = self.channel.guild
        lead = guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        return guild.add_member(self.env.create_user("boss"), roles=[lead])

    def refusals(self) -> list[type[BaseException]]:
        """The exceptions that ended slash commands, oldest first; not those of buttons and uploads."""
        return [type(getattr(error, "original", error)) for error in self.env.errors]

    def messages(self) -> list[discord.Message]:
        """The messages of the channel and then those of its threads, oldest first."""
        channels = (self.channel, *self.channel.threads)
        return [message for channel in channels for message in channel.history() if message.type is not _THREAD_CREATED]

    def texts(self) -> list[str]:
        """The texts of the channel's messages, those of its threads excluded; oldest first."""
        return self._texts_in(self.channel)

    def thread_texts(self) -> list[str]:
        """The texts of the messages in the threads of the channel."""
        return [text for thread in self.channel.threads for text in self._texts_in(thread)]

    def _texts_in(self, channel: Any) -> list[str]:
        # As they are stored: a test that waits reads all of them many times, and `history` copies each one deeply.
        stored = self.env.backend.messages.get(channel.id, {})
        return [
            text_of(message)
            for _, message in sorted(stored.items())
            if message.visible_to(None) and message.type != _THREAD_CREATED.value
        ]

    def mentions(self) -> list[list[int]]:
        """The users that each message notifies, oldest first."""
        stored = self.env.backend.messages[self.channel.id]
        return [sorted(stored[message_id].ping_user_ids) for message_id in sorted(stored)]

    def posts(self, part: str) -> list[str]:
        """The messages that contain `part`, in the channel and its threads."""
        return [text for text in (*self.texts(), *self.thread_texts()) if part in text]

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait in real time: the services are not simulated."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - no event is set.
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(
                "timed out; the channel and its threads show:\n" + "\n---\n".join(self.posts(""))
            ) from None

    async def until_shown(self, part: str, seconds: float = 60) -> str:
        """Wait for a message that contains `part`; return the first one."""
        await self.until(lambda: bool(self.posts(part)), seconds)
        return self.posts(part)[0]


def texts(components: Any) -> list[str]:
    """All text of components and their children."""
    found: list[str] = []
    for component in components:
        if isinstance(component, dict):
            found += [component["content"]] if component.get("content") else []
            found += texts(component.get("components", []))
        else:
            found += [component.content] if getattr(component, "content", None) else []
            found += texts(getattr(component, "children", ()))
    return found


def text_of(message: Any) -> str:
    return "\n".join(texts(message.components))


def answer(result: Any) -> str:
    """The text that the member who acted saw last: a follow-up, or the answer itself."""
    shown = result.followups[-1] if result.followups else result.response
    assert shown is not None, result
    return text_of(shown)


def config_for(folder: Path, **trainer_env: str) -> Config:
    config = Config.model_validate_json(
        Config()
        .model_copy(
            update={
                "storage": Config().storage.model_copy(update={"data_dir": folder}),
                "queue": Config().queue.model_copy(update={"poll_s": 0.05, "retry_pause_s": 0.0}),
                # A full disk of the test machine must not stop the queue.
                "health": Config().health.model_copy(update={"min_free_gib": 0.0}),
                "trainer": Config().trainer.model_copy(update={"env": trainer_env}),
                "models": ModelSettings(default="tiny"),
            }
        )
        .model_dump_json()
    )
    # Shorter than a configuration may say; else each test would wait for a second or two.
    return config.model_copy(
        update={"cards": config.cards.model_copy(update={"edit_interval_s": 0.1, "epoch_interval_s": 0.0})}
    )


def populate(app: App, env: Any) -> World:
    guild = env.create_guild("Lab")
    channel = guild.create_text_channel("lab")
    ana, ben = (guild.add_member(env.create_user(name)) for name in ("ana", "ben"))
    return World(app=app, env=env, channel=channel, ana=ana, ben=ben)


@pytest.fixture
def pages_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bots of a test have web pages, which take few and small files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = WebSettings(port=port, public_url=f"http://127.0.0.1:{port}", max_upload_gib=0.01, max_upload_files=60)
    without = config_for

    def with_pages(folder: Path, **trainer_env: str) -> Config:
        return without(folder, **trainer_env).model_copy(update={"web": web})

    monkeypatch.setattr(f"{__name__}.config_for", with_pages)


@asynccontextmanager
async def world(folder: Path, **trainer_env: str) -> AsyncIterator[World]:
    """Run one bot in a new server."""
    config = config_for(folder, **trainer_env)
    try:
        async with (
            compose(config, trainer=forked_trainer(), download=read_attachment) as app,
            simcord.run(app.new_client(), settle_timeout=60) as env,
        ):
            yield populate(app, env)
    finally:
        kill_trainers(folder)


@asynccontextmanager
async def first_bot(folder: Path, **trainer_env: str) -> AsyncIterator[World]:
    """Run a bot in a new server that stays for `next_bot`."""
    async with compose(config_for(folder, **trainer_env), trainer=forked_trainer(), download=read_attachment) as app:
        env: Any = simcord.Env(app.new_client(), settle_timeout=60)
        await env.start()
        try:
            yield populate(app, env)
        except BaseException:
            await env.shutdown()
            raise


@asynccontextmanager
async def next_bot(lab: World, folder: Path, **trainer_env: str) -> AsyncIterator[None]:
    """Run the bot that follows `first_bot` in the same server, and close the server."""
    try:
        async with compose(
            config_for(folder, **trainer_env), trainer=forked_trainer(), download=read_attachment
        ) as app:
            lab.app = app
            await lab.env.restart_bot(app.new_client())
            yield
            await lab.env.shutdown()
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
