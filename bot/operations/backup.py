"""`python -m bot backup` and `restore`: verified copies of the database, and a copy as the new database.

A copy is older than the files: jobs ran after it was made. So a restore reads the job folders before the copy becomes
the database: attempts are raised to what each folder's fence says, and numbers that were assigned since are not
assigned again (a new #43 would find another job's folder). The previous database is set aside and never deleted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import aiosqlite

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import Config
from bot.db import (
    DATABASE_FILE,
    Connection,
    Copy,
    back_up,
    copy_database,
    hold_data_folder,
    open_db,
    open_to_read,
    verify_copy,
)
from bot.db.audit import write_entry
from bot.db.errors import CopyFailed, CopyRefused, DatabaseDamaged, DatabaseUnreadable, DataFolderError, SchemaTooNew
from trainer.exchange.attempt import read_attempt
from trainer.exchange.files import sync
from trainer.exchange.process import read_process_file
from trainer.protocol.text import _, ngettext, size

log = logging.getLogger(__name__)

_PART = f"{DATABASE_FILE}.restoring"
#: Files that SQLite keeps beside a database.
_COMPANIONS = ("-wal", "-shm")


async def run_backup(config: Config, *, to: Path | None = None) -> str:
    """Copy the database and return a report.

    Args:
        config: Names the database, and the folder and number of backups.
        to: A new file, kept forever. None: a file in the backup folder, of which the newest are kept.

    Raises:
        DataFolderError: It could not be copied.
    """
    source = config.storage.data_dir / DATABASE_FILE
    if to is not None:
        return _copy_text(await copy_database(source, to))
    copy = await back_up(source, config.backup_folder, keep=config.backup.keep)
    return " ".join((_copy_text(copy), _("The newest {keep} are kept.", keep=config.backup.keep)))


def _copy_text(copy: Copy) -> str:
    return _(
        "{path}: {size}, {content}, schema {schema}; opened and found intact.",
        path=copy.path,
        size=size(copy.bytes),
        content=_content_text(copy),
        schema=copy.schema,
    )


def _content_text(copy: Copy) -> str:
    jobs, datasets = ngettext("{n} job", "{n} jobs", copy.jobs), ngettext("{n} dataset", "{n} datasets", copy.datasets)
    return f"{jobs}, {datasets}"


# -- restore -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OrphanProcess:
    """A running trainer whose job the restored database does not know."""

    job_id: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did."""

    copy: Copy
    #: The previous database; None if there was none.
    set_aside: Path | None
    #: Jobs with attempts that the copy did not know.
    raised: tuple[int, ...]
    orphans: tuple[OrphanProcess, ...]


def restored_text(restored: Restored) -> str:
    """A restore in sentences."""
    lines = [_("Restored {path}: {content}.", path=restored.copy.path, content=_content_text(restored.copy))]
    if restored.set_aside:
        lines.append(_("The previous database is kept as {path}.", path=restored.set_aside))
    if restored.raised:
        jobs = ", ".join(f"#{job_id}" for job_id in restored.raised)
        lines.append(_("Started since the copy was made: {jobs}.", jobs=jobs))
    lines += [
        _(
            "Process {pid} still trains #{job}, which this database does not know: let it finish, or `kill {pid}` "
            "(it saves its checkpoint).",
            pid=orphan.pid,
            job=orphan.job_id,
        )
        for orphan in restored.orphans
    ]
    return "\n".join(lines)


async def run_restore(copy: Path, data_dir: Path, *, clock: Clock = SYSTEM_CLOCK) -> Restored:
    """Replace the database of `data_dir` by `copy`: completely, or not at all.

    Raises:
        FolderInUse: A bot uses the data folder.
        CopyRefused: The copy is missing, damaged, or of a newer version.
        CopyFailed: No space or no permission.
    """
    try:
        await verify_copy(copy, is_foreign=True)
    except DataFolderError as error:
        raise CopyRefused(path=copy, why=_refusal(error)) from error
    try:
        with hold_data_folder(data_dir):
            return await _restore(copy, data_dir, clock.now())
    except OSError as error:
        raise CopyFailed(path=data_dir / DATABASE_FILE, why=error.strerror or str(error)) from error


def _refusal(error: DataFolderError) -> str:
    match error:
        case DatabaseUnreadable():
            return error.why
        case DatabaseDamaged():
            return _("it is damaged ({finding})", finding=error.finding)
        case SchemaTooNew():
            return _(
                "a newer Darkroom wrote it (schema {found}; this one knows {known})",
                found=error.found,
                known=error.known,
            )
        case _:
            return str(error).rstrip(".")


async def _restore(copy: Path, data_dir: Path, now: datetime) -> Restored:
    database, part, jobs_dir = data_dir / DATABASE_FILE, data_dir / _PART, data_dir / "jobs"
    await asyncio.to_thread(_remove_leftovers, part)
    made = await copy_database(copy, part)
    assigned = await _assigned_numbers(database, jobs_dir)
    known, raised = await _catch_up(part, jobs_dir, assigned, now, copy.name)
    orphans = await asyncio.to_thread(_find_orphans, known, jobs_dir)
    set_aside = await asyncio.to_thread(_swap, part, database, now)
    log.info("%s restored; %s", copy, f"the previous database is {set_aside}" if set_aside else "there was none before")
    return Restored(copy=replace(made, path=copy), set_aside=set_aside, raised=raised, orphans=orphans)


