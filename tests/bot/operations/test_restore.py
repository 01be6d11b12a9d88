"""A copy takes the database's place whole or not at all; what happened since it was made is not forgotten."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bot.db import DATABASE_FILE, Database, copy_database, hold_data_folder, open_db
from bot.db.database import migrations
from bot.errors import CopyRefused, FolderInUse
from bot.operations.restore import run_restore
from bot.outbox import Outbox
from bot.queue import JobStore, State
from bot.runners import Handle
from tests.bot.conftest import GUILD, add_dataset, claim, make_store, submitter
from tests.bot.fakes import Clock
from trainer.protocol.attempt import write_attempt
from trainer.protocol.process import PROCESS_FILE, identify


class Room:
    """A data folder whose bot is started and stopped by the test."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.data_dir = tmp_path / "data"
        self.database = self.data_dir / DATABASE_FILE
        self.copy = tmp_path / "copy.db"
        self.clock = Clock()

    def fence(self, job_id: int, attempt: int) -> Path:
        job_dir = self.data_dir / "jobs" / str(job_id)
        job_dir.mkdir(parents=True, exist_ok=True)
        write_attempt(job_dir, attempt)
        return job_dir

    def store(self, db: Database) -> JobStore:
        return make_store(db, Outbox(db, now=self.clock), self.clock, self.tmp_path)


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    """Two jobs, the first of which runs; a copy; and a third job that came after it."""
    room = Room(tmp_path)
    async with open_db(room.database) as db:
        await add_dataset(db)
        store = room.store(db)
        submit = submitter(store)
        await submit()
        await submit()
        busy = await claim(store, 1)
        assert busy is not None
        await store.runs.started(1, 1, Handle("{}"))
        await copy_database(room.database, room.copy)
        await submit(name="newcomer")
    return room


