"""Soaks the real bot on the loopback Discord of `tests/wire`, with random faults; then checks the result.

    nice python -m bench.soak_wire                       # twenty jobs in four channels, for ten minutes
    python -m bench.soak_wire --minutes 2 --seed 7

Each job is a training, followed by a sampling of it, whose images three people vote on. Half of the datasets come with
`/finetune`, the others by `/dataset upload`, and get more images by `/dataset add`. Three of the channels have faults:
requests that hang or fail in every way, permissions that are taken away and given back. The fourth has none: its
messages come soon. The connection is dropped, Discord goes away, and the bot is killed. The exit status is 1 if a check
fails.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.soak import table
from bench.soak_checks import Finding, findings
from bot.db import DATABASE_FILE
from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_faults import cut, hang, lose_answer, rate_limit, refuse, refuse_html, slow
from tests.wire.wire_people import Person, person
from tests.wire.wire_state import WireChannel, WireMessage

_CHANNELS, _SLOTS, _EPOCHS = 4, 4, 10
#: Steps of an epoch, as the stand-in for the trainer counts them.
_STEPS = 4
#: Images of a dataset by its number, and of what is added to it.
_FIRST_IMAGES, _MORE_IMAGES = 5, 2
#: A bot that is killed so soon after it acknowledged a press may not have carried it out.
_PRESS_S = 10.0
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
    #: When the bot was killed.
    kills: list[float] = field(default_factory=list)
    #: By the sampling and the person: the image, and how its menu was answered.
    votes: dict[tuple[int, int], tuple[int, WireInteraction]] = field(default_factory=dict)

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
        uploads = "SELECT 1 FROM upload"
        return not any(self.bot.rows(f"{query} LIMIT 1") for query in (unsent, open_jobs, cards, uploads))

    # -- people -------------------------------------------------------------------------------------------------------

    async def _hand_in(self, number: int, within_s: float) -> None:
        """Ask for a training and, when it has ended, for images, and vote, as a person does who gets no answer."""
        who, channel = person(self.discord, f"user{number}"), self.channels[number % _CHANNELS]
        await asyncio.sleep(self.chance.uniform(0, within_s))
        # Two jobs with the same data are duplicates, and the stand-in for the trainer tells data by its names.
        file = archive(_FIRST_IMAGES + number, f"user{number}.zip", salt=str(number))
        options: dict[str, object] = {"dataset": file}
        if number % 2:
            options = {"from_dataset": f"user{number}"}
            await self._until("SELECT 1 FROM dataset WHERE owner_id = ?", who, lambda: self._upload(who, channel, file))
            more = archive(_MORE_IMAGES, "more.zip", salt=f"more {number}")
            await self._settled(await who.slash("dataset add", channel, dataset=f"user{number}", file=more))
        trained = "SELECT id FROM job WHERE owner_id = ? AND kind = 'train'"
        options |= {"epochs": _EPOCHS, "confirm": False}
        await self._until(trained, who, lambda: who.slash("finetune", channel, **options))
        training = await self._until(f"{trained} AND state = 'succeeded'", who)
        drawn = "SELECT id FROM job WHERE owner_id = ? AND kind = 'sample'"
        options = {"job": str(training), "prompts": "a fox | a red fox"}
        await self._until(drawn, who, lambda: who.slash("sample", channel, **options))
        sampling = await self._until(f"{drawn} AND state = 'succeeded'", who)
        for voter in (who, *(person(self.discord, f"guest{number}-{guest}") for guest in (1, 2))):
            await self._vote(voter, sampling)

    async def _until(self, query: str, who: Person, act: Callable[[], Awaitable[WireInteraction]] | None = None) -> int:
        """Act until the query of what is a person's has a row (None: only wait); return its first value."""
        while not (rows := self.bot.rows(query, who.id)):
            if act is not None:
                asked = await act()
                self.done[
                    f"/{asked.data['name']} used" if "name" in asked.data else "forms of /dataset upload sent"
                ] += 1
                await self._settled(asked)
            await asyncio.sleep(1)
        found: int = rows[0][0]
        return found

    async def _settled(self, asked: WireInteraction) -> None:
        with suppress(AssertionError):
            await self.discord.until(lambda: asked.is_settled, 20)

    async def _upload(self, who: Person, channel: WireChannel, file: tuple[str, bytes]) -> WireInteraction:
        shown = await who.slash("dataset upload", channel)
        with suppress(AssertionError):
            await self.discord.until(lambda: shown.modal, 20)
        return await who.submit(shown, files=[file]) if shown.modal else shown

    async def _vote(self, who: Person, sampling: int) -> None:
        """Vote for an image once; without an answer, the vote is left."""
        menu = f"sample:{sampling}:image"
        card = await self.discord.until(lambda: self._message_with(menu), _REST_S)
        image = self.chance.randrange(2)
        pressed = await who.select(card, str(image), custom_id=menu)
        self.votes[sampling, who.id] = image, pressed
        self.done["votes given"] += 1
        await self._settled(pressed)

    def _message_with(self, custom_id: str) -> WireMessage | None:
        messages = (each for channel in self.discord.channels.values() for each in channel.messages)
        return next((each for each in messages if custom_id in {menu["custom_id"] for menu in each.selects}), None)

    def was_killed_soon_after(self, at: float) -> bool:
        return any(at <= killed < at + _PRESS_S for killed in self.kills)

    def votes_shown(self, sampling: int) -> int:
        """The votes of the most liked image, as its card says."""
        card = self._message_with(f"sample:{sampling}:image")
        found = re.search(r"with (\d+) votes?\.", card.text if card else "")
        return int(found[1]) if found else 0

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
        self.kills.append(time.time())
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
        *what_people_did(soaked),
        *delays(soaked, {str(each.nonce): each for each in messages}),
        # discord.py logs each connection that it does not get.
        Finding(what="errors in the bot's log", figure=str(errors := bot.log.count("ERROR   bot.")), holds=not errors),
        *(Finding(what=what, figure=str(number)) for what, number in sorted(soaked.done.items())),
        Finding(what="seconds", figure=f"{time.monotonic() - begin:.0f}"),
    ]


