"""One writer connection and one reader: a transaction is BEGIN IMMEDIATE, and what it commits survives a power cut."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import aiosqlite

from bot.crashing import crash_point
from bot.errors import DatabaseDamaged, DatabaseUnwritable, SchemaTooNew

log = logging.getLogger(__name__)

Connection = aiosqlite.Connection
Row = aiosqlite.Row

#: A commit costs about 2 ms with FULL (0.01 ms with NORMAL, which may lose it in a power cut).
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON")

#: Why a change cannot be written, by SQLite's primary result code. Each ends by itself once somebody mends the disk.
_UNWRITABLE = {
    sqlite3.SQLITE_FULL: "the disk that holds the database is full",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_IOERR: "the disk that holds the database gives errors",
    sqlite3.SQLITE_CANTOPEN: "the files of the database cannot be opened for writing",
}


class Database:
    """An open database; made by `open_db`."""

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
            DatabaseUnwritable: the disk is full, read-only or broken; nothing was changed.
        """
        async with self._lock:
            self._after_commit = []
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                await self._writer.commit()
            except BaseException as error:
                # Also when cancelled; does nothing where the commit had got through, or SQLite rolled back itself.
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
        """The rows of a query over what is committed."""
        return list(await self._reader.execute_fetchall(sql, parameters))

    async def one(self, sql: str, parameters: Iterable[Any] = ()) -> Row | None:
        """The first row of a query over what is committed, None if it has none."""
        return next(iter(await self.all(sql, parameters)), None)

    async def checkpoint(self) -> None:
        """Move the write-ahead log into the database file and empty it."""
        async with self._lock:
            await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

    async def check(self) -> None:
        """SQLite's own check of the whole file.

        Raises:
            DatabaseDamaged: it found something.
        """
        rows = await self.all("PRAGMA quick_check(1)")
        if rows[0][0] != "ok":
            raise DatabaseDamaged(path=self.path, finding=str(rows[0][0]))


@asynccontextmanager
async def open_db(path: Path) -> AsyncIterator[Database]:
    """The database in `path`, made or migrated to this version's schema.

    Raises:
        SchemaTooNew: a newer version wrote it; nothing is changed.
        DatabaseDamaged: it is no (sound) SQLite database.
        DatabaseUnwritable: its disk is full, read-only or broken.
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


def migrations() -> list[str]:
    """The schema's steps, in order: `migrations/0001_….sql` first."""
    folder = resources.files(__package__) / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    numbers = [int(file.name[:4]) for file in files]
    assert numbers == list(range(1, len(files) + 1)), f"migrations are not numbered from 1 without a gap: {numbers}"
    return [file.read_text(encoding="utf-8") for file in files]


def _unwritable(path: Path, error: BaseException) -> DatabaseUnwritable | None:
    """What to say of an error of SQLite's, if it means that nothing can be written; None for any other."""
    # The lower byte is the primary code; SQLITE_IOERR_WRITE and its like are extended ones.
    code = getattr(error, "sqlite_errorcode", None)
    why = None if code is None else _UNWRITABLE.get(code & 0xFF)
    return None if why is None else DatabaseUnwritable(path=path, why=why)


async def _connect(stack: AsyncExitStack, path: Path) -> Connection:
    # No isolation level: the sqlite3 module then begins no transaction of its own.
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
            # Not executescript(): it commits what is open, and a half-made step would stay.
            for statement in _statements(step):
                await connection.execute(statement)
            await connection.execute(f"PRAGMA user_version={number}")
            await connection.commit()
        except BaseException:
            await connection.rollback()
            raise
        crash_point("migrated")
        log.info("database %s is now of schema %d", path, number)


def _statements(script: str) -> list[str]:
    """The statements of a migration; a `;` at the end of a line ends one (so write no trigger over several lines)."""
    return [statement for statement in re.split(r";[ \t]*(?:\n|$)", script) if statement.strip()]
