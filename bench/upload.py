"""An upload by page under load: a gigabyte in 200 files, with lost connections, a restart and a full disk.

python -m bench.upload [--gib 1.0] [--files 200]

The real bot in a simulated Discord, in this process; the sender is another process, which does what `upload.js` does:
three files at a time, in pieces with checksums. Three connections are cut off within a piece, the bot is restarted
once, and for three seconds each write fails as on a full disk. Meanwhile members use commands.

Printed: whether each byte arrived once, the memory that the bot took on top, and how long commands took. Goals: nothing
lost or doubled, below 50 MB, and 99 of 100 commands answered within 0.1 s.

A command ends when the simulated Discord has settled, which looks at every timer of the process at each step and takes
most of its CPU meanwhile: the time before the upload is the one to compare with, and a quiet machine is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import errno
import hashlib
import os
import random
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import simcord

from bot.app.compose import compose
from bot.cogs.attachments import read_attachment
from bot.config import CardSettings, Config, LimitSettings, WebSettings
from bot.datasets.partial_file import PartialFile
from tests.bot.cogs import conftest
from tests.bot.cogs.test_page_uploads import ask, link_of

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = 4 * 2**20
AT_ONCE = 3
#: Shares of all bytes at which something happens.
DROPS, RESTART_AT, FULL_AT = (0.15, 0.3, 0.45), 0.5, 0.75
FULL_S = 3.0
#: Commands are measured without an upload first: the machine may be busy with something else.
QUIET_S = 15.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def content_of(number: int, size: int) -> bytes:
    """A file that is not all zeros and not like another; begins as a picture does."""
    return conftest.PNG + random.Random(number).randbytes(size - len(conftest.PNG))


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


class Members:
    """Members who use commands, and how long each took."""

    def __init__(self, lab: conftest.World) -> None:
        self.lab = lab
        self.seconds: list[float] = []
        self.is_away = asyncio.Event()

    async def run(self) -> None:
        for turn in range(10**9):
            if not self.is_away.is_set():
                command = ("queue", "dataset list", "job list")[turn % 3]
                began = time.perf_counter()
                await self.lab.ben.slash(self.lab.channel, command)
                self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def watch_memory(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], resident())
        await asyncio.sleep(0.02)


async def fail_writes() -> None:
    """For a while, each write fails as on a full disk, after a part of it."""
    write = PartialFile.write

    def fail(writer: PartialFile, block: bytes) -> None:
        write(writer, block[: len(block) // 3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    PartialFile.write = fail  # type: ignore[method-assign]
    await asyncio.sleep(FULL_S)
    PartialFile.write = write  # type: ignore[method-assign]


async def measure(folder: Path, gib: float, files: int) -> None:
    size = int(gib * 2**30) // files
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    web = WebSettings(port=port, public_url=f"http://127.0.0.1:{port}", max_upload_gib=2 * gib, max_upload_files=files)
    limits = LimitSettings(max_stored_mib_per_user=10**6)
    # Cards are edited as often as in a real server.
    changes = {"web": web, "limits": limits, "cards": CardSettings()}
    config: Config = conftest.config_for(folder).model_copy(update=changes)

    def bot() -> Any:
        return compose(config, trainer=conftest.forked_trainer(), download=read_attachment)

    async with bot() as app:
        env: Any = simcord.Env(app.new_client(), settle_timeout=60)
        await env.start()
        lab = conftest.populate(app, env)
        page = link_of(await ask(lab))
        for command in ("queue", "dataset list", "job list"):
            await lab.ben.slash(lab.channel, command)
        before, peak = resident(), [0]
        members = Members(lab)
        tasks = [asyncio.create_task(members.run()), asyncio.create_task(watch_memory(peak))]
        await asyncio.sleep(QUIET_S)
        quiet = list(members.seconds)
        sender = await start_sender(page, files, size)
        await until_sent(sender, RESTART_AT * files * size)
        members.is_away.set()
        await asyncio.sleep(0.5)
    say(f"restarted at {RESTART_AT:.0%}")
    async with bot() as app:
        lab.app = app
        await env.restart_bot(app.new_client())
        members.is_away.clear()
        await until_sent(sender, FULL_AT * files * size)
        await fail_writes()
        say(f"disk full for {FULL_S:g} s at {FULL_AT:.0%}")
        await until_sent(sender, None)
        during = members.seconds[len(quiet) :]
        async with aiohttp.ClientSession() as session, session.post(page, data={"do": "finish"}) as answer:
            assert answer.status == 200, await answer.text()
        async with asyncio.timeout(600):
            while not (found := await app.services.datasets.search(lab.channel.guild.id)):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        check(found[0].source, files, size)
        report(before, peak[0], {"before": quiet, "while files arrived": during})
        await env.shutdown()


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


def report(before: int, peak: int, commands: dict[str, list[float]]) -> None:
    for name, seconds in commands.items():
        ordered = sorted(seconds)
        p50, p99, most = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1.0))
        say(f"{len(ordered)} commands {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms")
    before_mb, peak_mb = before / 1e6, peak / 1e6
    say(f"memory of the bot: {before_mb:.0f} MB, at most {peak_mb:.0f} MB: {peak_mb - before_mb:.0f} MB more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--send", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        page, files, size = options.send
        asyncio.run(Sender(page, int(files), int(size)).run())
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options.gib, options.files))


if __name__ == "__main__":
    main()
