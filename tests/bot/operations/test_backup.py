"""A copy of the database is complete although it is in use, and never appears incomplete."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bot.config import BackupSettings, Config
from bot.db import DATABASE_FILE, Database, back_up, copy_database, open_db, verify_copy
from bot.db.database import write_setting
from bot.db.errors import CopyFailed, DatabaseDamaged, DatabaseUnreadable
from bot.operations.backup import run_backup
from tests.bot.conftest import Submit
from tests.bot.fakes import FakeClock


async def test_a_copy_has_what_was_committed_and_is_one_file(config: Config, submit: Submit, db: Database) -> None:
    await submit()
    report = await run_backup(config)
    (copy,) = config.backup_folder.iterdir()
    assert str(copy) in report
    verified = await verify_copy(copy)
    assert (verified.jobs, verified.datasets) == (1, 1)
    with closing(sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT state FROM job").fetchall() == [("queued",)]


async def test_a_copy_is_made_while_a_writer_continues(db: Database, tmp_path: Path) -> None:
    is_done = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not is_done.is_set():
            await write_setting(db, "number", str(written + 1))
            await write_setting(db, "twin", str(written + 1))
            written += 1

    writer = asyncio.create_task(write())
    overlaps = number = 0
    while overlaps < 3:
        number, before = number + 1, written
        await copy_database(db.path, tmp_path / f"{number}.db")
        overlaps += written > before
        assert number < 100, "the writer waited during each copy"
    is_done.set()
    await writer
    with closing(sqlite3.connect(tmp_path / f"{number}.db")) as connection:
        settings = dict(connection.execute("SELECT name, value FROM setting WHERE name IN ('number', 'twin')"))
    assert int(settings["number"]) - int(settings["twin"]) in {0, 1}, "one moment, not two"


async def test_a_copy_does_not_wait_for_a_writer(db: Database, tmp_path: Path) -> None:
    async with db.transaction() as connection:
        await connection.execute("INSERT INTO setting VALUES ('not', 'committed')")
        async with asyncio.timeout(60):
            await copy_database(db.path, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT * FROM setting WHERE name = 'not'").fetchall() == []


async def test_the_newest_copies_are_kept_and_other_files_are_not_deleted(db: Database, tmp_path: Path) -> None:
    folder, clock = tmp_path / "backups", FakeClock()
    folder.mkdir()
    (folder / "mine.db").touch()
    (folder / "darkroom-20010101-000000.db.part").touch()
    os.utime(folder / "darkroom-20010101-000000.db.part", (0, 0))
    for _ in range(5):
        await back_up(db.path, folder, keep=2, clock=clock)
        clock.advance(60)
    assert sorted(path.name for path in folder.iterdir()) == [
        "darkroom-20270115-080300.db",
        "darkroom-20270115-080400.db",
        "mine.db",
    ]


async def test_an_existing_file_is_never_overwritten(db: Database, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("precious")
    with pytest.raises(CopyFailed, match="a file of that name exists"):
        await copy_database(db.path, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"


async def test_a_missing_or_damaged_database_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreadable, match="no such file"):
        await copy_database(tmp_path / "nowhere.db", tmp_path / "copy.db")
    (tmp_path / "damaged.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseDamaged):
        await copy_database(tmp_path / "damaged.db", tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy.db*"))  # noqa: ASYNC240


def damage(database: Path, name: str) -> None:
    """Overwrite the first page of a table or index with noise."""
    with closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    with database.open("rb+") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xa5" * 4096)


@pytest.mark.parametrize("name", ["job", "audit_of_job"])
async def test_a_damaged_page_of_a_copy_is_found(db: Database, tmp_path: Path, name: str) -> None:
    copy = await copy_database(db.path, tmp_path / "copy.db")
    damage(copy.path, name)
    with pytest.raises(DatabaseDamaged):
        await verify_copy(copy.path)


async def test_a_damaged_table_is_not_copied_and_a_damaged_index_is_rebuilt(db: Database, tmp_path: Path) -> None:
    source = (await copy_database(db.path, tmp_path / "source.db")).path
    damage(source, "audit_of_job")
    await verify_copy((await copy_database(source, tmp_path / "index" / "copy.db")).path)
    damage(source, "job")
    (tmp_path / "table").mkdir()
    with pytest.raises(DatabaseDamaged):
        await copy_database(source, tmp_path / "table" / "copy.db")
    assert not list((tmp_path / "table").iterdir())


def test_a_bot_killed_before_the_rename_leaves_no_copy_that_looks_complete(data_dir: Path) -> None:
    asyncio.run(_make(data_dir / DATABASE_FILE))
    command = [sys.executable, "-c", _BACK_UP, str(data_dir)]
    killed = subprocess.run(command, env={**os.environ, "DARKROOM_FAIL_AT": "backup_written"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = data_dir / "backups"
    assert [path.suffix for path in folder.iterdir()] == [".part"]
    assert subprocess.run(command, check=False).returncode == 0
    assert len([path for path in folder.iterdir() if path.suffix == ".db"]) == 1


async def _make(database: Path) -> None:
    async with open_db(database):
        pass


_BACK_UP = """
import asyncio, sys
from pathlib import Path
from bot.config import Config, StorageSettings
from bot.operations.backup import run_backup
asyncio.run(run_backup(Config(storage=StorageSettings(data_dir=Path(sys.argv[1])))))
"""


def test_the_config_sets_the_backup_folder(config: Config, tmp_path: Path) -> None:
    moved = config.model_copy(update={"backup": BackupSettings(folder=str(tmp_path / "disk"))})
    assert moved.backup_folder == tmp_path / "disk"