async def _assigned_numbers(database: Path, jobs_dir: Path) -> dict[str, int]:
    """The highest number of each table that was ever assigned, as far as the old database and the folders know."""
    assigned: dict[str, int] = {}
    try:
        async with open_to_read(database, any_schema=True) as db:
            assigned = {row["name"]: row["seq"] for row in await db.all("SELECT name, seq FROM sqlite_sequence")}
    except (DataFolderError, aiosqlite.DatabaseError) as error:
        log.info("the previous database cannot be read (%s)", error)
    assigned["job"] = max([assigned.get("job", 0), *await asyncio.to_thread(_job_numbers, jobs_dir)])
    return assigned


async def _catch_up(
    part: Path, jobs_dir: Path, assigned: Mapping[str, int], now: datetime, name: str
) -> tuple[set[int], tuple[int, ...]]:
    """Upgrade the copy to this schema and to the attempts in the job folders; return its jobs, and those with newer
    attempts.
    """
    async with open_db(part) as db:
        rows = await db.all("SELECT id, attempt, COALESCE(folder, id) AS folder FROM job")
        folders = {row["id"]: jobs_dir / str(row["folder"]) for row in rows}
        fences = await asyncio.to_thread(lambda: {job_id: read_attempt(folder) for job_id, folder in folders.items()})
        behind = [(row["id"], row["attempt"], fences[row["id"]]) for row in rows if fences[row["id"]] > row["attempt"]]
        async with db.transaction() as connection:
            for job_id, attempt, fence in behind:
                await _raise_attempt(connection, job_id, attempt, fence)
            for table, number in assigned.items():
                await _raise_sequence(connection, table, number)
            await _mark_unsent_for_recheck(connection)
            await write_entry(connection, at=now.timestamp(), verb="restore", why=f"from {name}")
    return set(folders), tuple(job_id for job_id, _attempt, _fence in behind)


async def _raise_attempt(connection: Connection, job_id: int, attempt: int, fence: int) -> None:
    values = {"id": job_id, "old": attempt, "new": fence}
    for statement in (
        # How those attempts ended is unknown: they do not count.
        "UPDATE job SET attempt = :new, uncounted = uncounted + :new - :old WHERE id = :id",
        "UPDATE slot SET attempt = :new WHERE job_id = :id",
        "UPDATE attempt SET attempt = :new WHERE job_id = :id AND attempt = :old AND ended_at IS NULL",
    ):
        await connection.execute_fetchall(statement, values)


async def _raise_sequence(connection: Connection, table: str, number: int) -> None:
    """Make the next row of `table` get a number above `number`."""
    values = {"name": table, "number": number}
    changed = await connection.execute_fetchall(
        "UPDATE sqlite_sequence SET seq = MAX(seq, :number) WHERE name = :name RETURNING seq", values
    )
    if not list(changed):
        await connection.execute_fetchall("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)", values)


async def _mark_unsent_for_recheck(connection: Connection) -> None:
    """Waiting messages may have been sent since the copy was made: make the sender look in the channel first."""
    await connection.execute_fetchall("UPDATE outbox SET state = 'sending' WHERE state = 'waiting'")
    await connection.execute_fetchall(
        "UPDATE card SET state = 'sending' WHERE state = 'waiting' AND message_id IS NULL"
    )


def _find_orphans(known: set[int], jobs_dir: Path) -> tuple[OrphanProcess, ...]:
    """Trainers that run in folders of jobs other than `known`."""
    found: list[OrphanProcess] = []
    for number in _job_numbers(jobs_dir):
        process = read_process_file(jobs_dir / str(number))
        if number not in known and process is not None and process.is_alive():
            found.append(OrphanProcess(job_id=number, pid=process.pid))
    return tuple(found)


def _job_numbers(jobs_dir: Path) -> list[int]:
    if not jobs_dir.is_dir():
        return []
    return sorted(int(entry.name) for entry in jobs_dir.iterdir() if entry.name.isdecimal())


def _remove_leftovers(part: Path) -> None:
    """Remove what an interrupted restore left."""
    for name in (part.name, *(part.name + companion for companion in _COMPANIONS)):
        part.with_name(name).unlink(missing_ok=True)


def _swap(part: Path, database: Path, now: datetime) -> Path | None:
    """Replace the database with the restored copy; a power cut at any point leaves one of the two, whole."""
    set_aside = None
    if database.exists():
        _checkpoint(database)
        set_aside = database.with_name(f"{database.name}.before-restore-{now:%Y%m%d-%H%M%S}")
        # A link and not a rename: without a database under its name, a bot would create an empty one.
        os.link(database, set_aside)
    kept_as = set_aside or database.with_name(f"{database.name}.lost")
    for companion in _COMPANIONS:
        beside = database.with_name(database.name + companion)
        if beside.exists():
            # SQLite would apply the old database's log to the new one.
            beside.rename(kept_as.with_name(kept_as.name + companion))
    sync(database.parent)
    part.replace(database)
    sync(database.parent)
    return set_aside


def _checkpoint(database: Path) -> None:
    """Write the write-ahead log into the database, as far as it is intact; closing the last connection deletes it."""
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.DatabaseError as error:
        log.warning("%s is set aside as it is (%s)", database, error)
