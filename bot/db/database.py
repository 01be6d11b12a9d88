"""The bot's SQLite database: one writer connection, one reader, migrations, settings, and the lock of the data folder.

A transaction is BEGIN IMMEDIATE, and survives a power cut once it is committed.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiosqlite

from bot.bot_failpoints import failpoint
from bot.db.errors import (
    DatabaseDamaged,
    DatabaseUnreadable,
    DatabaseUnwritable,
    FolderInUse,
    SchemaTooNew,
    SchemaTooOld,
)
from trainer.protocol.text import N_, translate

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

Connection = aiosqlite.Connection
Row = aiosqlite.Row

#: A commit costs about 2 ms with FULL (0.01 ms with NORMAL, which may lose it in a power cut).
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON")

#: Why nothing can be written, by SQLite's primary result code. Each ends once the disk is repaired.
_UNWRITABLE = {
    sqlite3.SQLITE_FULL: N_("the disk that holds the database is full"),
    sqlite3.SQLITE_READONLY: N_("the database is read-only"),
    sqlite3.SQLITE_IOERR: N_("the disk that holds the database reports errors"),
    sqlite3.SQLITE_CANTOPEN: N_("the files of the database cannot be opened for writing"),
}

#: What was created by a statement; not the indexes and statistics that SQLite makes by itself.
_OBJECTS = """
SELECT type, name, coalesce(sql, '') FROM sqlite_schema
WHERE type NOT IN ('table', 'index') OR substr(name, 1, 7) != 'sqlite_'
"""

#: In the data folder.
DATABASE_FILE = "darkroom.db"
_LOCK_FILE = "bot.lock"


class Database:
    """An open database; use `open_db`."""

    def __init__(self, *, path: Path, writer: Connection, reader: Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._lock = asyncio.Lock()
        self._after_commit: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r}, {'writing' if self._lock.locked() else 'idle'})"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """BEGIN IMMEDIATE … COMMIT on the writer connection, one at a time; an exception rolls all of it back.

        Raises:
            DatabaseUnwritable: The disk is full, read-only or broken; nothing was changed.
        """
        async with self._lock:
            self._after_commit = []
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                await self._writer.commit()
            except BaseException as error:
                # Also on cancellation. No effect if the commit succeeded, or SQLite itself rolled back.
                await self._writer.rollback()
                if unwritable := _unwritable(self.path, error):
                    raise unwritable from error
                raise
            for callback in self._after_commit:
                callback()

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the open transaction is committed, never if it is rolled back."""
        assert self._lock.locked(), "no transaction is open"
        if callback not in self._after_commit:
            self._after_commit.append(callback)

    async def all(self, sql: str, parameters: Iterable[Any] = ()) -> list[Row]:
        """Return the rows of a query; it sees what is committed."""
        return list(await self._reader.execute_fetchall(sql, parameters))

    async def one(self, sql: str, parameters: Iterable[Any] = ()) -> Row | None:
        """Return the first row of a query, or None; it sees what is committed."""
        return next(iter(await self.all(sql, parameters)), None)

    async def checkpoint(self) -> None:
        """Move the write-ahead log into the database file and empty it."""
        async with self._lock:
            await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

    async def check(self) -> None:
        """Run SQLite's check of the whole file.

        Raises:
            DatabaseDamaged: It found a fault.
        """
        rows = await self.all("PRAGMA quick_check(1)")
        if rows[0][0] != "ok":
            raise DatabaseDamaged(path=self.path, finding=str(rows[0][0]))


@asynccontextmanager
async def open_db(path: Path) -> AsyncIterator[Database]:
    """Open the database in `path`; create it, or migrate it to this version's schema.

    Raises:
        SchemaTooNew: A newer version wrote it; nothing is changed.
        DatabaseDamaged: It is not an intact SQLite database.
        DatabaseUnwritable: Its disk is full, read-only or broken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        try:
            writer = await _connect(stack, path)
            await _migrate(writer, path)
            reader = await _connect(stack, path)
            await reader.execute("PRAGMA query_only=ON")
            database = Database(path=path, writer=writer, reader=reader)
            await database.check()
        except aiosqlite.DatabaseError as error:
            if unwritable := _unwritable(path, error):
                raise unwritable from error
            if isinstance(error, aiosqlite.OperationalError):
                raise
            raise DatabaseDamaged(path=path, finding=str(error)) from error
        yield database


@asynccontextmanager
async def open_to_read(path: Path, *, any_schema: bool = False) -> AsyncIterator[Database]:
    """Open the database in `path` for reading, on a connection of its own; a bot may be using it.

    Args:
        path: The database; it is neither created nor migrated.
        any_schema: Accept one that an earlier version wrote.

    Raises:
        DatabaseUnreadable: There is none, or it cannot be opened.
        SchemaTooNew, SchemaTooOld: Another version wrote it.
        DatabaseDamaged: It is not an SQLite database.
    """
    if not await asyncio.to_thread(path.is_file):
        raise DatabaseUnreadable(path=path, why="there is no such file")
    try:
        connection = await aiosqlite.connect(_uri(path), uri=True, isolation_level=None)
    except aiosqlite.Error as error:
        raise DatabaseUnreadable(path=path, why=str(error)) from error
    try:
        connection.row_factory = aiosqlite.Row
        database = Database(path=path, writer=connection, reader=connection)
        await _require_schema(database, any_schema=any_schema)
        yield database
    finally:
        await connection.close()


async def schema_of(db: Database) -> int:
    """Return the schema version of a database."""
    row = await db.one("PRAGMA user_version")
    assert row is not None
    return int(row[0])


async def differing_objects(db: Database) -> list[str]:
    """Return the tables, indexes, triggers and views that are other than in a new database of the same schema."""
    expected = await asyncio.to_thread(_objects_of_schema, await schema_of(db))
    found = {tuple(row) for row in await db.all(_OBJECTS)}
    return sorted({f"{kind} {name}" for kind, name, _sql in found ^ expected})


def _objects_of_schema(version: int) -> set[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in migrations()[:version]:
            for statement in _statements(step):
                connection.execute(statement)
        return set(connection.execute(_OBJECTS))


async def integrity_of(db: Database, *, is_thorough: bool = False) -> str:
    """Return SQLite's finding about the whole file, "ok" if it is intact; thorough: indexes are compared too."""
    try:
        row = await db.one("PRAGMA integrity_check(1)" if is_thorough else "PRAGMA quick_check(1)")
    except aiosqlite.DatabaseError as error:
        return str(error)
    assert row is not None
    return str(row[0])


