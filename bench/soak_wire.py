"""Soaks the real bot on the loopback Discord of `tests/wire`, with random faults; then checks the result.

    nice python -m bench.soak_wire                       # twenty jobs in four channels, for ten minutes
    python -m bench.soak_wire --minutes 2 --seed 7

Each job is a training, followed by a sampling of it. Three of the channels have faults: requests that hang or fail in
every way, permissions that are taken away and given back. The fourth has none: its messages come soon. The connection
is dropped, Discord goes away, and the bot is killed. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.soak import table
from bench.soak_checks import Finding, findings
from bot.db import DATABASE_FILE
from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_faults import cut, hang, lose_answer, rate_limit, refuse, refuse_html, slow
from tests.wire.wire_people import Person, person
from tests.wire.wire_state import WireChannel, WireMessage

_CHANNELS, _SLOTS, _EPOCHS = 4, 4, 10
#: Steps of an epoch, as the stand-in for the trainer counts them.
_STEPS = 4
#: After a restart or a lost connection messages may be late for so long: the bot connects, and back-offs end.
_GRACE_S = 12.0
#: Messages of the channel without faults come sooner.
_SOON_S = 3.0
#: Longest wait for the rest once there are no more faults: a look at a held channel, the longest back-off.
_REST_S = 240.0
_FAULTS = {
    "hang": hang(),
    "429 for 5 s": rate_limit(5),
    "429 for 20 s": rate_limit(20),
    "429 for 40 s without Via": rate_limit(40, via=False),
    "429 in HTML": refuse_html(429),
    "500": refuse(500),
    "502 in HTML": refuse_html(502),
    "403 in HTML": refuse_html(403),
    "404 with code 0": refuse(404),
    "cut connection": cut(),
    "lost answer": lose_answer(),
    "answer that never comes": lose_answer(after_s=None),
    "slow answer": slow(2),
}


@dataclass
class Soak:
    """The Discord, the bot, the people, and what happens to them."""

    discord: WireDiscord
    bot: WireBot
    chance: random.Random
    channels: list[WireChannel]
    done: Counter[str] = field(default_factory=Counter)
    #: When messages of all channels may be late: restarts and lost connections.
    outages: list[tuple[float, float]] = field(default_factory=list)

    @property
    def calm(self) -> WireChannel:
        """The channel without faults."""
        return self.channels[-1]

    async def run(self, jobs: int, seconds: float) -> None:
        """Hand in the jobs while there are faults; return once everything is delivered."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(jobs):
                group.create_task(self._hand_in(number, 0.7 * seconds))
            for channel in self.channels[:-1]:
                group.create_task(self._trouble(channel, end))
            group.create_task(self._trouble_of_all(end))
        with suppress(AssertionError):
            await self.discord.until(self._is_over, _REST_S)

    def _is_over(self) -> bool:
        unsent = "SELECT 1 FROM outbox WHERE state IN ('waiting', 'sending')"
        open_jobs = "SELECT 1 FROM job WHERE ended_at IS NULL"
        cards = "SELECT 1 FROM card WHERE shown_version < version"
        return not any(self.bot.rows(f"{query} LIMIT 1") for query in (unsent, open_jobs, cards))

    # -- people -------------------------------------------------------------------------------------------------------

    async def _hand_in(self, number: int, within_s: float) -> None:
        """Ask for a training, and for images when it has ended, as a person does who gets no answer."""
        who = person(self.discord, f"user{number}")
        await asyncio.sleep(self.chance.uniform(0, within_s))
        # Two jobs with the same data are duplicates, and the stand-in for the trainer tells data by its names.
        dataset = archive(images=5 + number, salt=str(number))
        options = {"dataset": dataset, "epochs": _EPOCHS, "confirm": False}
        await self._ask(who, "finetune", self.channels[number % _CHANNELS], "kind = 'train'", options)
        ended = "SELECT id FROM job WHERE owner_id = ? AND kind = 'train' AND state = 'succeeded'"
        while not (rows := self.bot.rows(ended, who.id)):  # noqa: ASYNC110 - the bot sets no event for a bench.
            await asyncio.sleep(1)
        options = {"job": str(rows[0]["id"]), "prompts": "a fox | a red fox"}
        await self._ask(who, "sample", self.channels[number % _CHANNELS], "kind = 'sample'", options)

    async def _ask(self, who: Person, command: str, channel: WireChannel, wanted: str, options: dict[str, Any]) -> None:
        """Use a command until there is a job."""
        while not self.bot.rows(f"SELECT 1 FROM job WHERE owner_id = ? AND {wanted}", who.id):
            self.done[f"/{command} used"] += 1
            asked = await who.slash(command, channel, **options)
            with suppress(AssertionError):
                await self.discord.until(lambda: asked.is_settled, 20)  # noqa: B023
            await asyncio.sleep(1)

    # -- faults -------------------------------------------------------------------------------------------------------

    async def _trouble(self, channel: WireChannel, end: float) -> None:
        """One fault after another in a channel."""
        while time.monotonic() < end:
            await asyncio.sleep(self.chance.uniform(2, 12))
            lasts_s = self.chance.uniform(2, 15)
            if self.chance.random() < 0.25:
                self.done["permissions taken away"] += 1
                await self.discord.deny(channel)
                await asyncio.sleep(lasts_s)
                await self.discord.allow(channel)
                continue
            name = self.chance.choice(list(_FAULTS))
            path = f"/channels/{channel.id}/messages*"
            with self.discord.faults.on("*", path, _FAULTS[name], chance=self.chance.choice((0.5, 1))) as rule:
                await asyncio.sleep(lasts_s)
            self.done[f"requests met by: {name}"] += len(rule.hits)

    async def _trouble_of_all(self, end: float) -> None:
        """One outage after another: of the bot, of its connection, of Discord."""
        outages = (
            self._kill, self._kill, self._cut, self._close, self._reconnect, self._invalidate, self._refuse, self._away,
        )  # fmt: skip
        while time.monotonic() < end:
            await asyncio.sleep(self.chance.uniform(20, 45))
            async with self._outage():
                await self.chance.choice(outages)()

    @asynccontextmanager
    async def _outage(self) -> AsyncIterator[None]:
        begin = time.time()
        try:
            yield
            await self.discord.until(lambda: self.discord.gateway.is_connected, 120)
        finally:
            self.outages.append((begin, time.time() + _GRACE_S))

    async def _kill(self) -> None:
        self.done["bot killed"] += 1
        await self.bot.kill()
        await self.bot.start()
        await self.bot.until_online(120)

    async def _cut(self) -> None:
        self.done["connection cut"] += 1
        self.discord.gateway.cut()

    async def _close(self) -> None:
        self.done["connection closed (4000)"] += 1
        await self.discord.gateway.close(4000)

    async def _reconnect(self) -> None:
        self.done["reconnect asked for"] += 1
        await self.discord.gateway.ask_reconnect()

    async def _invalidate(self) -> None:
        self.done["session invalidated"] += 1
        await self.discord.gateway.invalidate()

    async def _refuse(self) -> None:
        self.done["gateway refused for 5 s"] += 1
        self.discord.gateway.refuse_status = 503
        self.discord.gateway.cut()
        await asyncio.sleep(5)
        self.discord.gateway.refuse_status = 0

    async def _away(self) -> None:
        self.done["Discord away for 5 s"] += 1
        await self.discord.stop()
        await asyncio.sleep(5)
        await self.discord.start()


