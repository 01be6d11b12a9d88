"""An upload by page under load: a gigabyte in 200 files, with lost connections, a restart and no room in the middle.

    python -m bench.upload [--gib 1.0] [--files 200]

The unchanged bot is a process of its own on the Discord of `tests/wire`, with a history of 200 jobs. The sender is
another process, which does what `upload.js` does: three files at a time, in pieces with checksums. Three connections
are cut off within a piece, the bot is restarted once, and for three seconds the system lets it write no file to its end
(`RLIMIT_FSIZE`). Meanwhile members use commands, and a heartbeat in the bot's event loop says how late it is.

Printed: whether each byte arrived once, the memory that the bot took on top, how soon members had an answer, and how
late the event loop was, before the upload and during it. Goals: nothing lost or doubled, below 50 MB, and 99 of 100
first answers within 0.1 s. Four processes share the machine; it needs to be quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import random
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import psutil

from bench.queue import fill
from bot.db import DATABASE_FILE, open_db
from tests.wire import forked_bot
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_people import Person, person
from tests.wire.wire_state import walk

PNG = b"\x89PNG\r\n\x1a\n"
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = 4 * 2**20
AT_ONCE = 3
#: Shares of all bytes at which something happens.
DROPS, RESTART_AT, FULL_AT = (0.15, 0.3, 0.45), 0.5, 0.75
FULL_S = 3.0
#: Commands are measured without an upload first: the machine may be busy with something else.
QUIET_S = 15.0
_ENDED = 200
_HEARTBEAT_S = 0.01
#: Until what was begun is answered.
_PATIENCE_S = 60.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def content_of(number: int, size: int) -> bytes:
    """A file that is not all zeros and not like another; begins as a picture does."""
    return PNG + random.Random(number).randbytes(size - len(PNG))


# -- the sender -------------------------------------------------------------------------------------------------------


class Sender:
    """Sends all files, whatever happens; three at a time."""

    def __init__(self, page: str, files: int, size: int) -> None:
        self.page, self.files, self.size = page, files, size
        self.sent = 0
        self.drops = list(DROPS)
        self.failures = 0

    async def run(self) -> None:
        waiting = iter(range(self.files))
        # Without a limit of our own on how long the bot may be away.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=60)) as session:

            async def worker() -> None:
                for number in waiting:
                    await self.send(session, number)

            await asyncio.gather(*(worker() for _place in range(AT_ONCE)))
        say(f"sent: {self.failures} requests failed and were made again")

    async def send(self, session: aiohttp.ClientSession, number: int) -> None:
        content, path, url = content_of(number, self.size), f"holiday/{number:04}.png", ""
        while True:
            try:
                if not url:
                    url = await self.create(session, path)
                offset = await self.ask(session, url)
                while offset < self.size:
                    offset = await self.piece(session, url, content, offset)
                return
            except (aiohttp.ClientError, OSError, TimeoutError, RuntimeError):
                self.failures += 1
                await asyncio.sleep(0.3)

    async def create(self, session: aiohttp.ClientSession, path: str) -> str:
        named = ",".join(f"{key} {base64.b64encode(path.encode()).decode()}" for key in ("relativePath", "key"))
        headers = {**TUS, "Upload-Length": str(self.size), "Upload-Metadata": named}
        async with session.post(f"{self.page}/files", headers=headers) as answer:
            if answer.status != 201:
                raise RuntimeError(await answer.text())
            return urljoin(self.page, answer.headers["Location"])

    async def ask(self, session: aiohttp.ClientSession, url: str) -> int:
        async with session.head(url, headers=TUS) as answer:
            if answer.status != 200:
                raise RuntimeError(str(answer.status))
            return int(answer.headers["Upload-Offset"])

    async def piece(self, session: aiohttp.ClientSession, url: str, content: bytes, offset: int) -> int:
        piece = content[offset : offset + PIECE]
        headers = {
            **TUS,
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {base64.b64encode(hashlib.sha256(piece).digest()).decode()}",
        }
        request = session.patch(url, headers=headers, data=piece)
        if self.drops and self.sent >= self.drops[0] * self.files * self.size:
            self.drops.pop(0)
            # Cut off within the piece.
            async with asyncio.timeout(0.004), request:
                raise RuntimeError("too fast to be cut off")
        async with request as answer:
            if answer.status != 204:
                raise RuntimeError(f"{answer.status} {await answer.text()}")
            end = int(answer.headers["Upload-Offset"])
        self.sent += end - offset
        say(f"progress {self.sent}")
        return end


# -- the bot ----------------------------------------------------------------------------------------------------------


def run_with_heartbeat(beats: Path, arguments: Sequence[str]) -> int:
    """Run the bot (`tests/wire/forked_bot.py`); its event loop writes when it woke up, and how much too late."""
    run = asyncio.Runner.run

    async def beat() -> None:
        with beats.open("a", buffering=1) as file:
            while True:
                due = time.perf_counter() + _HEARTBEAT_S
                await asyncio.sleep(_HEARTBEAT_S)
                file.write(f"{time.time()} {time.perf_counter() - due}\n")

    async def beside(main: Any) -> Any:
        heartbeat = asyncio.create_task(beat())
        try:
            return await main
        finally:
            heartbeat.cancel()

    def run_beside(runner: asyncio.Runner, main: Any, **options: Any) -> Any:
        return run(runner, beside(main), **options)

    asyncio.Runner.run = run_beside  # type: ignore[method-assign]
    return forked_bot.main(arguments)


@dataclass
class Measured:
    """The bot, its people, and what was seen of both."""

    discord: WireDiscord
    bot: WireBot
    beats: Path
    people: list[Person]
    asked: list[tuple[float, WireInteraction]] = field(default_factory=list)
    #: When what is measured began and ended, by its name.
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    is_away: bool = False
    peak_bytes: int = 0

    async def use(self) -> None:
        """Let members use commands, five a second, whether earlier ones are answered or not."""
        chance = random.Random(1)
        for turn in range(10**9):
            await asyncio.sleep(chance.expovariate(5.0))
            if not self.is_away:
                command = ("queue", "dataset list", "job list")[turn % 3]
                asked = await self.people[turn % len(self.people)].slash(command)
                self.asked.append((time.time(), asked))

    async def watch_memory(self) -> None:
        while True:
            if not self.is_away:
                self.peak_bytes = max(self.peak_bytes, self.resident())
            await asyncio.sleep(0.05)

    def resident(self) -> int:
        assert self.bot.process is not None
        return int(psutil.Process(self.bot.process.pid).memory_info().rss)

    async def answered(self, asked: WireInteraction) -> WireInteraction:
        await self.discord.until(lambda: asked.is_settled, _PATIENCE_S)
        return asked

    async def page(self) -> str:
        """Ask for an upload, and return the address of its page."""
        asked = await self.people[0].slash("dataset upload")
        await self.discord.until(lambda: asked.modal is not None, _PATIENCE_S)
        sent = await self.answered(await self.people[0].submit(asked))
        assert sent.message is not None
        return next(each["url"] for each in walk(sent.message.components) if each.get("url"))

    async def restart(self) -> None:
        self.is_away = True
        # What was asked before has its answer.
        await asyncio.sleep(0.5)
        await self.bot.stop()
        await self.bot.start()
        await self.bot.until_online()
        self.is_away = False

    async def be_full(self) -> None:
        """For a while, the bot's system writes no file of the upload to its end."""
        assert self.bot.process is not None
        pid, (_soft, hard) = self.bot.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (PIECE, hard))
        await asyncio.sleep(FULL_S)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def report(self, name: str) -> None:
        """Print how soon members had an answer, and how late the event loop was, meanwhile."""
        begin, end = self.spans[name][0][0], self.spans[name][-1][1]
        asked = [each for at, each in self.asked if any(start <= at < stop for start, stop in self.spans[name])]
        say_spread(f"first answer {name}", [each.first_answer_s for each in asked])
        say_spread(f"whole answer {name}", [whole_answer_s(each) for each in asked])
        lines = [line.split() for line in self.beats.read_text().splitlines() if line.count(" ") == 1]
        late = [float(by) for at, by in lines if any(start <= float(at) < stop for start, stop in self.spans[name])]
        say_spread(f"event loop late {name}", list(late))
        say(f"    ({end - begin:.0f} s)")


