"""Migrations: a second one is made up here, since nothing is released; the mechanism is the product's."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bot.bot_failpoints import FAILPOINT_VARIABLE
from bot.db import database as module
from bot.db import open_db, open_to_read, schema_of
from bot.db.database import migrations
from bot.db.errors import SchemaTooNew, SchemaTooOld
from tests.bot.conftest import add_dataset

ROOT = Path(__file__).parents[3]
#: As later migrations will: a table is replaced, and its rows and the references to it are kept.
SECOND = """
PRAGMA defer_foreign_keys = ON;

CREATE TABLE served_before AS SELECT * FROM served;

DROP TABLE served;

CREATE TABLE served (
    kind     TEXT    NOT NULL,
    priority INTEGER NOT NULL,
    owner_id INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    note     TEXT    NOT NULL DEFAULT 'kept',
    PRIMARY KEY (kind, priority, owner_id)
) STRICT, WITHOUT ROWID;

INSERT INTO served (kind, priority, owner_id, turn) SELECT * FROM served_before;

DROP TABLE served_before;
"""
#: Opens a database with the second migration, in a process that a test may kill.
MIGRATE = """
import asyncio, pathlib, sys
from bot.db import database

path, second = pathlib.Path(sys.argv[1]), sys.argv[2]
known = database.migrations()
database.migrations = lambda: [*known, second]

async def main():
    async with database.open_db(path):
        pass

asyncio.run(main())
"""


@pytest.fixture
async def first_schema(tmp_path: Path) -> Path:
    """A database of the first schema, with rows."""
    path = tmp_path / "darkroom.db"
    async with open_db(path) as db:
        await add_dataset(db)
        async with db.transaction() as connection:
            await connection.execute_fetchall("INSERT INTO served VALUES ('train', 0, 1, 7), ('train', 1, 2, 3)")
    return path


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def schema(path: Path) -> int:
    ((number,),) = rows(path, "PRAGMA user_version")
    assert isinstance(number, int)
    return number


async def test_a_new_database_has_the_newest_schema(tmp_path: Path) -> None:
    async with open_db(tmp_path / "darkroom.db") as db:
        assert await schema_of(db) == len(migrations())
        assert await db.all("PRAGMA foreign_key_check") == []


async def test_a_second_migration_keeps_every_row(first_schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrations()
    monkeypatch.setattr(module, "migrations", lambda: [*known, SECOND])
    async with open_db(first_schema) as db:
        assert await schema_of(db) == len(known) + 1
        assert [tuple(row) for row in await db.all("SELECT * FROM served")] == [
            ("train", 0, 1, 7, "kept"),
            ("train", 1, 2, 3, "kept"),
        ]
        assert [row["name"] for row in await db.all("SELECT name FROM dataset")] == ["foxes"]
        assert await db.all("PRAGMA foreign_key_check") == []


async def test_a_migration_that_fails_changes_nothing_and_can_be_repeated(
    first_schema: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()
    broken = SECOND + "CREATE TABLE setting (a);\n"
    monkeypatch.setattr(module, "migrations", lambda: [*known, broken])
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        async with open_db(first_schema):
            pass
    assert schema(first_schema) == len(known)
    assert rows(first_schema, "SELECT * FROM served") == [("train", 0, 1, 7), ("train", 1, 2, 3)]

    monkeypatch.setattr(module, "migrations", lambda: [*known, SECOND])
    async with open_db(first_schema) as db:
        assert await schema_of(db) == len(known) + 1


def test_a_bot_killed_in_a_migration_leaves_the_old_schema_or_the_new_one(first_schema: Path) -> None:
    known = len(migrations())
    # Killed by itself in the middle of the second migration, before its commit.
    killed_within = SECOND.replace("DROP TABLE served_before;", "SELECT kill();")
    script = MIGRATE.replace(
        "async def main",
        "connect = database._connect\n"
        "async def connect_with_kill(stack, path):\n"
        "    connection = await connect(stack, path)\n"
        "    import os\n"
        "    await connection.create_function('kill', 0, lambda: os.kill(os.getpid(), 9))\n"
        "    return connection\n"
        "database._connect = connect_with_kill\n\n"
        "async def main",
    )
    done = subprocess.run([sys.executable, "-c", script, str(first_schema), killed_within], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert schema(first_schema) == known
    assert rows(first_schema, "SELECT * FROM served") == [("train", 0, 1, 7), ("train", 1, 2, 3)]

    # Killed after the commit.
    done = subprocess.run(
        [sys.executable, "-c", MIGRATE, str(first_schema), SECOND],
        cwd=ROOT,
        env={**os.environ, FAILPOINT_VARIABLE: "migrated"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert schema(first_schema) == known + 1
    assert rows(first_schema, "SELECT note FROM served") == [("kept",), ("kept",)]
    assert rows(first_schema, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(("number", "error"), [(999, SchemaTooNew), (0, SchemaTooOld)])
async def test_a_reader_refuses_another_schema_and_changes_nothing(
    first_schema: Path, number: int, error: type[Exception]
) -> None:
    with closing(sqlite3.connect(first_schema)) as connection:
        connection.execute(f"PRAGMA user_version = {number}")
    with pytest.raises(error):
        async with open_to_read(first_schema):
            pass
    assert schema(first_schema) == number
