"""The database: one writer, atomic transactions, migrations, and one bot for a data folder."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bot.db import Database, hold_data_folder, open_db
from bot.db.database import migrations, read_setting, write_setting
from bot.db.errors import DatabaseDamaged, FolderInUse, SchemaTooNew

ROOT = Path(__file__).parents[3]


async def test_the_pragmas_make_commits_durable(db: Database) -> None:
    async with db.transaction() as connection:
        found = {}
        for pragma in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "user_version"):
            found[pragma] = next(iter(await connection.execute_fetchall(f"PRAGMA {pragma}")))[0]
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 10000,
        "foreign_keys": 1,
        "user_version": len(migrations()),
    }


async def test_a_transaction_is_atomic_and_others_wait_for_it(db: Database) -> None:
    committed: list[str] = []

    async def add(value: str) -> None:
        async with db.transaction() as connection:
            (known,) = next(iter(await connection.execute_fetchall("SELECT COUNT(*) FROM setting")))
            await asyncio.sleep(0)
            db.after_commit(lambda: committed.append(value))
            await connection.execute_fetchall("INSERT INTO setting VALUES (?, ?)", (f"{known}", value))
            if value == "c":
                raise RuntimeError("no")

    results = await asyncio.gather(*(add(value) for value in "abcde"), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), RuntimeError, type(None), type(None)]
    assert [tuple(row) for row in await db.all("SELECT * FROM setting ORDER BY name")] == [
        ("0", "a"),
        ("1", "b"),
        ("2", "d"),
        ("3", "e"),
    ]
    assert committed == list("abde")


async def test_two_bots_that_read_and_then_write_wait_for_each_other(db: Database) -> None:
    """With a deferred BEGIN the second writer gets SQLITE_BUSY at once, whatever the timeout is."""
    await write_setting(db, "count", "0")

    async def count_on(database: Database) -> None:
        for _ in range(10):
            async with database.transaction() as connection:
                (known,) = next(iter(await connection.execute_fetchall("SELECT value FROM setting")))
                await asyncio.sleep(0)
                await connection.execute_fetchall("UPDATE setting SET value = ?", (str(int(known) + 1),))

    async with open_db(db.path) as other:
        await asyncio.gather(count_on(db), count_on(other))
    assert await read_setting(db, "count") == "20"


async def test_a_cancelled_transaction_leaves_nothing_and_the_next_one_works(db: Database) -> None:
    reached = asyncio.Event()

    async def hang() -> None:
        async with db.transaction() as connection:
            await connection.execute_fetchall("INSERT INTO setting VALUES ('a', 'b')")
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await write_setting(db, "c", "d")

    assert await read_setting(db, "a") is None
    assert await read_setting(db, "c") == "d"


async def test_a_reader_sees_only_what_is_committed_and_cannot_write(db: Database) -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall("INSERT INTO setting VALUES ('a', 'b')")
        assert await db.all("SELECT * FROM setting") == []
    assert len(await db.all("SELECT * FROM setting")) == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await db.all("DELETE FROM setting")


async def test_a_newer_schema_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    async with open_db(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()

    with pytest.raises(SchemaTooNew, match=f"schema 999; this one knows {len(migrations())}"):
        async with open_db(path):
            pass
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (999,)
    connection.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    path.write_bytes(b"this is no database, it only looks long enough to be one" * 100)
    with pytest.raises(DatabaseDamaged, match="is damaged"):
        async with open_db(path):
            pass


def test_a_second_bot_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = hold_data_folder(tmp_path / "data")
    second = hold_data_folder(tmp_path / "data")
    with first, pytest.raises(FolderInUse, match="Another bot already uses"), second:
        pass
    with hold_data_folder(tmp_path / "data"):
        pass


def test_the_folder_is_free_after_its_bot_was_killed_even_if_a_child_lives(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, subprocess, sys\n"
        "from bot.db import hold_data_folder\n"
        "with hold_data_folder(pathlib.Path(sys.argv[1])):\n"
        "    child = subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3, close_fds=False)\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -9
    try:
        with hold_data_folder(tmp_path):
            pass
    finally:
        subprocess.run(["kill", done.stdout.decode().strip()], check=True)
