"""Copies of the database: made while a bot works on it, opened once to see that they can be, the newest kept."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiosqlite

from bot.crashing import crash_point
from bot.db.database import Database
from bot.db.reading import integrity_of, open_to_read, schema_of
from bot.errors import CopyFailed, DatabaseDamaged

log = logging.getLogger(__name__)

_NAME = re.compile(r"darkroom-\d{8}-\d{6}\.db")
#: Age at which a copy that was never finished is nobody's any more.
_ABANDONED_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy that was opened and found sound."""

    path: Path
    bytes: int
    schema: int
    jobs: int
    datasets: int


async def back_up(db_path: Path, folder: Path, *, keep: int, now: Callable[[], float] = time.time) -> Copy:
    """A copy in `folder`, named for the moment (UTC); then all but the newest `keep` copies there are deleted.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: the database cannot be copied.
        CopyFailed: no room, no right, or the copy is not sound; what was there before is as it was.
    """
    name = datetime.fromtimestamp(now(), UTC).strftime("darkroom-%Y%m%d-%H%M%S.db")
    copy = await copy_database(db_path, folder / name)
    await asyncio.to_thread(_keep_newest, folder, keep, now())
    return copy


async def copy_database(source: Path, target: Path) -> Copy:
    """Copy `source`, on which a bot may work, into the new file `target`, durable and verified.

    One read transaction: whoever writes meanwhile is not kept waiting, and is not in the copy.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: the source cannot be copied.
        CopyFailed: there is such a file, no room, no right, or the copy is not sound.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        await asyncio.to_thread(_make_way, target, part)
        async with open_to_read(source, any_schema=True) as db:
            # No pages of the free list, and no write-ahead log beside it: one file that can be carried away.
            await db.all("VACUUM INTO ?", (str(part),))
        await asyncio.to_thread(_sync, part)
        copy = await verify_copy(part)
        crash_point("backup_written")
        await asyncio.to_thread(_put_in_place, part, target)
    except (OSError, aiosqlite.OperationalError) as error:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise CopyFailed(path=target, why=getattr(error, "strerror", None) or str(error)) from error
    except aiosqlite.DatabaseError as error:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise DatabaseDamaged(path=source, finding=str(error)) from error
    log.info("%s copied to %s (%d jobs, %d bytes)", source, target, copy.jobs, copy.bytes)
    return Copy(path=target, bytes=copy.bytes, schema=copy.schema, jobs=copy.jobs, datasets=copy.datasets)


async def verify_copy(path: Path) -> Copy:
    """Open a copy and check all of it.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: it is of no use.
    """
    async with open_to_read(path, any_schema=True) as db:
        if (finding := await integrity_of(db, is_thorough=True)) != "ok":
            raise DatabaseDamaged(path=path, finding=finding)
        schema = await schema_of(db)
        jobs, datasets = await _count(db, "job", schema), await _count(db, "dataset", schema)
    return Copy(path=path, bytes=path.stat().st_size, schema=schema, jobs=jobs, datasets=datasets)  # noqa: ASYNC240


async def _count(db: Database, table: str, schema: int) -> int:
    if schema == 0:
        raise DatabaseDamaged(path=db.path, finding="it is no database of Darkroom's")
    row = await db.one(f"SELECT COUNT(*) FROM {table}")
    assert row is not None
    return int(row[0])


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_way(target: Path, part: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(0, "there is a file of that name, and it is kept")
    part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _put_in_place(part: Path, target: Path) -> None:
    part.replace(target)
    sync_folder(target.parent)


def _keep_newest(folder: Path, keep: int, now: float) -> None:
    """Only names that `back_up` gives are ever deleted; what people put beside them is theirs."""
    copies = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    parts = [path for path in folder.iterdir() if _NAME.fullmatch(path.name.removesuffix(".part"))]
    abandoned = [path for path in parts if path.suffix == ".part" and now - path.stat().st_mtime > _ABANDONED_S]
    for path in [*copies[:-keep], *abandoned]:
        path.unlink(missing_ok=True)
        log.info("old copy %s deleted", path.name)
