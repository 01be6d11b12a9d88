"""Databases that earlier versions wrote, with rows in them, opened by this one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bot.config import LimitSettings
from bot.datasets import DatasetStore
from bot.db import Database, open_db
from bot.db import database as module
from bot.db.database import migrations
from bot.outbox import Outbox
from bot.queue import JobStore, NewJob, State
from trainer.protocol.edits import Edits
from trainer.protocol.spec import make_spec

COUNTS = '{"images":9,"kept":9,"dropped":0,"refused":0,"train":7,"validation":1,"test":1,"captioned":9}'


@pytest.fixture
async def first_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of schema 1: two datasets, and three jobs that point to the second."""
    path = tmp_path / "darkroom.db"
    first = migrations()[:1]
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: first)
        async with open_db(path) as db, db.transaction() as connection:
            for number, name in ((3, "foxes"), (7, "owls")):
                await connection.execute_fetchall(
                    """INSERT INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
                       VALUES (?, 10, 5, ?, ?, 'd', ?, 'Nine.', 1000.5)""",
                    (number, name, name * 8, COUNTS),
                )
            for number in (1, 2, 3):
                await connection.execute_fetchall(
                    """INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state,
                                        created_at)
                       VALUES (?, 10, 100, 5, 7, 'owl', ?, 'queued', 0)""",
                    (number, make_spec({"name": "owl", "dataset": f"/d/{'owls' * 8}/prepared"}).model_dump_json()),
                )
                await connection.execute_fetchall("INSERT INTO job_event VALUES (?, 1, 1, 'x', 'y')", (number,))
    return path


def jobs_of(db: Database, tmp_path: Path) -> JobStore:
    return JobStore(db, Outbox(db), data_dir=tmp_path, limits=LimitSettings(max_jobs_per_user=100))


async def test_datasets_and_jobs_of_the_first_version_are_there_and_still_belong_together(
    first_version: Path, tmp_path: Path
) -> None:
    async with open_db(first_version) as db:
        store = DatasetStore(db, data_dir=tmp_path)
        datasets = await store.search(10)
        assert [(each.id, each.name, each.owner_id, each.counts.kept) for each in datasets] == [
            (7, "owls", 5, 9),
            (3, "foxes", 5, 9),
        ]
        assert datasets[0].folder == tmp_path / "datasets" / ("owls" * 8) / "prepared"
        assert (datasets[0].edits, datasets[0].is_pending) == (Edits(), False)
        assert datasets[0].created_at.timestamp() == 1000.5
        jobs = await jobs_of(db, tmp_path).recent(10)
        assert [(job.id, job.dataset_id, job.dataset_name) for job in jobs] == [(n, 7, "owls") for n in (3, 2, 1)]
        assert len(await db.all("SELECT * FROM job_event")) == 3
        assert await db.all("PRAGMA foreign_key_check") == []
        assert await db.all("SELECT name FROM sqlite_master WHERE name = 'dataset_before'") == []


async def test_after_it_references_are_still_held_and_new_rows_get_new_numbers(
    first_version: Path, tmp_path: Path
) -> None:
    async with open_db(first_version) as db:
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            async with db.transaction() as connection:
                await connection.execute_fetchall("DELETE FROM dataset WHERE id = 7")
        spec = make_spec({"name": "x", "dataset": "/x"})
        new = NewJob(interaction_id=9, guild_id=10, channel_id=1, owner_id=5, dataset_id=99, spec=spec)
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            await jobs_of(db, tmp_path).submit(new)
        async with db.transaction() as connection:
            rows = await connection.execute_fetchall(
                """INSERT INTO dataset (guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
                   VALUES (10, 5, 'new', 'n', 'd', ?, '', 0) RETURNING id""",
                (COUNTS,),
            )
        assert [row[0] for row in rows] == [8]


async def test_a_running_training_goes_on_over_the_update(first_version: Path, tmp_path: Path) -> None:
    async with open_db(first_version) as db:
        jobs = jobs_of(db, tmp_path)
        claimed = await jobs.claim(1)
        assert claimed is not None
        assert (await jobs.get(claimed.job_id)).state is State.RUNNING
