"""A copy replaces the database completely or not at all, and catches up with what happened since."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bot.db import DATABASE_FILE, Database, copy_database, hold_data_folder, open_db
from bot.db.database import migrations
from bot.db.errors import CopyRefused, FolderInUse
from bot.operations.backup import OrphanProcess, restored_text, run_restore
from bot.outbox import Destination, Outbox
from bot.queue import JobStore, State
from bot.runners import Handle
from tests.bot.conftest import GUILD, add_dataset, claim, make_store, submitter
from tests.bot.fakes import FakeClock
from trainer.exchange.attempt import write_attempt
from trainer.exchange.process import PROCESS_FILE, identify


class BotFolder:
    """A data folder whose bot a test starts and stops."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.data_dir = tmp_path / "data"
        self.database = self.data_dir / DATABASE_FILE
        self.copy = tmp_path / "copy.db"
        self.clock = FakeClock()

    def fence(self, job_id: int, attempt: int) -> Path:
        job_dir = self.data_dir / "jobs" / str(job_id)
        job_dir.mkdir(parents=True, exist_ok=True)
        write_attempt(job_dir, attempt)
        return job_dir

    def store(self, db: Database) -> JobStore:
        return make_store(db, Outbox(db, clock=self.clock), self.clock, self.tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON audit BEGIN DELETE FROM role_limit; END",
        "CREATE VIEW evil AS SELECT * FROM job",
        "CREATE TABLE evil (a)",
        "CREATE INDEX evil ON job (name)",
        "DROP INDEX {index}",
    ],
)
async def test_a_copy_with_another_schema_is_refused(folder: BotFolder, statement: str) -> None:
    before = folder.database.read_bytes()
    with closing(sqlite3.connect(folder.copy)) as connection:
        (index,) = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql NOT NULL").fetchone()
        connection.execute(statement.format(index=index))

    with pytest.raises(CopyRefused, match=r"differs from a database of Darkroom in (index|table|trigger|view) "):
        await run_restore(folder.copy, folder.data_dir)

    assert folder.database.read_bytes() == before


@pytest.fixture
async def folder(tmp_path: Path) -> BotFolder:
    """Two jobs, the first of which runs; a copy; and a third job that came after it."""
    folder = BotFolder(tmp_path)
    async with open_db(folder.database) as db:
        await add_dataset(db)
        store = folder.store(db)
        submit = submitter(store)
        await submit()
        await submit()
        busy = await claim(store, 1)
        assert busy is not None
        await store.attempts.set_handle(1, 1, Handle("{}"))
        await copy_database(folder.database, folder.copy)
        await submit(name="newcomer")
    return folder