async def test_a_restored_database_is_the_copy_and_the_other_one_is_kept(room: Room) -> None:
    restored = await run_restore(room.copy, room.data_dir, now=room.clock)
    assert restored.copy.jobs == 2
    assert restored.aside is not None
    with closing(sqlite3.connect(restored.aside)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM job").fetchone() == (3,)
    async with open_db(room.database) as db:
        assert [job.state for job in await room.store(db).active(GUILD)] == [State.PREPARING, State.QUEUED]
    assert sorted(path.name for path in room.data_dir.iterdir() if path.is_file()) == [
        "bot.lock",
        "darkroom.db",
        "darkroom.db.before-restore-20270115-080000",
    ]


async def test_a_database_with_a_log_of_a_killed_bot_is_put_aside_whole(room: Room) -> None:
    wal = room.database.with_name("darkroom.db-wal")
    with closing(sqlite3.connect(room.database)) as connection:
        connection.execute("INSERT INTO setting VALUES ('late', 'word')")
        connection.commit()
        kept = (room.database.read_bytes(), wal.read_bytes())
    room.database.write_bytes(kept[0])
    wal.write_bytes(kept[1])
    restored = await run_restore(room.copy, room.data_dir, now=room.clock)
    assert restored.aside is not None
    # Within the database itself: a power cut between two renames would part it from its log.
    assert not restored.aside.with_name(f"{restored.aside.name}-wal").exists()
    with closing(sqlite3.connect(restored.aside)) as connection:
        assert connection.execute("SELECT value FROM setting WHERE name = 'late'").fetchone() == ("word",)
    async with open_db(room.database) as db:
        assert await db.one("SELECT 1 FROM setting WHERE name = 'late'") is None


async def test_the_fence_holds_for_jobs_that_were_started_since(room: Room) -> None:
    room.fence(1, 4)
    room.fence(2, 1)
    restored = await run_restore(room.copy, room.data_dir)
    assert restored.raised == (1, 2)
    assert "Started since the copy was made: #1, #2." in str(restored)
    async with open_db(room.database) as db:
        rows = await db.all("SELECT id, attempt, excused FROM job ORDER BY id")
        assert [tuple(row) for row in rows] == [(1, 4, 3), (2, 1, 1)]
        assert [tuple(row) for row in await db.all("SELECT job_id, attempt FROM slot")] == [(1, 4)]
        store = room.store(db)
        # What is settled now is the start of the fence, with its slot and its line in the history.
        assert await store.runs.lost(1, 4)
        assert [slot.job_id for slot in await store.slots.all()] == [None]
        rows = await db.all("SELECT attempt, outcome FROM attempt WHERE job_id = 1")
        assert [tuple(row) for row in rows] == [(4, "queued")]


async def test_no_number_of_a_job_is_given_away_twice(room: Room) -> None:
    room.fence(7, 1)
    await run_restore(room.copy, room.data_dir)
    async with open_db(room.database) as db:
        assert (await submitter(room.store(db))(interaction=99)).id == 8


async def test_the_numbers_of_a_damaged_database_are_read_from_the_folders(room: Room) -> None:
    room.fence(3, 1)
    room.database.write_bytes(b"garbage" * 5000)
    restored = await run_restore(room.copy, room.data_dir)
    assert restored.aside is not None
    assert restored.aside.read_bytes() == b"garbage" * 5000
    async with open_db(room.database) as db:
        assert (await submitter(room.store(db))(interaction=99)).id == 4


async def test_a_trainer_of_a_job_that_the_copy_does_not_know_is_named(room: Room) -> None:
    me = identify(os.getpid())
    assert me is not None
    for job_id in (1, 3):
        (room.fence(job_id, 1) / PROCESS_FILE).write_text(me.model_dump_json())
    restored = await run_restore(room.copy, room.data_dir)
    assert [(one.job_id, one.pid) for one in restored.strangers] == [(3, os.getpid())]
    assert f"Process {os.getpid()} still trains #3" in str(restored)


async def test_what_waited_to_be_sent_is_looked_for_before_it_is_sent_again(room: Room) -> None:
    with closing(sqlite3.connect(room.copy)) as connection:
        connection.execute(
            "INSERT INTO outbox (dedupe_key, job_id, channel_id, notice, nonce, created_at)"
            """ VALUES ('a', 1, 5, '{"kind": "lost", "job_id": 1}', 'n', 0)"""
        )
        connection.commit()
    await run_restore(room.copy, room.data_dir)
    async with open_db(room.database) as db:
        posting = await Outbox(db).next_posting(5)
        assert posting is not None
        assert posting.may_be_there


async def test_nothing_is_restored_under_a_running_bot(room: Room) -> None:
    before = room.database.read_bytes()
    with hold_data_folder(room.data_dir), pytest.raises(FolderInUse):
        await run_restore(room.copy, room.data_dir)
    assert room.database.read_bytes() == before


@pytest.mark.parametrize("what", ["missing", "text", "cut off", "too new", "another program's"])
async def test_a_copy_that_is_of_no_use_is_refused_and_nothing_is_changed(room: Room, what: str) -> None:
    match what:
        case "missing":
            room.copy.unlink()
            words = "there is no such file"
        case "text":
            room.copy.write_text("a diary" * 1000)
            words = "it is damaged"
        case "cut off":
            room.copy.write_bytes(room.copy.read_bytes()[:50_000])
            words = "it is damaged"
        case "too new":
            with closing(sqlite3.connect(room.copy)) as connection:
                connection.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
            words = "a newer Darkroom wrote it"
        case _:
            room.copy.unlink()
            with closing(sqlite3.connect(room.copy)) as connection:
                connection.execute("CREATE TABLE song (name TEXT)")
            words = "no database of Darkroom's"
    before = room.database.read_bytes()
    with pytest.raises(CopyRefused, match=words) as refused:
        await run_restore(room.copy, room.data_dir)
    assert str(refused.value).endswith("Nothing was changed.")
    assert room.database.read_bytes() == before
    assert not list(room.data_dir.glob("*before*"))


async def test_a_copy_comes_into_an_empty_folder_too(room: Room, tmp_path: Path) -> None:
    restored = await run_restore(room.copy, tmp_path / "new")
    assert restored.aside is None
    async with open_db(tmp_path / "new" / DATABASE_FILE) as db:
        assert len(await db.all("SELECT id FROM job")) == 2


async def test_a_copy_of_an_older_version_is_brought_up_to_date(room: Room, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(migrations()[0])
        connection.execute("PRAGMA user_version = 1")
    await run_restore(old, room.data_dir)
    async with open_db(room.database) as db:
        assert await db.all("SELECT id FROM job") == []
        assert [row["verb"] for row in await db.all("SELECT verb FROM audit")] == ["restore"]