async def read_setting(db: Database, name: str) -> str | None:
    """Return the value of a setting; None if it was never written."""
    row = await db.one("SELECT value FROM setting WHERE name = ?", (name,))
    return str(row["value"]) if row else None


async def write_setting(db: Database, name: str, value: str) -> None:
    """Store a setting, replacing its value."""
    async with db.transaction() as connection:
        await put_setting(connection, name, value)


async def put_setting(connection: Connection, name: str, value: str) -> None:
    """As `write_setting`, in the caller's transaction."""
    await connection.execute_fetchall(
        "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


@contextmanager
def hold_data_folder(data_dir: Path) -> Iterator[Path]:
    """Create the data folder, for its user alone, if it is missing, and lock it until this process ends.

    Raises:
        FolderInUse: Another bot holds the lock.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Close-on-exec (Python's default): a trainer that outlives the bot must not hold the lock.
    descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(path=data_dir) from None
        yield data_dir
    finally:
        os.close(descriptor)


def migrations() -> list[str]:
    """Return the migrations in order: `migrations/0001_….sql` first."""
    folder = resources.files(__package__) / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    numbers = [int(file.name[:4]) for file in files]
    assert numbers == list(range(1, len(files) + 1)), f"migrations are not numbered from 1 without a gap: {numbers}"
    return [file.read_text(encoding="utf-8") for file in files]


def _unwritable(path: Path, error: BaseException) -> DatabaseUnwritable | None:
    """Return the error to raise if SQLite's error means that nothing can be written; else None."""
    # The lower byte is the primary code; SQLITE_IOERR_WRITE, for example, is an extended one.
    code = getattr(error, "sqlite_errorcode", None)
    why = None if code is None else _UNWRITABLE.get(code & 0xFF)
    return None if why is None else DatabaseUnwritable(path=path, why=translate(why))


async def _connect(stack: AsyncExitStack, path: Path) -> Connection:
    # Without an isolation level, the sqlite3 module begins no transaction of its own.
    connection = await stack.enter_async_context(aiosqlite.connect(path, isolation_level=None))
    connection.row_factory = aiosqlite.Row
    for pragma in _PRAGMAS:
        await connection.execute_fetchall(f"PRAGMA {pragma}")
    return connection


async def _migrate(connection: Connection, path: Path) -> None:
    steps = migrations()
    found = int(next(iter(await connection.execute_fetchall("PRAGMA user_version")))[0])
    if found > len(steps):
        raise SchemaTooNew(path=path, found=found, known=len(steps))
    for number, step in enumerate(steps[found:], start=found + 1):
        await connection.execute("BEGIN IMMEDIATE")
        try:
            # Not executescript(): it commits the open transaction, so half a migration would remain.
            for statement in _statements(step):
                await connection.execute(statement)
            await connection.execute(f"PRAGMA user_version={number}")
            await connection.commit()
        except BaseException:
            await connection.rollback()
            raise
        failpoint("migrated")
        log.info("database %s migrated to schema %d", path, number)


def as_stored(record: type[DataclassInstance], row: Row) -> dict[str, Any]:
    """Return the columns of a row that are named as fields of a record, with their values as they are stored."""
    columns = row.keys()
    return {field.name: row[field.name] for field in fields(record) if field.name in columns}


def _statements(script: str) -> list[str]:
    """Split a migration into statements; a `;` at the end of a line ends one (so no trigger over several lines)."""
    return [statement for statement in re.split(r";[ \t]*(?:\n|$)", script) if statement.strip()]


async def _require_schema(db: Database, *, any_schema: bool) -> None:
    try:
        await db.all("PRAGMA busy_timeout=10000")
        found, known = await schema_of(db), len(migrations())
        # The header alone does not reveal a truncated file.
        await db.one("SELECT COUNT(*) FROM sqlite_schema")
    except aiosqlite.OperationalError as error:
        raise DatabaseUnreadable(path=db.path, why=str(error)) from error
    except aiosqlite.DatabaseError as error:
        raise DatabaseDamaged(path=db.path, finding=str(error)) from error
    if found > known:
        raise SchemaTooNew(path=db.path, found=found, known=known)
    if found < known and not any_schema:
        raise SchemaTooOld(path=db.path, found=found, known=known)


def _uri(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"
