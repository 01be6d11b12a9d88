"""Other failures: full and read-only disks, frozen and hung processes, garbage in files, clocks that jump, reboots."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import pytest

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database, hold_data_folder, open_db
from bot.db.errors import DatabaseUnwritable
from bot.queue import EndReasonKind, Job, State, StopIntent, slots_of
from tests.bot.conftest import add_dataset
from tests.bot.fakes import eventually
from tests.e2e.team import Team, assert_nothing_is_lost_or_doubled
from tests.e2e.team_bot import SETTINGS, Services, new_job, two_gpus
from trainer.exchange.process import read_process_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class RunningBot:
    """A bot in this process, its trainers outside it."""

    def __init__(self, db: Database, data_dir: Path, services: Services) -> None:
        self.db, self.data_dir, self.services, self.store = db, data_dir, services, services.store
        self._numbers = iter(range(1, 1000))

    async def submit(self, name: str, owner: int = 1) -> Job:
        return await self.store.submit(new_job(next(self._numbers), name, owner))

    async def until(self, job: Job, *states: State, epoch: int = 0) -> None:
        async def is_there() -> bool:
            now = await self.store.get(job.id)
            return now.state in states and (not epoch or len(now.progress.epochs) >= epoch)

        await eventually(is_there)

    def trainer(self, job: Job) -> int:
        identity = read_process_file(self.data_dir / "jobs" / job.folder)
        assert identity is not None
        return identity.pid

    async def sent(self) -> list[str]:
        async def is_all_sent() -> bool:
            return not await self.services.outbox.depth()

        await eventually(is_all_sent)
        lines = self.data_dir.with_suffix(".discord").read_text().splitlines()
        return [json.loads(line)["text"].partition(" · ")[0] for line in lines]


@asynccontextmanager
async def running_bot(data_dir: Path, *, clock: Clock = SYSTEM_CLOCK, **settings_s: float) -> AsyncIterator[RunningBot]:
    with hold_data_folder(data_dir):
        async with open_db(data_dir / "darkroom.db") as db:
            await add_dataset(db)
            settings = SETTINGS.model_copy(update={"heartbeat_timeout_s": 30.0, "stop_grace_s": 1.0} | settings_s)
            services = Services(db, data_dir, settings=settings, clock=clock)
            await services.store.slots.set(slots_of(two_gpus(), None))
            tasks = [asyncio.create_task(services.dispatcher.run()), asyncio.create_task(services.sender.run())]
            try:
                yield RunningBot(db, data_dir, services)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
async def no_trainer_is_left(tmp_path: Path) -> AsyncIterator[None]:
    yield
    for path in await asyncio.to_thread(lambda: list(tmp_path.glob("**/jobs/*/process.json"))):
        identity = read_process_file(path.parent)
        if identity is not None and identity.is_alive():
            os.kill(identity.pid, signal.SIGKILL)


# -- disks ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def full(db: Database) -> AsyncIterator[None]:
    """SQLite's own limit fails as a full disk does (SQLITE_FULL)."""
    (pages,) = (await db.all("PRAGMA page_count"))[0]
    await db._writer.execute_fetchall(f"PRAGMA max_page_count={pages}")
    yield
    await db._writer.execute_fetchall("PRAGMA max_page_count=1000000")


@asynccontextmanager
async def read_only(db: Database) -> AsyncIterator[None]:
    await db._writer.execute_fetchall("PRAGMA query_only=ON")
    yield
    await db._writer.execute_fetchall("PRAGMA query_only=OFF")


async def submit_forever(bot: RunningBot, accepted: list[Job]) -> None:
    while True:
        accepted.append(await bot.submit("plain"))


@pytest.mark.parametrize(("fault", "reason"), [(full, "full"), (read_only, "read-only")])
async def test_changes_that_cannot_be_written_are_refused_and_everything_continues_afterwards(
    tmp_path: Path, fault: Callable[[Database], AbstractAsyncContextManager[None]], reason: str
) -> None:
    async with running_bot(tmp_path / "data") as bot:
        running = await bot.submit("long")
        await bot.until(running, State.RUNNING, epoch=1)
        accepted: list[Job] = [running]
        async with fault(bot.db):
            with pytest.raises(DatabaseUnwritable, match=f"{reason}.*Nothing was changed"):
                await submit_forever(bot, accepted)
            await asyncio.sleep(0.5)
            assert len(await bot.store.recent(10, limit=1000)) == len(accepted)
        for job in accepted[2:]:
            await bot.store.request_stop(job.id, by=1, intent=StopIntent.CANCEL)
        last = await bot.submit("plain")
        for job in (running, last):
            await bot.until(job, State.SUCCEEDED)
        sent = Counter(await bot.sent())
        assert set(sent.values()) == {1}
        assert {f"#{running.id} epoch {number}" for number in range(1, 9)} <= set(sent)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)


async def test_a_disk_that_fills_up_loses_nothing(small_disk: Path) -> None:
    async with running_bot(small_disk / "data") as bot:
        running, waiting = await bot.submit("plain"), await bot.submit("plain", owner=2)
        await bot.until(running, State.RUNNING)
        filler = small_disk / "filler"
        fill(filler)
        refused = 0
        for _ in range(20):
            try:
                await bot.submit("plain")
            except DatabaseUnwritable:
                refused += 1
        assert refused
        await asyncio.sleep(1)
        filler.unlink()
        for job in await bot.store.recent(10, limit=100):
            await bot.until(job, State.SUCCEEDED)
        assert {running.id, waiting.id} <= {job.id for job in await bot.store.recent(10, limit=100)}
        assert set(Counter(await bot.sent()).values()) == {1}


