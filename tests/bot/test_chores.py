"""Chores by the clock, called without it; and that the clock calls them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bot.datasets import DatasetStore
from bot.db import Database
from bot.queue import DraftStore, JobStore
from bot.schedule import Schedule, SilenceWatch, empty_wal, sweep_drafts, sweep_leftovers
from tests.bot.conftest import Submit
from tests.bot.fakes import Clock, started, step_done


async def test_a_silent_training_is_noted_once_for_each_silence(
    store: JobStore, submit: Submit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    watch = SilenceWatch(store, silence_s=600, now=clock)
    await submit()
    await store.claim(1)
    await store.ingest(1, 1, [started(1)], 10)
    await watch.look()
    clock.advance(601)
    await watch.look()
    await watch.look()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "#1 has said nothing for 10 min; its process lives"
    ]
    await store.ingest(1, 1, [step_done(2, 1)], 20)
    clock.advance(1200)
    await watch.look()
    assert "20 min" in caplog.text


async def test_the_log_of_the_database_is_emptied(db: Database) -> None:
    def wal_bytes() -> int:
        return Path(f"{db.path}-wal").stat().st_size

    assert wal_bytes() > 0
    await empty_wal(db)
    assert wal_bytes() == 0


async def test_the_schedule_starts_and_stops(db: Database, store: JobStore, tmp_path: Path) -> None:
    datasets = DatasetStore(db, data_dir=tmp_path / "data")
    drafts = DraftStore(db)
    await sweep_leftovers(datasets)
    await sweep_drafts(drafts)
    schedule = Schedule(db=db, datasets=datasets, drafts=drafts, jobs=store, silence_s=600)
    schedule.start()
    schedule.stop()