async def soak(folder: Path, options: argparse.Namespace) -> list[Finding]:
    """Run everything; return the findings."""
    seconds, chance = 60 * options.minutes, random.Random(options.seed)
    async with WireDiscord() as discord:
        channels = [discord.channel, *(discord.add_channel(f"gpu-{number}") for number in range(2, _CHANNELS + 1))]
        chance.shuffle(channels)
        # So that the trainings, in turns on all slots, last as long as the faults.
        step_s = 0.7 * seconds * _SLOTS / options.jobs / (_EPOCHS * _STEPS)
        bot = WireBot(discord, folder, {"queue": {"slots": _SLOTS}}, env={"FAKE_STEP_S": f"{step_s:.3f}"})
        soaked = Soak(discord, bot, chance, channels)
        begin = time.monotonic()
        try:
            await bot.start()
            await bot.until_online(120)
            await soaked.run(options.jobs, seconds)
        finally:
            await bot.close()
    messages = [each for channel in discord.channels.values() for each in (*channel.messages, *channel.deleted)]
    made = Counter(str(each.nonce) for each in messages if each.nonce is not None)
    return [
        # One training and one sampling of each.
        *findings(bot.data_dir, 2 * options.jobs, made, len(discord.repeated_nonces)),
        *delays(soaked, {str(each.nonce): each for each in messages}),
        # discord.py logs each connection that it does not get.
        Finding(what="errors in the bot's log", figure=str(errors := bot.log.count("ERROR   bot.")), holds=not errors),
        *(Finding(what=what, figure=str(number)) for what, number in sorted(soaked.done.items())),
        Finding(what="seconds", figure=f"{time.monotonic() - begin:.0f}"),
    ]


def delays(soaked: Soak, messages: dict[str, WireMessage]) -> list[Finding]:
    """Compare when messages were put into the outbox with when they came, in the order of the outbox."""
    with closing(sqlite3.connect(soaked.bot.data_dir / DATABASE_FILE)) as db:
        rows = db.execute(
            "SELECT channel_id, thread_of, created_at, nonce FROM outbox WHERE recipient_id = 0 ORDER BY id"
        ).fetchall()
    arrivals: dict[tuple[int, int], list[float]] = {}
    for channel, thread, _made, nonce in rows:
        if nonce in messages:
            arrivals.setdefault((channel, thread), []).append(messages[nonce].arrived_at)
    # Posts about short epochs wait for each other in their thread.
    spans = [
        (channel, made, messages[nonce].arrived_at)
        for channel, thread, made, nonce in rows
        if nonce in messages and not thread
    ]
    swapped = sum(later < earlier for times in arrivals.values() for earlier, later in pairwise(times))
    undisturbed = [
        came - made
        for channel, made, came in spans
        if channel == soaked.calm.id and not any(made < end and begin < came for begin, end in soaked.outages)
    ]
    others = [came - made for channel, made, came in spans if channel != soaked.calm.id]
    return [
        Finding(what="messages in another order than that of the outbox", figure=str(swapped), holds=swapped == 0),
        Finding(
            what="seconds to a message in the channel without faults, outages aside",
            figure=_spread(undisturbed),
            # In a short run an outage may be beside each of them.
            holds=max(undisturbed) < _SOON_S if undisturbed else None,
        ),
        Finding(what="seconds to a message in the other channels", figure=_spread(others)),
    ]


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "no messages"
    return f"median {statistics.median(seconds):.2f}, longest {max(seconds):.2f} ({len(seconds)} messages)"


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the bot's deliveries while Discord fails.")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=None, help="new folder to keep all data in")
    options = parser.parse_args()
    # It logs each connection that a fault cuts.
    logging.getLogger("aiohttp.server").disabled = True
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(soak((options.folder or Path(scratch)).absolute() / "bot", options))
    sys.stdout.write(table(found))
    return int(any(each.holds is False for each in found))


if __name__ == "__main__":
    sys.exit(main())
