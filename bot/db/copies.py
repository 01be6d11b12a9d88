"""Copies of the database: made while a bot uses it, verified, and the newest kept."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import aiosqlite

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock
from bot.db.database import Database, differing_objects, integrity_of, open_to_read, schema_of
from bot.db.errors import CopyFailed, DatabaseDamaged
from trainer.exchange.files import sync

log = logging.getLogger(__name__)

_NAME = re.compile(r"darkroom-\d{8}-\d{6}\.db")
#: Age at which an unfinished copy was left by a process that died.
_ABANDONED_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy that was opened and found intact."""

    path: Path
    bytes: int
    schema: int
    jobs: int
    datasets: int


async def back_up(db_path: Path, folder: Path, *, keep: int, clock: Clock = SYSTEM_CLOCK) -> Copy:
    """Copy the database into `folder`, named by the moment (UTC), and delete all but the newest `keep` copies.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: The database cannot be copied.
        CopyFailed: No space, no permission, or the copy is damaged; earlier copies are unchanged.
    """
    now = clock.now()
    copy = await copy_database(db_path, folder / now.strftime("darkroom-%Y%m%d-%H%M%S.db"))
    await asyncio.to_thread(_keep_newest, folder, keep, now)
    return copy


async def copy_database(source: Path, target: Path) -> Copy:
    """Copy `source`, which a bot may be using, into the new file `target`, durable and verified.

    It is one read transaction: writers do not wait, and their changes are not in the copy.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: The source cannot be copied.
        CopyFailed: The file exists, no space, no permission, or the copy is damaged.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        await asyncio.to_thread(_prepare, target, part)
        async with open_to_read(source, any_schema=True) as db:
            # Without free pages and without a write-ahead log: one file that can be moved anywhere.
            await db.all("VACUUM INTO ?", (str(part),))
        await asyncio.to_thread(sync, part)
        copy = await verify_copy(part)
        failpoint("backup_written")
        await asyncio.to_thread(_publish, part, target)
    except (OSError, aiosqlite.OperationalError) as error:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise CopyFailed(path=target, why=getattr(error, "strerror", None) or str(error)) from error
    except aiosqlite.DatabaseError as error:
        await asyncio.to_thread(part.unlink, missing_ok=True)
        raise DatabaseDamaged(path=source, finding=str(error)) from error
    log.info("%s copied to %s (%d jobs, %d bytes)", source, target, copy.jobs, copy.bytes)
    return replace(copy, path=target)


async def verify_copy(path: Path, *, is_foreign: bool = False) -> Copy:
    """Open a copy and check all of it.

    Args:
        path: The copy.
        is_foreign: It comes from outside the data folder, where another user may have changed it. Its schema must
            be exactly that of a new database of its version: an added trigger would run with each change of the bot.

    Raises:
        DatabaseUnreadable, DatabaseDamaged, SchemaTooNew: It cannot be used.
    """
    async with open_to_read(path, any_schema=True) as db:
        if (finding := await integrity_of(db, is_thorough=True)) != "ok":
            raise DatabaseDamaged(path=path, finding=finding)
        schema = await schema_of(db)
        if schema == 0:
            raise DatabaseDamaged(path=path, finding="it is not a database of Darkroom")
        if is_foreign and (differing := await differing_objects(db)):
            finding = f"it differs from a database of Darkroom in {', '.join(differing[:5])}"
            raise DatabaseDamaged(path=path, finding=finding)
        jobs, datasets = await _count(db, "job"), await _count(db, "dataset")
    return Copy(path=path, bytes=path.stat().st_size, schema=schema, jobs=jobs, datasets=datasets)  # noqa: ASYNC240


async def _count(db: Database, table: str) -> int:
    row = await db.one(f"SELECT COUNT(*) FROM {table}")
    assert row is not None
    return int(row[0])


def _prepare(target: Path, part: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(0, "a file of that name exists and is kept")
    part.unlink(missing_ok=True)


def _publish(part: Path, target: Path) -> None:
    part.replace(target)
    sync(target.parent)


def _keep_newest(folder: Path, keep: int, now: datetime) -> None:
    """Delete older copies and abandoned parts; files that `back_up` did not name are never deleted."""
    copies = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    parts = [path for path in folder.glob("*.part") if _NAME.fullmatch(path.name.removesuffix(".part"))]
    oldest = now.timestamp() - _ABANDONED_S
    for path in [*copies[:-keep], *(path for path in parts if path.stat().st_mtime < oldest)]:
        path.unlink(missing_ok=True)
        log.info("old copy %s deleted", path.name)