def whole_answer_s(asked: WireInteraction) -> float | None:
    """Seconds until nothing was "thinking…" any more; None: it still is."""
    if not asked.is_settled or asked.message is None:
        return None
    return max(asked.message.versions[-1][0], asked.callbacks[0][0]) - asked.at


def say_spread(what: str, seconds: Sequence[float | None]) -> None:
    """Print milliseconds; what was never answered counts as infinitely late."""
    ordered = sorted(float("inf") if each is None else 1000 * each for each in seconds)
    p50, p99, most = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1.0))
    say(f"{what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {most:.1f} ms ({len(ordered)})")


async def measure(folder: Path, gib: float, files: int) -> None:
    size = int(gib * 2**30) // files
    assert size > PIECE, "each file comes in several pieces"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "web": {
            "port": port, "public_url": f"http://127.0.0.1:{port}", "max_upload_gib": 2 * gib,
            "max_upload_files": files,
        },
        "limits": {"max_stored_mib_per_user": 10**6},
        # As in a real server.
        "cards": {"edit_interval_s": 5.0},
    }  # fmt: skip
    beats = folder / "beats"
    launcher = (sys.executable, "-m", "bench.upload", "--bot", str(beats))
    async with WireDiscord() as discord:
        people = [person(discord, f"user{number}") for number in range(10)]
        bot = WireBot(discord, folder / "bot", settings, launcher=launcher)
        (bot.data_dir / "datasets" / "a" / "source").mkdir(parents=True)
        async with open_db(bot.data_dir / DATABASE_FILE) as db:
            await fill(db, _ENDED, 0, guild_id=discord.guild.id, channel_id=discord.channel.id)
        try:
            await bot.start()
            await bot.until_online()
            await upload(Measured(discord, bot, beats, people), files, size)
        finally:
            await bot.close()


