"""Stand-ins for what the bot's services lean on: a clock, a machine that trains, a Discord, and a way to be killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.errors import LaunchFailed
from bot.outbox import MessageGone, Notice
from bot.runners import EventLines, Handle, Launch, Status, read_events
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


class Clock:
    """Time that stands still until it is told to move."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


async def eventually(claim: Callable[[], Awaitable[bool]], *, within_s: float = 30.0) -> None:
    """Wait until `claim` holds."""
    deadline = time.monotonic() + within_s
    while not await claim():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)


# -- what trainers say ---------------------------------------------------------------------------------------------

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
    return Failed(seq=seq, time=at, kind=kind, message="It broke.", hint="Mend it.")


# -- being killed --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The bot is no more; nothing may catch it."""


class Fuse:
    """Kills the bot at its n-th point; never by default."""

    def __init__(self, burns_at: int = -1) -> None:
        self.burns_at = burns_at
        self.points = 0
        self.has_burnt = False

    def point(self) -> None:
        self.points += 1
        if self.points == self.burns_at or self.has_burnt:
            self.has_burnt = True
            raise Killed


# -- a machine that trains -----------------------------------------------------------------------------------------


@dataclass
class Training:
    """One process that trains; it outlives bots."""

    launch: Launch
    is_alive: bool = True
    was_told_to_stop: bool = False


class FakeRunner:
    """Trainings without processes: the test says what they say and when they end; their events are a real file."""

    def __init__(self, fuse: Fuse | None = None) -> None:
        self.fuse = fuse or Fuse()
        self.trainings: list[Training] = []
        self.killed: list[int] = []
        self.refuses: LaunchFailed | None = None
        self.beat: float | None = None
        self._seq: dict[Path, int] = {}

    async def launch(self, launch: Launch) -> Handle:
        self.fuse.point()
        if self.refuses:
            raise self.refuses
        for number, training in enumerate(self.trainings):
            if training.is_alive and training.launch.job_dir == launch.job_dir:
                return Handle(str(number))
        self.trainings.append(Training(launch=launch))
        self.fuse.point()
        return Handle(str(len(self.trainings) - 1))

    async def poll(self, handle: Handle) -> Status:
        return Status.RUNNING if self.trainings[int(handle)].is_alive else Status.GONE

    async def stop(self, handle: Handle) -> None:
        self.trainings[int(handle)].was_told_to_stop = True
        self.fuse.point()

    async def kill(self, handle: Handle) -> None:
        self.killed.append(int(handle))
        self.trainings[int(handle)].is_alive = False

    async def events(self, handle: Handle, job_dir: Path, offset: int) -> EventLines:
        return read_events(job_dir, offset)

    async def last_beat(self, handle: Handle, job_dir: Path) -> float | None:
        return self.beat

    def say(self, training: Training, *makers: Callable[[int], Event]) -> None:
        """Append events to the job's file, numbered on."""
        job_dir = training.launch.job_dir
        with (job_dir / "events.jsonl").open("a", encoding="utf-8") as file:
            for make in makers:
                seq = self._seq[job_dir] = self._seq.get(job_dir, 0) + 1
                file.write(make(seq).model_dump_json() + "\n")


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
    """Channels in memory; the test says what fails."""

    fuse: Fuse = field(default_factory=Fuse)
    #: Discord's `enforce_nonce`; simcord has none.
    honours_nonce: bool = True
    can_find: bool = True
    messages: list[Message] = field(default_factory=list)
    #: Raised by the next sends or edits, one each.
    failures: list[Exception] = field(default_factory=list)
    finds: int = 0

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        self.fuse.point()
        if self.failures:
            raise self.failures.pop(0)
        known = [one for one in self.messages if one.nonce == nonce]
        if known and self.honours_nonce:
            return known[0].id
        self.messages.append(Message(len(self.messages) + 1, channel_id, nonce, message))
        self.fuse.point()
        return len(self.messages)

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        for known in self.messages:
            if known.id == message_id:
                known.text, known.edits = message, known.edits + 1
                self.fuse.point()
                return
        raise MessageGone("deleted")

    async def find(self, channel_id: int, marker: str) -> int | None:
        self.finds += 1
        found = [one.id for one in self.messages if one.channel_id == channel_id and marker in one.text]
        return found[0] if found and self.can_find else None

    def texts(self, channel_id: int) -> list[str]:
        """What stands in a channel, markers cut off."""
        return [one.text.partition(" · ")[0] for one in self.messages if one.channel_id == channel_id]


async def render(notice: Notice, marker: str) -> str:
    """A message as one line: `job 1 epoch 2 · 3fa8c1d2`."""
    epochs = [event.epoch for event in notice.events if isinstance(event, EpochEnded)]
    name = f"{notice.kind} {epochs[0]}" if epochs else str(notice.kind)
    return f"job {notice.job_id} {name} · {marker}"