# -- processes -----------------------------------------------------------------------------------------------------


async def test_a_frozen_trainer_is_killed_and_its_job_continues(tmp_path: Path) -> None:
    start = time.monotonic()
    clock = Clock(monotonic=lambda: start + 100 * (time.monotonic() - start))
    async with running_bot(tmp_path / "data", clock=clock) as bot:
        job = await bot.submit("long")
        await bot.until(job, State.RUNNING, epoch=2)
        stopped = bot.trainer(job)
        os.kill(stopped, signal.SIGSTOP)
        await bot.until(job, State.SUCCEEDED)
        assert bot.trainer(job) != stopped
        sent = await bot.sent()
        assert [text for text in sent if " epoch " in text] == [f"#1 epoch {number}" for number in range(1, 9)], sent
        assert sent.count("#1 lost 1") == 1


async def test_a_hung_trainer_with_a_heartbeat_is_killed_and_its_job_continues(tmp_path: Path) -> None:
    start = time.monotonic()
    clock = Clock(monotonic=lambda: start + 100 * (time.monotonic() - start))
    async with running_bot(tmp_path / "data", clock=clock, heartbeat_timeout_s=3600.0, hang_timeout_s=600.0) as bot:
        job = await bot.submit("hangs")
        await bot.until(job, State.RUNNING, epoch=1)
        hanging = bot.trainer(job)
        await bot.until(job, State.SUCCEEDED)
        assert bot.trainer(job) != hanging
        assert (await bot.store.get(job.id)).attempt == 2
        sent = await bot.sent()
        assert [text for text in sent if " epoch " in text] == [f"#1 epoch {number}" for number in range(1, 4)], sent
        assert sent.count("#1 lost 1") == 1
        reason = (await bot.store.attempt_history(job.id))[0].reason
        assert reason is not None
        assert (reason.kind, reason.stalled_for_s, reason.epoch) == (EndReasonKind.NO_PROGRESS, 600, 2)


async def test_garbage_among_the_events_of_a_trainer_is_harmless(tmp_path: Path) -> None:
    async with running_bot(tmp_path / "data") as bot:
        bad, good = await bot.submit("garbles"), await bot.submit("plain")
        for job in (bad, good):
            await bot.until(job, State.SUCCEEDED)
        epochs = [text for text in await bot.sent() if " epoch " in text]
        assert sorted(epochs) == sorted(f"#{job.id} epoch {epoch}" for job in (bad, good) for epoch in (1, 2, 3))


# -- clocks --------------------------------------------------------------------------------------------------------


async def test_a_clock_that_jumps_delays_and_kills_no_job(tmp_path: Path) -> None:
    ahead_s = 0.0
    async with running_bot(tmp_path / "data", clock=Clock(time=lambda: time.time() + ahead_s)) as bot:
        jobs = [await bot.submit(name) for name in ("long", "dies", "long", "plain")]
        for jump in (86_400.0, -86_400.0, 3600.0, 0.0):
            ahead_s = jump
            await asyncio.sleep(0.2)
        for job in jobs:
            await bot.until(job, State.SUCCEEDED)
        assert [(await bot.store.get(job.id)).attempt for job in jobs] == [1, 2, 1, 1]
        # A card that is a day old by the clock is sent again, which is not a duplicate.
        assert set(Counter(text for text in await bot.sent() if not text.endswith("card")).values()) == {1}


# -- bots and machines ---------------------------------------------------------------------------------------------


def test_a_bot_that_was_frozen_catches_up(tmp_path: Path) -> None:
    team = Team(tmp_path)
    bot = team.start_bot()
    deadline = time.monotonic() + 60
    while not (team.data_dir.with_suffix(".discord").exists() and len(team.messages()) > 3):
        assert time.monotonic() < deadline, team.log.read_text()
        time.sleep(0.02)
    bot.send_signal(signal.SIGSTOP)
    time.sleep(2)
    bot.send_signal(signal.SIGCONT)
    assert team.wait_for(bot) == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)


def test_a_reboot_does_not_count_as_an_attempt(tmp_path: Path) -> None:
    """As after a power cut: no process of the last boot lives, and the files name that boot."""
    team = Team(tmp_path)
    assert team.run_bot(crash_at="handle_stored:2") == -signal.SIGKILL
    team.cut_power()
    running = [row["id"] for row in team.rows("SELECT id FROM job WHERE handle IS NOT NULL")]
    assert running
    rename_boot(team.data_dir)
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)
    lost = [row for row in team.rows("SELECT * FROM attempt") if '"node_lost"' in (row["end_reason"] or "")]
    assert {row["job_id"] for row in lost} <= set(running)
    assert lost
    assert all('"is_counted":false' in row["end_reason"] for row in lost)


def rename_boot(data_dir: Path) -> None:
    with closing(sqlite3.connect(data_dir / "darkroom.db")) as db:
        for job_id, handle in db.execute("SELECT id, handle FROM job WHERE handle IS NOT NULL").fetchall():
            db.execute("UPDATE job SET handle = ? WHERE id = ?", (of_another_boot(handle), job_id))
        db.commit()
    for path in data_dir.glob("jobs/*/process.json"):
        path.write_text(of_another_boot(path.read_text()))


def of_another_boot(text: str) -> str:
    return re.sub(r'("boot_id": ?)"[^"]*"', r'\1"another boot"', text)