async def test_a_copy_is_restored_and_the_previous_database_is_kept(folder: BotFolder) -> None:
    restored = await run_restore(folder.copy, folder.data_dir, clock=folder.clock)
    assert restored.copy.jobs == 2
    assert restored.set_aside is not None
    with closing(sqlite3.connect(restored.set_aside)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM job").fetchone() == (3,)
    async with open_db(folder.database) as db:
        assert [job.state for job in await folder.store(db).living(GUILD)] == [State.PREPARING, State.QUEUED]
    assert sorted(path.name for path in folder.data_dir.iterdir() if path.is_file()) == [
        "bot.lock",
        "darkroom.db",
        "darkroom.db.before-restore-20270115-080000",
    ]


async def test_a_database_with_the_log_of_a_killed_bot_is_set_aside_complete(folder: BotFolder) -> None:
    wal = folder.database.with_name("darkroom.db-wal")
    with closing(sqlite3.connect(folder.database)) as connection:
        connection.execute("INSERT INTO setting VALUES ('late', 'value')")
        connection.commit()
        kept = (folder.database.read_bytes(), wal.read_bytes())
    folder.database.write_bytes(kept[0])
    wal.write_bytes(kept[1])
    restored = await run_restore(folder.copy, folder.data_dir, clock=folder.clock)
    assert restored.set_aside is not None
    # The log was merged into the database: a power cut between two renames would separate them.
    assert not restored.set_aside.with_name(f"{restored.set_aside.name}-wal").exists()
    with closing(sqlite3.connect(restored.set_aside)) as connection:
        assert connection.execute("SELECT value FROM setting WHERE name = 'late'").fetchone() == ("value",)
    async with open_db(folder.database) as db:
        assert await db.one("SELECT 1 FROM setting WHERE name = 'late'") is None


async def test_attempts_are_raised_to_the_fence_of_jobs_started_since(folder: BotFolder) -> None:
    folder.fence(1, 4)
    folder.fence(2, 1)
    restored = await run_restore(folder.copy, folder.data_dir)
    assert restored.raised == (1, 2)
    async with open_db(folder.database) as db:
        rows = await db.all("SELECT id, attempt, uncounted FROM job ORDER BY id")
        assert [tuple(row) for row in rows] == [(1, 4, 3), (2, 1, 1)]
        assert [tuple(row) for row in await db.all("SELECT job_id, attempt FROM slot")] == [(1, 4)]
        store = folder.store(db)
        # The attempt of the fence is settled, with its slot and its line in the history.
        assert await store.attempts.lost(1, 4)
        assert [slot.job_id for slot in await store.slots.all()] == [None]
        rows = await db.all("SELECT attempt, outcome FROM attempt WHERE job_id = 1")
        assert [tuple(row) for row in rows] == [(4, "queued")]


async def test_no_job_number_is_assigned_twice(folder: BotFolder) -> None:
    folder.fence(7, 1)
    await run_restore(folder.copy, folder.data_dir)
    async with open_db(folder.database) as db:
        assert (await submitter(folder.store(db))(interaction=99)).id == 8


async def test_the_numbers_of_a_damaged_database_are_read_from_the_folders(folder: BotFolder) -> None:
    folder.fence(3, 1)
    folder.database.write_bytes(b"garbage" * 5000)
    restored = await run_restore(folder.copy, folder.data_dir)
    assert restored.set_aside is not None
    assert restored.set_aside.read_bytes() == b"garbage" * 5000
    async with open_db(folder.database) as db:
        assert (await submitter(folder.store(db))(interaction=99)).id == 4


async def test_a_trainer_of_an_unknown_job_is_reported(folder: BotFolder) -> None:
    me = identify(os.getpid())
    assert me is not None
    for job_id in (1, 3):
        (folder.fence(job_id, 1) / PROCESS_FILE).write_text(me.model_dump_json())
    restored = await run_restore(folder.copy, folder.data_dir)
    assert restored.orphans == (OrphanProcess(job_id=3, pid=os.getpid()),)
    assert f"kill {os.getpid()}" in restored_text(restored)


async def test_unsent_messages_are_rechecked_before_they_are_sent_again(folder: BotFolder) -> None:
    with closing(sqlite3.connect(folder.copy)) as connection:
        connection.execute(
            "INSERT INTO outbox (dedupe_key, job_id, channel_id, notification, nonce, created_at)"
            """ VALUES ('a', 1, 5, '{"kind": "lost", "job_id": 1}', 'n', 0)"""
        )
        connection.commit()
    await run_restore(folder.copy, folder.data_dir)
    async with open_db(folder.database) as db:
        pending = await Outbox(db).next_pending(Destination(channel_id=5))
        assert pending is not None
        assert pending.may_be_there


async def test_nothing_is_restored_under_a_running_bot(folder: BotFolder) -> None:
    before = folder.database.read_bytes()
    with hold_data_folder(folder.data_dir), pytest.raises(FolderInUse):
        await run_restore(folder.copy, folder.data_dir)
    assert folder.database.read_bytes() == before


@pytest.mark.parametrize("defect", ["missing", "text", "cut off", "too new", "another program's"])
async def test_an_unusable_copy_is_refused_and_nothing_is_changed(folder: BotFolder, defect: str) -> None:
    match defect:
        case "missing":
            folder.copy.unlink()
            reason = "there is no such file"
        case "text":
            folder.copy.write_text("some text" * 1000)
            reason = "it is damaged"
        case "cut off":
            folder.copy.write_bytes(folder.copy.read_bytes()[:50_000])
            reason = "it is damaged"
        case "too new":
            with closing(sqlite3.connect(folder.copy)) as connection:
                connection.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
            reason = "a newer Darkroom wrote it"
        case _:
            folder.copy.unlink()
            with closing(sqlite3.connect(folder.copy)) as connection:
                connection.execute("CREATE TABLE song (name TEXT)")
            reason = "not a database of Darkroom"
    before = folder.database.read_bytes()
    with pytest.raises(CopyRefused, match=reason) as refused:
        await run_restore(folder.copy, folder.data_dir)
    assert str(refused.value).endswith("Nothing was changed.")
    assert folder.database.read_bytes() == before
    assert not list(folder.data_dir.glob("*before*"))


async def test_a_copy_is_restored_into_an_empty_folder(folder: BotFolder, tmp_path: Path) -> None:
    restored = await run_restore(folder.copy, tmp_path / "new")
    assert restored.set_aside is None
    async with open_db(tmp_path / "new" / DATABASE_FILE) as db:
        assert len(await db.all("SELECT id FROM job")) == 2


async def test_a_copy_of_an_older_version_is_upgraded(folder: BotFolder, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(migrations()[0])
        connection.execute("PRAGMA user_version = 1")
    await run_restore(old, folder.data_dir)
    async with open_db(folder.database) as db:
        assert await db.all("SELECT id FROM job") == []
        assert [row["verb"] for row in await db.all("SELECT verb FROM audit")] == ["restore"]
