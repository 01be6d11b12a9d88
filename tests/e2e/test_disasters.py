"""What else befalls a night: full and read-only disks, stopped processes, deaf trainers, rubbish, clocks, reboots."""

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

from bot.db import Database, hold_data_folder, open_db
from bot.errors import DatabaseUnwritable
from bot.queue import Job, State, StopIntent, slots_of
from bot.queue.liveness import Pulse
from tests.bot.conftest import add_dataset
from tests.bot.fakes import eventually
from tests.e2e.team import Team, assert_nothing_is_lost_or_doubled
from tests.e2e.team_bot import SETTINGS, Services, new_job, two_gpus
from trainer.protocol.process import read_process_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Night:
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

    async def told(self) -> list[str]:
        async def is_all_told() -> bool:
            return not await self.services.outbox.depth()

        await eventually(is_all_told)
        lines = self.data_dir.with_suffix(".discord").read_text().splitlines()
        return [json.loads(line)["text"].partition(" · ")[0] for line in lines]


@asynccontextmanager
async def a_night(
    data_dir: Path, *, now: Callable[[], float] = time.time, pulse: Pulse | None = None, **settings_s: float
) -> AsyncIterator[Night]:
    with hold_data_folder(data_dir):
        async with open_db(data_dir / "darkroom.db") as db:
            await add_dataset(db)
            settings = SETTINGS.model_copy(update={"heartbeat_timeout_s": 30.0, "stop_grace_s": 1.0} | settings_s)
            services = Services(db, data_dir, settings=settings, now=now, pulse=pulse)
            await services.store.slots.set(slots_of(two_gpus(), None))
            tasks = [asyncio.create_task(services.dispatcher.run()), asyncio.create_task(services.sender.run())]
            try:
                yield Night(db, data_dir, services)
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
    """SQLite's own limit, which fails as a full disk does (SQLITE_FULL)."""
    (pages,) = (await db.all("PRAGMA page_count"))[0]
    await db._writer.execute_fetchall(f"PRAGMA max_page_count={pages}")
    yield
    await db._writer.execute_fetchall("PRAGMA max_page_count=1000000")


@asynccontextmanager
async def read_only(db: Database) -> AsyncIterator[None]:
    await db._writer.execute_fetchall("PRAGMA query_only=ON")
    yield
    await db._writer.execute_fetchall("PRAGMA query_only=OFF")


async def submit_forever(night: Night, accepted: list[Job]) -> None:
    while True:
        accepted.append(await night.submit("plain"))


@pytest.mark.parametrize(("trouble", "word"), [(full, "full"), (read_only, "read-only")])
async def test_what_cannot_be_written_is_refused_in_a_sentence_and_all_goes_on_afterwards(
    tmp_path: Path, trouble: Callable[[Database], AbstractAsyncContextManager[None]], word: str
) -> None:
    async with a_night(tmp_path / "data") as night:
        running = await night.submit("long")
        await night.until(running, State.RUNNING, epoch=1)
        accepted: list[Job] = [running]
        async with trouble(night.db):
            with pytest.raises(DatabaseUnwritable, match=f"{word}.*Nothing was changed"):
                await submit_forever(night, accepted)
            await asyncio.sleep(0.5)
            assert len(await night.store.recent(10, limit=1000)) == len(accepted)
        for job in accepted[2:]:
            await night.store.request_stop(job.id, by=1, intent=StopIntent.CANCEL)
        last = await night.submit("plain")
        for job in (running, last):
            await night.until(job, State.SUCCEEDED)
        told = Counter(await night.told())
        assert set(told.values()) == {1}
        assert {f"#{running.id} epoch {number}" for number in range(1, 9)} <= set(told)


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


async def test_a_disk_that_fills_up_at_night_loses_nothing(small_disk: Path) -> None:
    async with a_night(small_disk / "data") as night:
        running, waiting = await night.submit("plain"), await night.submit("plain", owner=2)
        await night.until(running, State.RUNNING)
        filler = small_disk / "filler"
        fill(filler)
        refused = 0
        for _ in range(20):
            try:
                await night.submit("plain")
            except DatabaseUnwritable:
                refused += 1
        assert refused
        await asyncio.sleep(1)
        filler.unlink()
        for job in await night.store.recent(10, limit=100):
            await night.until(job, State.SUCCEEDED)
        assert {running.id, waiting.id} <= {job.id for job in await night.store.recent(10, limit=100)}
        assert set(Counter(await night.told()).values()) == {1}


# -- processes -----------------------------------------------------------------------------------------------------


async def test_a_trainer_that_was_stopped_by_the_system_is_killed_and_its_job_goes_on(tmp_path: Path) -> None:
    start = time.monotonic()
    pulse = Pulse(monotonic=lambda: start + 100 * (time.monotonic() - start))
    async with a_night(tmp_path / "data", pulse=pulse) as night:
        job = await night.submit("long")
        await night.until(job, State.RUNNING, epoch=2)
        stopped = night.trainer(job)
        os.kill(stopped, signal.SIGSTOP)
        await night.until(job, State.SUCCEEDED)
        assert night.trainer(job) != stopped
        told = await night.told()
        assert [text for text in told if " epoch " in text] == [f"#1 epoch {number}" for number in range(1, 9)], told
        assert told.count("#1 lost 1") == 1


