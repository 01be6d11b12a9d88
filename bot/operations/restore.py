"""`python -m bot restore FILE`: a copy takes the place of the database, which is put aside and never deleted.

A copy is behind the files: jobs went on after it was made. So the job folders are asked what happened since, before
the copy becomes the database: attempts are raised to what each folder's fence says, and numbers that were given away
since are not given away again (a new #43 would find the folder of another).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiosqlite

from bot.db import DATABASE_FILE, Connection, Copy, copy_database, hold_data_folder, open_db, open_to_read, verify_copy
from bot.db.copies import sync_folder
from bot.errors import CopyFailed, CopyRefused, DatabaseDamaged, DatabaseUnreadable, DataFolderError, SchemaTooNew
from bot.operations.backup import held_words
from bot.queue.store.audit import write_entry
from trainer.protocol.attempt import read_attempt
from trainer.protocol.process import read_process_file

log = logging.getLogger(__name__)

_PART = f"{DATABASE_FILE}.restoring"
#: What SQLite keeps beside a database.
_SIDES = ("-wal", "-shm")


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A trainer that runs for a job which the restored database does not know."""

    job_id: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did."""

    copy: Copy
    #: The database that was there, None if there was none.
    aside: Path | None
    #: Jobs that were started since the copy was made.
    raised: tuple[int, ...]
    strangers: tuple[Stranger, ...]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Put back {self.copy.path}: {held_words(self.copy)}.",
                *([f"The database that was there is kept as {self.aside}."] if self.aside else []),
                *([f"Started since the copy was made: {_numbers(self.raised)}."] if self.raised else []),
                *(
                    f"Process {stranger.pid} still trains #{stranger.job_id}, which this database does not know: "
                    f"let it end, or `kill {stranger.pid}` (it saves its checkpoint)."
                    for stranger in self.strangers
                ),
            ]
        )


async def run_restore(copy: Path, data_dir: Path, *, now: Callable[[], float] = time.time) -> Restored:
    """Put `copy` in the place of the database of `data_dir`; all of it, or nothing.

    Raises:
        FolderInUse: a bot works on the data folder.
        CopyRefused: the copy is missing, damaged, or of a newer version.
        CopyFailed: no room or no right.
    """
    try:
        await verify_copy(copy)
    except DataFolderError as error:
        raise CopyRefused(path=copy, why=_why(error)) from error
    try:
        with hold_data_folder(data_dir):
            return await _restore(copy, data_dir, now())
    except OSError as error:
        raise CopyFailed(path=data_dir / DATABASE_FILE, why=error.strerror or str(error)) from error


def _why(error: DataFolderError) -> str:
    match error:
        case DatabaseUnreadable():
            return error.why
        case DatabaseDamaged():
            return f"it is damaged ({error.finding})"
        case SchemaTooNew():
            return f"a newer Darkroom wrote it (schema {error.found}; this one knows {error.known})"
        case _:
            return str(error).rstrip(".")


async def _restore(copy: Path, data_dir: Path, at: float) -> Restored:
    database, part = data_dir / DATABASE_FILE, data_dir / _PART
    await asyncio.to_thread(_clear, part)
    made = await copy_database(copy, part)
    given = await _numbers_given(database, data_dir / "jobs")
    known, raised = await _catch_up(part, data_dir / "jobs", given, at, copy.name)
    strangers = await asyncio.to_thread(_strangers, known, data_dir / "jobs")
    aside = await asyncio.to_thread(_swap, part, database, at)
    log.info("%s put back; %s", copy, f"the one before is {aside}" if aside else "there was none before")
    return Restored(
        copy=Copy(path=copy, bytes=made.bytes, schema=made.schema, jobs=made.jobs, datasets=made.datasets),
        aside=aside,
        raised=raised,
        strangers=strangers,
    )


async def _numbers_given(database: Path, jobs_dir: Path) -> dict[str, int]:
    """The highest number of each table that was ever given away, as far as anybody can tell."""
    given: dict[str, int] = {}
    try:
        async with open_to_read(database, any_schema=True) as db:
            given = {row["name"]: row["seq"] for row in await db.all("SELECT name, seq FROM sqlite_sequence")}
    except (DataFolderError, aiosqlite.DatabaseError) as error:
        log.info("the database that is put aside tells nothing (%s)", error)
    given["job"] = max([given.get("job", 0), *await asyncio.to_thread(_job_numbers, jobs_dir)])
    return given


async def _catch_up(
    part: Path, jobs_dir: Path, given: Mapping[str, int], at: float, name: str
) -> tuple[set[int], tuple[int, ...]]:
    """Bring the copy up to this schema and to what the folders know: (its jobs, those started since it was made)."""
    async with open_db(part) as db:
        rows = await db.all("SELECT id, attempt, COALESCE(folder, id) AS folder FROM job")
        folders = {row["id"]: jobs_dir / str(row["folder"]) for row in rows}
        fences = await asyncio.to_thread(lambda: {job_id: read_attempt(folder) for job_id, folder in folders.items()})
        behind = [(row["id"], row["attempt"], fences[row["id"]]) for row in rows if fences[row["id"]] > row["attempt"]]
        async with db.transaction() as connection:
            for job_id, attempt, fence in behind:
                await _raise_attempt(connection, job_id, attempt, fence)
            for table, number in given.items():
                await _raise_sequence(connection, table, number)
            await _doubt_unsent(connection)
            await write_entry(connection, at=at, verb="restore", why=f"from {name}")
    return set(folders), tuple(job_id for job_id, _, _ in behind)


async def _raise_attempt(connection: Connection, job_id: int, attempt: int, fence: int) -> None:
    values = {"id": job_id, "old": attempt, "new": fence}
    for statement in (
        # How those starts ended is not known: they count for nothing.
        "UPDATE job SET attempt = :new, excused = excused + :new - :old WHERE id = :id",
        "UPDATE slot SET attempt = :new WHERE job_id = :id",
        "UPDATE attempt SET attempt = :new WHERE job_id = :id AND attempt = :old AND ended_at IS NULL",
    ):
        await connection.execute_fetchall(statement, values)


async def _raise_sequence(connection: Connection, table: str, number: int) -> None:
    """The next row of `table` gets a higher number than `number`."""
    values = {"name": table, "number": number}
    changed = await connection.execute_fetchall(
        "UPDATE sqlite_sequence SET seq = MAX(seq, :number) WHERE name = :name RETURNING seq", values
    )
    if not list(changed):
        await connection.execute_fetchall("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)", values)


async def _doubt_unsent(connection: Connection) -> None:
    """What waited to be sent may have been sent since: the sender looks for it in the channel first."""
    await connection.execute_fetchall("UPDATE outbox SET state = 'sending' WHERE state = 'waiting'")
    await connection.execute_fetchall(
        "UPDATE card SET state = 'sending' WHERE state = 'waiting' AND message_id IS NULL"
    )


def _strangers(known: set[int], jobs_dir: Path) -> tuple[Stranger, ...]:
    """Trainers that run in folders of jobs other than `known`."""
    found: list[Stranger] = []
    for number in _job_numbers(jobs_dir):
        process = read_process_file(jobs_dir / str(number))
        if number not in known and process is not None and process.is_alive():
            found.append(Stranger(job_id=number, pid=process.pid))
    return tuple(found)


def _job_numbers(jobs_dir: Path) -> list[int]:
    if not jobs_dir.is_dir():
        return []
    return sorted(int(entry.name) for entry in jobs_dir.iterdir() if entry.name.isdecimal())


def _clear(part: Path) -> None:
    """What a restore that was cut off left behind."""
    for name in (part.name, *(part.name + side for side in _SIDES)):
        part.with_name(name).unlink(missing_ok=True)


def _swap(part: Path, database: Path, at: float) -> Path | None:
    """The part becomes the database; a power cut at any point leaves one of the two in place, whole."""
    aside = None
    if database.exists():
        _fold(database)
        stamp = datetime.fromtimestamp(at, UTC).strftime("%Y%m%d-%H%M%S")
        aside = database.with_name(f"{database.name}.before-restore-{stamp}")
        # A link and no rename: the name is never without a database, in whose place a bot would make an empty one.
        os.link(database, aside)
    kept_as = aside or database.with_name(f"{database.name}.lost")
    for side in _SIDES:
        beside = database.with_name(database.name + side)
        if beside.exists():
            # SQLite would play the log of the old database into the new one.
            beside.rename(kept_as.with_name(kept_as.name + side))
    sync_folder(database.parent)
    part.replace(database)
    sync_folder(database.parent)
    return aside


def _fold(database: Path) -> None:
    """Bring the write-ahead log into the database, as far as it is sound; the last to close it deletes the log."""
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.DatabaseError as error:
        log.warning("%s is put aside as it is (%s)", database, error)


def _numbers(job_ids: tuple[int, ...]) -> str:
    return ", ".join(f"#{job_id}" for job_id in job_ids)
