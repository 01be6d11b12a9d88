"""Measures how soon people get a first answer: the real bot on the loopback Discord of `tests/wire`.

    python -m bench.wire                        # a training on both cores; then also 2,000 waiting jobs
    python -m bench.wire --seconds 20 --waiting 10000

50 people act 5 times a second (Poisson). The time is from the gateway's frame to the arrival of the first callback.
Busy loops, one a core, stand for the training. CPU time is that of the bot's process for one `/queue` after another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.queue import fill
from bot.db import DATABASE_FILE, open_db
from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_people import Person, person

_PEOPLE, _ACTS_PER_S = 50, 5.0
_ENDED = 200
#: Seconds after the last act in which answers still count.
_PATIENCE_S = 15.0
_QUEUE_CALLS = 40
_BUTTONS = ("Refresh", "Samples", "Files", "Go on")


@dataclass
class Crowd:
    """The people, and what they did."""

    discord: WireDiscord
    people: list[Person]
    chance: random.Random
    done: list[tuple[str, WireInteraction]] = field(default_factory=list)

    async def act(self) -> None:
        """Let one of them do one thing."""
        acts = self._acts(self.chance.choice(self.people))
        name = self.chance.choices(list(acts), [weight for weight, _act in acts.values()])[0]
        self.done.append((name, await acts[name][1]()))

    def _acts(self, who: Person) -> dict[str, tuple[float, Callable[[], Awaitable[WireInteraction]]]]:
        job = str(self.chance.randint(1, _ENDED))
        typed = self.chance.choice(["", "f", "fox", job, "nothing"])
        acts: dict[str, tuple[float, Callable[[], Awaitable[WireInteraction]]]] = {
            "/queue": (3, lambda: who.slash("queue")),
            "/job list": (2, lambda: who.slash("job list")),
            "/job status": (2, lambda: who.slash("job status", id=job)),
            "/job history": (1, lambda: who.slash("job history", id=job)),
            "/dataset list": (1, lambda: who.slash("dataset list")),
            "/finetune": (1, lambda: who.slash("finetune", dataset=archive(self.chance.randint(4, 40), salt=job))),
            "autocomplete of a job": (2, lambda: who.complete("job status", "id", typed)),
            "autocomplete of a verb": (1, lambda: who.complete("job cancel", "id", typed)),
            "autocomplete of a dataset": (1, lambda: who.complete("dataset inspect", "dataset", typed)),
        }
        if (press := self._button()) is not None:
            acts["buttons"] = (2, press)
        return acts

    def _button(self) -> Callable[[], Awaitable[WireInteraction]] | None:
        """Press a button of one of the newest answers, by the person who got it."""
        for _name, asked in reversed(self.done[-40:]):
            message = asked.message if asked.is_settled else None
            labels = [] if message is None else [each for each in _BUTTONS if each in message.buttons]
            if message is not None and labels and self.discord.has(message):
                owner = next(each for each in self.people if each.user is asked.user)
                button = message.buttons[self.chance.choice(labels)]
                return lambda: owner.press(message, button["custom_id"])
        return None


async def measure(folder: Path, waiting: int, seconds: float) -> tuple[Crowd, float]:
    """Return what the crowd did, and the CPU seconds of one `/queue`."""
    async with WireDiscord() as discord:
        crowd = Crowd(discord, [person(discord, f"user{number}") for number in range(_PEOPLE)], random.Random(1))
        bot = WireBot(discord, folder, {"cards": {"edit_interval_s": 5.0}}, env={"FAKE_STEP_S": "2"})
        # Of the dataset in the database.
        (bot.data_dir / "datasets" / "a" / "source").mkdir(parents=True)
        async with open_db(bot.data_dir / DATABASE_FILE) as db:
            await fill(db, _ENDED, waiting, guild_id=discord.guild.id, channel_id=discord.channel.id)
        try:
            await bot.start()
            await bot.until_online()
            cpu_s = await _cpu_of_queue(bot, crowd)
            with busy_cores():
                await _act_for(crowd, seconds)
        finally:
            await bot.close()
    assert "Traceback" not in bot.log, bot.log[-4000:]
    return crowd, cpu_s


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores busy, as a training on the CPU does."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _core in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def _cpu_of_queue(bot: WireBot, crowd: Crowd) -> float:
    assert bot.process is not None
    process = psutil.Process(bot.process.pid)
    await asyncio.sleep(3)
    begin = process.cpu_times()
    for number in range(_QUEUE_CALLS):
        asked = await crowd.people[number % _PEOPLE].slash("queue")
        await crowd.discord.until(lambda: asked.is_settled)  # noqa: B023
    end = process.cpu_times()
    return (end.user + end.system - begin.user - begin.system) / _QUEUE_CALLS


async def _act_for(crowd: Crowd, seconds: float) -> None:
    next_at = time.monotonic()
    end = next_at + seconds
    while (next_at := next_at + crowd.chance.expovariate(_ACTS_PER_S)) < end:
        # An open loop: a slow answer delays no other act.
        await asyncio.sleep(next_at - time.monotonic())
        await crowd.act()
    with suppress(AssertionError):
        await crowd.discord.until(lambda: all(asked.callbacks for _name, asked in crowd.done), _PATIENCE_S)


def row(label: str, asked: list[WireInteraction]) -> str:
    """Render milliseconds as a row of the table; an act without an answer counts as infinitely late."""
    took = sorted(float("inf") if each.first_answer_s is None else 1000 * each.first_answer_s for each in asked)
    cells = [f"{took[min(len(took) - 1, int(part * len(took)))]:.0f}" for part in (0.5, 0.95, 0.99)]
    return f"| {label} | {len(took)} | {' | '.join(cells)} | {took[-1]:.0f} | {sum(each > 3000 for each in took)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon people get a first answer.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--waiting", type=int, default=2000, help="jobs of the longer queue")
    options = parser.parse_args()
    out = sys.stdout.write
    out("| first answer, ms | acts | p50 | p95 | p99 | max | > 3 s |\n|---|--:|--:|--:|--:|--:|--:|\n")
    notes = []
    for waiting in (20, options.waiting):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            crowd, cpu_s = asyncio.run(measure(Path(folder) / "bot", waiting, options.seconds))
        out(row(f"**{waiting:,} waiting jobs** (load before it: {load:.1f})", [asked for _name, asked in crowd.done]))
        for name in sorted({name for name, _asked in crowd.done}):
            out(row(name, [asked for other, asked in crowd.done if other == name]))
        notes.append(f"{1000 * cpu_s:.0f} ms with {waiting:,} waiting jobs")
        sys.stdout.flush()
    out(f"\nCPU time of one /queue: {', '.join(notes)}.\n")


if __name__ == "__main__":
    main()
