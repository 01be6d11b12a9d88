"""Fakes: a clock, a machine that trains, a Discord, and a way to kill the bot."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from bot.clock import Clock
from bot.datasets import Upload
from bot.errors import LaunchFailed
from bot.outbox import MessageForm, MessageGone, Notification, NotificationKind
from bot.runners import Handle, RunStatus
from trainer.exchange.attempt import HEARTBEAT_FILE
from trainer.protocol.events import (
    Event,
)
from trainer.protocol.run_options import RunOptions


class FakeClock(Clock):
    """Time that stands still until a test advances it."""

    at: float

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        super().__init__(time=lambda: self.at, monotonic=lambda: self.at)
        self.at = at

    def __call__(self) -> float:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += seconds


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + within_s
    while not (await holds if isinstance(holds := condition(), Awaitable) else holds):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def serve(*routes: web.RouteDef) -> AsyncIterator[str]:
    """Serve `routes` on this machine; yield the URL."""
    app = web.Application()
    app.add_routes(routes)
    # Handlers that hang are part of some tests.
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def stream(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A download in chunks."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def uploads(files: Mapping[str, bytes]) -> list[Upload]:
    """Uploads of these contents by file name."""
    return [Upload(name=name, chunks=stream(data)) for name, data in files.items()]


# -- kills ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The bot is dead; no handler may catch it."""


class KillSwitch:
    """Kills the bot at the n-th point; never by default."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.points = 0
        self.has_killed = False

    def point(self) -> None:
        self.points += 1
        if self.points == self.kill_at or self.has_killed:
            self.has_killed = True
            raise Killed


# -- a machine that trains -----------------------------------------------------------------------------------------


@dataclass
class Training:
    """One training process; it outlives bots."""

    options: RunOptions
    is_alive: bool = True
    was_asked_to_stop: bool = False


class FakeRunner:
    """Trainings without processes: the test emits their events and ends them; the event files are real."""

    def __init__(self, kill_switch: KillSwitch | None = None) -> None:
        self.kill_switch = kill_switch or KillSwitch()
        self.trainings: list[Training] = []
        self.killed: list[int] = []
        #: Raised by every launch.
        self.launch_error: LaunchFailed | None = None
        self._heartbeat_at: float | None = None
        self._seq: dict[Path, int] = {}

    async def launch(self, options: RunOptions) -> Handle:
        self.kill_switch.point()
        if self.launch_error:
            raise self.launch_error
        for number, training in enumerate(self.trainings):
            if training.is_alive and training.options.job_dir == options.job_dir:
                return Handle(str(number))
        self.trainings.append(Training(options=options))
        self._write_heartbeat(options.job_dir)
        self.kill_switch.point()
        return Handle(str(len(self.trainings) - 1))

    async def poll(self, handle: Handle) -> RunStatus:
        return RunStatus.RUNNING if self.trainings[int(handle)].is_alive else RunStatus.EXITED

    async def stop(self, handle: Handle) -> None:
        self.trainings[int(handle)].was_asked_to_stop = True
        self.kill_switch.point()

    async def kill(self, handle: Handle) -> None:
        self.killed.append(int(handle))
        self.trainings[int(handle)].is_alive = False

    def beat(self, at: float) -> None:
        """Set the time of the last heartbeat of all trainings; without a call they have none."""
        self._heartbeat_at = at
        for training in self.trainings:
            self._write_heartbeat(training.options.job_dir)

    def _write_heartbeat(self, job_dir: Path) -> None:
        if self._heartbeat_at is not None:
            (job_dir / HEARTBEAT_FILE).touch()
            os.utime(job_dir / HEARTBEAT_FILE, (self._heartbeat_at, self._heartbeat_at))

    def emit(self, training: Training, *makers: Callable[[int], Event]) -> None:
        """Append events to the job's file, with the next numbers."""
        job_dir = training.options.job_dir
        with (job_dir / "events.jsonl").open("a", encoding="utf-8") as file:
            for make in makers:
                seq = self._seq[job_dir] = self._seq.get(job_dir, 0) + 1
                file.write(make(seq).model_dump_json() + "\n")

    def end(self, training: Training, *makers: Callable[[int], Event]) -> None:
        """Emit events and exit."""
        self.emit(training, *makers)
        training.is_alive = False


# -- a Discord -----------------------------------------------------------------------------------------------------


@dataclass
class Message:
    """A message in a channel."""

    id: int
    channel_id: int
    nonce: str
    text: str
    edits: int = 0


@dataclass
class FakePost:
    """Channels in memory; the test decides what fails."""

    kill_switch: KillSwitch = field(default_factory=KillSwitch)
    #: Discord's `enforce_nonce`; simcord has none.
    enforces_nonce: bool = True
    can_find: bool = True
    messages: list[Message] = field(default_factory=list)
    _last_id: int = 0
    #: Raised by the next sends or edits, one each.
    failures: list[Exception] = field(default_factory=list)
    finds: int = 0
    is_connected: bool = True
    #: Names of the threads that were started, by ID: that of their message.
    threads: dict[int, str] = field(default_factory=dict)
    #: Raised instead of starting one.
    thread_error: Exception | None = None

    def is_ready(self) -> bool:
        return self.is_connected

    async def open_dm(self, user_id: int) -> int:
        return user_id

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        self.kill_switch.point()
        if self.failures:
            raise self.failures.pop(0)
        known = [one for one in self.messages if one.nonce == nonce]
        if known and self.enforces_nonce:
            return known[0].id
        self._last_id += 1
        self.messages.append(Message(self._last_id, channel_id, nonce, message))
        self.kill_switch.point()
        return self._last_id

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        for known in self.messages:
            if known.id == message_id:
                known.text, known.edits = message, known.edits + 1
                self.kill_switch.point()
                return
        raise MessageGone("deleted")

    async def delete(self, channel_id: int, message_id: int) -> None:
        self.messages = [one for one in self.messages if one.id != message_id]

    async def find(self, channel_id: int, nonce: str) -> int | None:
        self.finds += 1
        found = [one.id for one in self.messages if one.channel_id == channel_id and one.nonce == nonce]
        return found[0] if found and self.can_find else None

    async def start_thread(self, channel_id: int, message_id: int, name: str) -> int:
        if self.thread_error is not None:
            raise self.thread_error
        if all(one.id != message_id for one in self.messages):
            raise MessageGone("404 10008 Unknown Message")
        self.threads[message_id] = name
        self.kill_switch.point()
        return message_id

    def texts(self, channel_id: int) -> list[str]:
        """The messages of a channel or a thread."""
        return [one.text for one in self.messages if one.channel_id == channel_id]


async def render(notification: Notification, form: MessageForm = MessageForm.FULL) -> str:
    """A message as one line: `job 1 epoch 2`."""
    is_epoch = notification.kind is NotificationKind.EPOCH
    number = f" {notification.dedupe_key.rpartition(':')[2]}" if is_epoch else ""
    return f"job {notification.job_id} {notification.kind}{number}"
