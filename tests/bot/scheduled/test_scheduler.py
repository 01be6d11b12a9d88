"""The scheduler calls tasks by the clock, also after a jump and after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bot.config import Config, WebSettings
from bot.datasets import DatasetStore, PendingUploads, ResumableUploads
from bot.db import Database
from bot.db.database import read_setting
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore
from bot.queue.planning.windows import parse_windows
from bot.scheduled import AdmissionControl, DiskMonitor, ScheduledTask, Scheduler, plan_tasks
from bot.scheduled.cleanup import sweep_datasets, sweep_drafts, sweep_uploads
from bot.web import WebLinks
from tests.bot.fakes import eventually
from trainer.protocol.devices import Devices


@contextlib.asynccontextmanager
async def running(scheduler: Scheduler) -> AsyncIterator[None]:
    task = asyncio.create_task(scheduler.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_task_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def fail() -> None:
        raise OSError("the disk is gone")

    async def work() -> None:
        done.set()

    tasks = [
        ScheduledTask(name="fails", run=fail, when={"second": "*"}, at_start=True),
        ScheduledTask(name="works", run=work, when={"second": "*"}),
    ]
    async with running(Scheduler(tasks)), asyncio.timeout(60):
        await done.wait()
    assert "the task 'fails' failed" in caplog.text


async def test_a_shutdown_ends_a_task_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(Scheduler([ScheduledTask(name="works", run=work, when={"second": "*"})])):
        await began.wait()
    await ended.wait()
    # APScheduler logs an error once the task is over.
    for _turn in range(10):
        await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_clock_that_is_set_back_delays_no_task(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    scheduler = Scheduler([ScheduledTask(name="works", run=work, when={"second": "*"})], replan_s=0.01)
    async with running(scheduler):
        await asyncio.sleep(0.05)
        # After a jump back by a day, the next run is planned for the new tomorrow.
        [job] = scheduler.planned()
        job.modify(next_run_time=datetime.now(UTC) + timedelta(days=1))
        done.clear()
        async with asyncio.timeout(60):
            await done.wait()
    assert "the clock was set back" in caplog.text


async def test_the_write_ahead_log_is_truncated(db: Database) -> None:
    def wal_bytes() -> int:
        return Path(f"{db.path}-wal").stat().st_size

    assert wal_bytes() > 0
    await db.checkpoint()
    assert wal_bytes() == 0


async def test_all_tasks_are_planned_and_a_shutdown_is_recorded(
    db: Database, outbox: Outbox, store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets, drafts = DatasetStore(db, data_dir=tmp_path / "data"), DraftStore(db)
    uploads = ResumableUploads(
        db, outbox, PendingUploads(db), datasets, data_dir=tmp_path / "data", settings=WebSettings()
    )
    links = WebLinks(db, WebSettings())
    await sweep_uploads(uploads, links)
    await sweep_datasets(datasets)
    await sweep_drafts(drafts)

    async def query() -> Devices:
        return Devices()

    async def is_alive() -> bool:
        return await read_setting(db, "bot.last_seen") is not None

    config = Config.model_validate({"windows": {"timezone": "Europe/Berlin"}})
    disk = DiskMonitor(tmp_path, min_free_bytes=config.health.min_free_bytes)
    scheduler = plan_tasks(
        config,
        db=db,
        outbox=outbox,
        datasets=datasets,
        uploads=uploads,
        links=links,
        drafts=drafts,
        jobs=store,
        admission=AdmissionControl(parse_windows([], zone=ZoneInfo("Europe/Berlin")), disk),
        query_gpus=query,
        data_dir=tmp_path / "data",
    )
    await scheduler.record_start()
    async with running(scheduler):
        await asyncio.sleep(0.3)
        # Not before the report about the restart, which waits for the dispatcher's first pass.
        assert not await is_alive()
        scheduler.first_pass_done.set()
        await eventually(is_alive)
        alive_at = await read_setting(db, "bot.last_seen")
        assert {job.id for job in scheduler.planned()} == {
            "wakeup", "disk", "hangs", "alive", "drafts", "wal", "datasets", "uploads", "trash", "retention", "digest",
            "backup", "gpus",
        }  # fmt: skip
    assert float(await read_setting(db, "bot.last_seen") or 0) > float(alive_at or 0)
    assert "failed" not in caplog.text