async def upload(at: Measured, files: int, size: int) -> None:
    """Send all files, with all that comes between; then print what was seen."""
    page = await at.page()
    for command in ("queue", "dataset list", "job list"):
        await at.answered(await at.people[1].slash(command))
    before = at.resident()
    tasks = [asyncio.create_task(at.use()), asyncio.create_task(at.watch_memory())]
    began = time.time()
    await asyncio.sleep(QUIET_S)
    at.spans["before the upload"] = [(began, time.time())]
    began = time.time()
    sender = await start_sender(page, files, size)
    await until_sent(sender, RESTART_AT * files * size)
    at.spans["during it"] = [(began, time.time())]
    await at.restart()
    say(f"restarted at {RESTART_AT:.0%}")
    began = time.time()
    await until_sent(sender, FULL_AT * files * size)
    await at.be_full()
    say(f"no room for {FULL_S:g} s at {FULL_AT:.0%}")
    await until_sent(sender, None)
    at.spans["during it"].append((began, time.time()))
    for task in tasks:
        task.cancel()
    await at.discord.until(lambda: all(each.is_settled for _at, each in at.asked), _PATIENCE_S)
    async with aiohttp.ClientSession() as session, session.post(page, data={"do": "finish"}) as answer:
        assert answer.status == 200, await answer.text()
    own = "SELECT * FROM dataset WHERE owner_id = ?"
    await at.discord.until(lambda: bool(at.bot.rows(own, at.people[0].id)), 600)
    (dataset,) = at.bot.rows(own, at.people[0].id)
    check(at.bot.data_dir / "datasets" / dataset["sha256"] / "source", files, size)
    for name in at.spans:
        at.report(name)
    memory = f"{before / 1e6:.0f} MB, at most {at.peak_bytes / 1e6:.0f} MB"
    say(f"memory of the bot: {memory}: {(at.peak_bytes - before) / 1e6:.0f} MB more")


async def start_sender(page: str, files: int, size: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.upload", "--send", page, str(files), str(size), stdout=asyncio.subprocess.PIPE
    )


async def until_sent(sender: asyncio.subprocess.Process, count: float | None) -> None:
    """Wait until the sender has sent so much; None: all of it."""
    assert sender.stdout is not None
    while line := await sender.stdout.readline():
        words = line.decode().split()
        if words[0] != "progress":
            say(line.decode().strip())
        elif count is not None and int(words[1]) >= count:
            return
    assert await sender.wait() == 0


def check(source: Path, files: int, size: int) -> None:
    stored = sorted(path for path in source.rglob("*") if path.is_file())
    assert [path.relative_to(source).as_posix() for path in stored] == [f"holiday/{n:04}.png" for n in range(files)]
    wrong = [path.name for number, path in enumerate(stored) if path.read_bytes() != content_of(number, size)]
    say(f"{files} files of {size:,} bytes: {len(wrong)} wrong, none lost, none twice")
    assert not wrong


def main() -> None:
    if sys.argv[1:2] == ["--bot"]:
        sys.exit(run_with_heartbeat(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None, help="new folder to keep all data in, on another disk")
    parser.add_argument("--send", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        page, files, size = options.send
        asyncio.run(Sender(page, int(files), int(size)).run())
        return
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(measure((options.folder or Path(scratch)).absolute(), options.gib, options.files))


if __name__ == "__main__":
    main()