def what_people_did(soaked: Soak) -> list[Finding]:
    """Compare uploads and votes with what the bot has of them."""
    datasets = soaked.bot.rows("SELECT name, json_extract(counts, '$.kept') AS kept FROM dataset")
    more = [row["kept"] - _FIRST_IMAGES - int(row["name"].removeprefix("user")) for row in datasets]
    # Who was told that nothing arrived does not try again here.
    bad = sum(each not in {0, _MORE_IMAGES} for each in more)
    unanswered = len(soaked.bot.rows("SELECT 1 FROM upload"))
    counted = {
        (row["job_id"], row["user_id"]): row["number"]
        for row in soaked.bot.rows("SELECT * FROM sample_vote WHERE ballot = 'image'")
    }
    lost = [
        voter
        for voter, (_image, pressed) in soaked.votes.items()
        if pressed.callbacks and voter not in counted and not soaked.was_killed_soon_after(pressed.callbacks[0][0])
    ]
    # A press that was not acknowledged changes nothing.
    invented = [
        voter
        for voter, image in counted.items()
        if voter not in soaked.votes or image != soaked.votes[voter][0] or not soaked.votes[voter][1].callbacks
    ]
    likes = Counter((sampling, image) for (sampling, _user), image in counted.items())
    most = {sampling: max(likes[sampling, image] for image in range(2)) for sampling, _image in likes}
    shown = {sampling: soaked.votes_shown(sampling) for sampling in most}
    return [
        Finding(what="datasets, and those to which images were added", figure=f"{len(more)}, {sum(map(bool, more))}"),
        Finding(what="datasets with images lost or twice", figure=str(bad), holds=not bad),
        Finding(what="uploads without an answer", figure=str(unanswered), holds=not unanswered),
        Finding(what="votes counted", figure=str(len(counted))),
        Finding(what="votes that were acknowledged and do not count", figure=str(len(lost)), holds=not lost),
        Finding(what="votes that count and were not given so", figure=str(len(invented)), holds=not invented),
        Finding(what="cards that show their votes", figure=str(len(shown)), holds=shown == most),
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