async def test_a_trainer_whose_main_thread_hangs_while_its_heart_beats_is_killed_and_its_job_goes_on(
    tmp_path: Path,
) -> None:
    start = time.monotonic()
    pulse = Pulse(monotonic=lambda: start + 100 * (time.monotonic() - start))
    async with a_night(tmp_path / "data", pulse=pulse, heartbeat_timeout_s=3600.0, hang_timeout_s=600.0) as night:
        job = await night.submit("hangs")
        await night.until(job, State.RUNNING, epoch=1)
        hanging = night.trainer(job)
        await night.until(job, State.SUCCEEDED)
        assert night.trainer(job) != hanging
        assert (await night.store.get(job.id)).attempt == 2
        told = await night.told()
        assert [text for text in told if " epoch " in text] == [f"#1 epoch {number}" for number in range(1, 4)], told
        assert told.count("#1 lost 1") == 1
        lost = await night.db.one("SELECT why FROM attempt WHERE attempt = 1")
        assert lost is not None
        assert "in epoch 2 (it hung: no word for 10 min although its process lived)" in lost["why"]


async def test_a_trainer_that_hears_no_stop_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with a_night(tmp_path / "data") as night:
        job = await night.submit("deaf")
        await night.until(job, State.RUNNING, epoch=1)
        trainer = read_process_file(tmp_path / "data" / "jobs" / job.folder)
        await night.store.request_stop(job.id, by=1, intent=StopIntent.CANCEL)
        await night.until(job, State.CANCELLED)
        assert trainer is not None
        assert not trainer.is_alive()
        assert (await night.told()).count("#1 cancelled") == 1


async def test_rubbish_among_a_trainer_s_events_harms_nobody(tmp_path: Path) -> None:
    async with a_night(tmp_path / "data") as night:
        bad, good = await night.submit("garbles"), await night.submit("plain")
        for job in (bad, good):
            await night.until(job, State.SUCCEEDED)
        epochs = [text for text in await night.told() if " epoch " in text]
        assert sorted(epochs) == sorted(f"#{job.id} epoch {epoch}" for job in (bad, good) for epoch in (1, 2, 3))


# -- clocks --------------------------------------------------------------------------------------------------------


async def test_a_clock_that_jumps_forward_and_back_keeps_nobody_waiting_and_kills_nobody(tmp_path: Path) -> None:
    ahead_s = 0.0
    async with a_night(tmp_path / "data", now=lambda: time.time() + ahead_s) as night:
        jobs = [await night.submit(name) for name in ("long", "dies", "long", "plain")]
        for jump in (86_400.0, -86_400.0, 3600.0, 0.0):
            ahead_s = jump
            await asyncio.sleep(0.2)
        for job in jobs:
            await night.until(job, State.SUCCEEDED)
        assert [(await night.store.get(job.id)).attempt for job in jobs] == [1, 2, 1, 1]
        # A card that is a day old by the clock is sent anew, which is no post.
        assert set(Counter(text for text in await night.told() if not text.endswith("card")).values()) == {1}


# -- bots and machines ---------------------------------------------------------------------------------------------


def test_a_bot_that_stood_still_catches_up(tmp_path: Path) -> None:
    team = Team(tmp_path)
    bot = team.start_bot()
    deadline = time.monotonic() + 30
    while not (team.data_dir.with_suffix(".discord").exists() and len(team.texts()) > 3):
        assert time.monotonic() < deadline, team.log.read_text()
        time.sleep(0.02)
    bot.send_signal(signal.SIGSTOP)
    time.sleep(2)
    bot.send_signal(signal.SIGCONT)
    assert team.wait_for(bot) == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)


def test_a_second_bot_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    team = Team(tmp_path)
    with hold_data_folder(team.data_dir):
        assert team.run_bot() == 1
    assert "Another bot already works on" in team.log.read_text()
    assert not (team.data_dir / "darkroom.db").exists()


def test_a_reboot_counts_for_nobody(tmp_path: Path) -> None:
    """As after a power cut: no process of the last boot lives, and what is written down names that boot."""
    team = Team(tmp_path)
    assert team.run_bot(crash_at="handle_stored:2") == -signal.SIGKILL
    team.cut_power()
    running = [row["id"] for row in team.rows("SELECT id FROM job WHERE handle IS NOT NULL")]
    assert running
    rename_boot(team.data_dir)
    assert team.run_bot() == 0, team.log.read_text()[-6000:]
    assert_nothing_is_lost_or_doubled(team)
    cut_off = team.rows("SELECT job_id, why FROM attempt WHERE why LIKE '%its machine went down%'")
    assert {row["job_id"] for row in cut_off} <= set(running)
    assert cut_off
    assert all("(attempt " not in row["why"] for row in cut_off)


def rename_boot(data_dir: Path) -> None:
    with closing(sqlite3.connect(data_dir / "darkroom.db")) as db:
        for job_id, handle in db.execute("SELECT id, handle FROM job WHERE handle IS NOT NULL").fetchall():
            db.execute("UPDATE job SET handle = ? WHERE id = ?", (of_another_boot(handle), job_id))
        db.commit()
    for path in data_dir.glob("jobs/*/process.json"):
        path.write_text(of_another_boot(path.read_text()))


def of_another_boot(text: str) -> str:
    return re.sub(r'("boot_id": ?)"[^"]*"', r'\1"another boot"', text)
