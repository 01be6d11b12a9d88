"""Looking into a database that a bot may be working on, without changing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import aiosqlite

from bot.db.database import Database, migrations
from bot.errors import DatabaseDamaged, DatabaseUnreadable, SchemaTooNew, SchemaTooOld


@asynccontextmanager
async def open_to_read(path: Path, *, any_schema: bool = False) -> AsyncIterator[Database]:
    """The database in `path` as it is, for questions only, on a connection of its own: nothing is made or migrated.

    `any_schema`: also one that an earlier version wrote.

    Raises:
        DatabaseUnreadable: there is none, or it cannot be opened.
        SchemaTooNew, SchemaTooOld: another version wrote it.
        DatabaseDamaged: it is no SQLite database.
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
    """The number of the schema that a database has."""
    row = await db.one("PRAGMA user_version")
    assert row is not None
    return int(row[0])


async def integrity_of(db: Database, *, is_thorough: bool = False) -> str:
    """SQLite's own finding about the whole file, "ok" where all is well; thorough: indexes are compared too."""
    try:
        row = await db.one("PRAGMA integrity_check(1)" if is_thorough else "PRAGMA quick_check(1)")
    except aiosqlite.DatabaseError as error:
        return str(error)
    assert row is not None
    return str(row[0])


async def _require_schema(db: Database, *, any_schema: bool) -> None:
    try:
        await db.all("PRAGMA busy_timeout=10000")
        found, known = await schema_of(db), len(migrations())
        # The header alone says nothing of a file that was cut off.
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
