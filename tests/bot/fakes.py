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
    BandLoss,
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Failed,
    FailureKind,
    Finished,
    Sample,
    Sampled,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
    Tested,
    ValidationLoss,
    Warned,
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


# -- events of trainers ------------------------------------------------------------------------------------------

_LOSS = ValidationLoss(loss=0.1, ratio=0.9, bands=(BandLoss(first_timestep=0, last_timestep=999, loss=0.1, ratio=0.9),))


def started(seq: int, at: float = 0.0) -> Event:
    return Started(
        seq=seq,
        time=at,
        pid=1,
        device="cpu",
        precision="fp32",
        epochs=3,
        total_steps=30,
        train_images=10,
        validation_images=2,
        test_images=2,
        resolution=64,
        trainable_parameters=1,
    )


def step_done(seq: int, epoch: int, step: int = 1, at: float = 0.0) -> Event:
    return StepDone(
        seq=seq,
        time=at,
        step=step,
        epoch=epoch,
        loss=0.2,
        learning_rate=1e-4,
        steps_per_s=1.0,
        eta_s=None,
        peak_memory_bytes=0,
    )


def sampled(seq: int, epoch: int, at: float = 0.0) -> Event:
    return Sampled(seq=seq, time=at, epoch=epoch, samples=(Sample(path="a.png", prompt="a", seed=1),), sheet="s.png")


def base_validated(seq: int, at: float = 0.0) -> Event:
    return BaseValidated(seq=seq, time=at, validation=_LOSS)


def epoch_ended(seq: int, epoch: int, at: float = 0.0) -> Event:
    return EpochEnded(
        seq=seq,
        time=at,
        epoch=epoch,
        step=epoch * 10,
        train_loss=0.2,
        validation=_LOSS,
        learning_rate=1e-4,
        seconds=1.0,
        is_best=True,
        best_epoch=epoch,
        chart="c.png",
    )


def warned(seq: int, kind: str, at: float = 0.0) -> Event:
    return Warned(seq=seq, time=at, kind=kind, message="careful")


def stopped_early(seq: int, at: float = 0.0) -> Event:
    return StoppedEarly(
        seq=seq, time=at, epoch=3, best_epoch=2, best_ratio=0.9, reason="no better", epochs_saved=1, seconds_saved=1.0
    )


def was_tested(seq: int, at: float = 0.0) -> Event:
    return Tested(seq=seq, time=at, test=_LOSS, base_loss=0.2)


def exported(seq: int, at: float = 0.0) -> Event:
    return Exported(
        seq=seq, time=at, format="kohya", path="l.safetensors", bytes=1, sha256="0" * 64, max_difference=0.0
    )


def finished(seq: int, at: float = 0.0) -> Event:
    return Finished(
        seq=seq,
        time=at,
        epochs=3,
        best_epoch=3,
        stopped_early=False,
        base_loss=0.2,
        best_loss=0.1,
        best_ratio=0.5,
        seconds=1.0,
        comparison="c.png",
        comparison_alt="base and best",
    )


def stopped(seq: int, epoch: int = 1, checkpoint: str | None = "checkpoints/last", at: float = 0.0) -> Event:
    return Stopped(seq=seq, time=at, epoch=epoch, step=1, checkpoint=checkpoint)


def failed(seq: int, kind: FailureKind = FailureKind.BAD_DATASET, at: float = 0.0) -> Event:
    return Failed(seq=seq, time=at, kind=kind, message="It broke.", hint="Fix it.")


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
    #: Raised by the next sends or edits, one each.
    failures: list[Exception] = field(default_factory=list)
    finds: int = 0
    is_connected: bool = True

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
        self.messages.append(Message(len(self.messages) + 1, channel_id, nonce, message))
        self.kill_switch.point()
        return len(self.messages)

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        for known in self.messages:
            if known.id == message_id:
                known.text, known.edits = message, known.edits + 1
                self.kill_switch.point()
                return
        raise MessageGone("deleted")

    async def find(self, channel_id: int, marker: str) -> int | None:
        self.finds += 1
        found = [one.id for one in self.messages if one.channel_id == channel_id and marker in one.text]
        return found[0] if found and self.can_find else None

    def texts(self, channel_id: int) -> list[str]:
        """The messages of a channel, without their markers."""
        return [one.text.partition(" · ")[0] for one in self.messages if one.channel_id == channel_id]


async def render(notification: Notification, marker: str, form: MessageForm = MessageForm.FULL) -> str:
    """A message as one line: `job 1 epoch 2 · 3fa8c1d2`."""
    is_epoch = notification.kind is NotificationKind.EPOCH
    number = f" {notification.dedupe_key.rpartition(':')[2]}" if is_epoch else ""
    return f"job {notification.job_id} {notification.kind}{number} · {marker}"
