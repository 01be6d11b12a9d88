"""Databases that earlier versions wrote, with rows in them, opened by this one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bot.config import LimitSettings
from bot.datasets import DatasetStore
from bot.db import Database, open_db
from bot.db import database as module
from bot.db.database import migrations
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore, NewJob, State
from tests.bot.conftest import set_slots
from tests.bot.fakes import finished
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


# -- from every released schema ------------------------------------------------------------------------------------

RELEASED = sorted((Path(__file__).parent / "schemas").glob("v*.sql"))


def test_every_schema_but_the_newest_is_kept_as_it_was_released() -> None:
    assert [path.stem for path in RELEASED] == [f"v{number}" for number in range(1, len(migrations()))]


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database as a bot of that version left it, in the middle of its work."""
    path = tmp_path / "darkroom.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(request.param.read_text(encoding="utf-8"))
    return path


async def test_nothing_is_lost_or_changed_on_the_way_from_a_released_schema(released: Path, tmp_path: Path) -> None:
    def all_rows() -> dict[str, list[dict[str, object]]]:
        with closing(sqlite3.connect(released)) as connection:
            connection.row_factory = sqlite3.Row
            return {
                table: [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
                for table in ("dataset", "job", "job_event", "outbox", "card", "setting")
            }

    before = all_rows()
    async with open_db(released) as db:
        assert await db.all("PRAGMA foreign_key_check") == []
        integrity = await db.one("PRAGMA integrity_check")
        assert integrity is not None
        assert integrity[0] == "ok"
        jobs = await jobs_of(db, tmp_path).recent(10)
        assert [job.id for job in jobs] == [10, 9, 8, 6, 5, 4, 3, 2, 1]
    after = all_rows()
    for table, rows in before.items():
        kept = after[table][: len(rows)]
        assert [{name: row[name] for name in was} for was, row in zip(rows, kept, strict=True)] == rows, table


async def test_the_line_of_a_released_schema_goes_on_in_its_order(released: Path, tmp_path: Path) -> None:
    async with open_db(released) as db:
        jobs = jobs_of(db, tmp_path)
        # The interrupted one first, then in turns between people.
        assert await jobs.line() == [4, 5, 6, 10]


async def test_trainings_of_a_released_schema_run_on_and_hold_their_place(released: Path, tmp_path: Path) -> None:
    async with open_db(released) as db:
        jobs = jobs_of(db, tmp_path)
        await set_slots(jobs, 2)
        assert [(busy.job_id, busy.attempt, busy.read_bytes) for busy in await jobs.runs.busy()] == [
            (2, 1, 500),
            (3, 1, 500),
        ]
        assert await jobs.runs.claim() is None, "two run, and there is room for two"
        assert await jobs.runs.ingest(2, 1, [finished(7)], 600)
        assert (await jobs.get(2)).state is State.SUCCEEDED
        claimed = await jobs.runs.claim()
        assert claimed is not None
        assert (claimed.job_id, claimed.attempt) == (4, 2)


async def test_requests_of_a_released_schema_go_on_waiting(tmp_path: Path) -> None:
    path = tmp_path / "darkroom.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(RELEASED[1].read_text(encoding="utf-8"))
    async with open_db(path) as db:
        rows = await db.all("SELECT interaction_id, wishes FROM job WHERE state = 'draft' ORDER BY id")
        assert [tuple(row) for row in rows] == [(201, '{"preset":"lora"}'), (202, '{"preset":"lora"}')]
        newest = await DraftStore(db, now=lambda: 2001.0).waiting(5, 7)
        assert newest is not None
        assert newest.interaction_id == 202
