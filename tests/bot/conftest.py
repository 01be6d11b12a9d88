"""A queue on a real database in a temporary folder, with a clock that the test advances."""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bot.config import LimitSettings, QueueSettings
from bot.db import Connection, Database, database, open_db
from bot.outbox import Outbox
from bot.queue import Job, JobStore, NewJob, slots_of
from bot.queue.domain.job import ActiveJob
from tests.bot.fakes import FakeClock
from trainer.protocol.devices import Devices
from trainer.protocol.spec import make_spec

GUILD, CHANNEL = 10, 100

Submit = Callable[..., Awaitable[Job]]
T = TypeVar("T")

#: For tests in which only processes die, not the machine: no need to wait for the disk.
FAST_PRAGMAS = ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON")


@functools.cache
def _new_database() -> bytes:
    """The file of an empty database with this version's schema."""
    steps = database.migrations()
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in steps:
            connection.executescript(step)
        connection.execute(f"PRAGMA user_version={len(steps)}")
        return connection.serialize()


@pytest.fixture(autouse=True)
def quick_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute statements without a thread of their own and without waiting for the disk; migrate once per process.

    Handing a statement to that thread costs eight times what SQLite takes for it, and the migrations of a new database
    15 ms. Each statement waits for a turn of the loop, so that other tasks run between two of them.
    """
    in_file = database._connect

    def connect(stack: AsyncExitStack, path: Path) -> Awaitable[Connection]:
        if not path.exists():
            path.write_bytes(_new_database())
        return in_file(stack, path)

    def opened(self: Connection) -> Generator[Any, None, Connection]:
        async def open_here() -> Connection:
            self._connection = self._connector()
            return self

        return open_here().__await__()

    async def executed(self: Connection, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        await asyncio.sleep(0)
        return function(*arguments, **options)

    async def closed(self: Connection) -> None:
        self._conn.close()
        self._connection = None

    for name, replacement in (("__await__", opened), ("_execute", executed), ("close", closed)):
        monkeypatch.setattr(Connection, name, replacement)
    monkeypatch.setattr(database, "_connect", connect)
    monkeypatch.setattr(database, "_PRAGMAS", FAST_PRAGMAS)


@pytest.fixture
def statements_at_once(quick_sqlite: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute statements without a turn of the loop: for thousands of transactions that do one thing at a time."""

    async def executed(self: Connection, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return function(*arguments, **options)

    monkeypatch.setattr(Connection, "_execute", executed)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Restore the root logger afterwards: a configured handler writes to the test's standard error, closed by then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_db(tmp_path / "data" / "darkroom.sqlite") as database:
        await add_dataset(database)
        yield database


@pytest.fixture
def outbox(db: Database, clock: FakeClock) -> Outbox:
    return Outbox(db, clock=clock)


@pytest.fixture
async def store(db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path) -> JobStore:
    """A store with one slot."""
    made = make_store(db, outbox, clock, tmp_path)
    await set_slots(made, 1)
    return made


@pytest.fixture
def submit(store: JobStore) -> Submit:
    return submitter(store)


def make_store(db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path) -> JobStore:
    return JobStore(
        db,
        outbox,
        data_dir=tmp_path / "data",
        limits=LimitSettings(max_jobs_per_user=100),
        queue=QueueSettings(retry_pause_s=0),
        clock=clock,
    )


async def set_slots(store: JobStore, number: int) -> None:
    """Set the number of slots."""
    await store.slots.set(slots_of(Devices(), number))


async def claim(store: JobStore, slots: int) -> ActiveJob | None:
    """Claim the first queued job, with `slots` slots."""
    await set_slots(store, slots)
    return await store.attempts.claim()


def submitter(store: JobStore) -> Submit:
    """`await submit(owner=1)`: a new job each time."""
    numbers = iter(range(1, 10_000))

    async def submit(*, owner: int = 1, guild: int = GUILD, name: str = "fox", interaction: int | None = None) -> Job:
        interaction_id = next(numbers) if interaction is None else interaction
        spec = make_spec({"name": name, "dataset": "/nowhere"})
        return await store.submit(
            NewJob(
                interaction_id=interaction_id,
                guild_id=guild,
                channel_id=CHANNEL,
                owner_id=owner,
                dataset_id=1,
                spec=spec,
            )
        )

    return submit


async def add_dataset(db: Database) -> None:
    counts = '{"images":9,"kept":9,"dropped":0,"refused":0,"train":7,"validation":1,"test":1,"captioned":9}'
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            """INSERT OR IGNORE INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
               VALUES (1, ?, 1, 'foxes', ?, 'd', ?, 'Nine foxes.', 0)""",
            (GUILD, "ab" * 32, counts),
        )


async def notifications(db: Database) -> list[str]:
    """The dedupe keys of all notifications, in order."""
    return [row[0] for row in await db.all("SELECT dedupe_key FROM outbox ORDER BY id")]
