"""Datasets by content: `datasets/<sha256>/source` as handed in, `…/prepared` as examined; and who calls them what."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bot.config import LimitSettings, PrepareSettings
from bot.datasets.dataset import Dataset, Received, Upload
from bot.datasets.preparing import run_prepare
from bot.datasets.receiving import PREPARED, dataset_name, receive
from bot.db import Connection, Database, Row
from bot.errors import DatasetRefused, NoSuchDataset, PrepareFailed, TooFewImages
from trainer.protocol.report import Counts, DatasetReport, read_report

log = logging.getLogger(__name__)


class DatasetStore:
    """Takes datasets in, has them examined, and finds them again."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        limits: LimitSettings | None = None,
        prepare: PrepareSettings | None = None,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
        env: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._datasets = data_dir.absolute() / "datasets"
        self._incoming = data_dir.absolute() / "incoming"
        self._limits = limits or LimitSettings()
        self._prepare = prepare or PrepareSettings()
        self._command = tuple(command)
        self._env = dict(os.environ if env is None else env)
        self._now = now
        #: One examination of a content at a time; the second finds the first one's result.
        self._locks: dict[str, asyncio.Lock] = {}

    async def receive(self, file_name: str, chunks: AsyncIterator[bytes], max_bytes: int | None = None) -> Received:
        """Take one file in; see `receive_all`."""
        return await self.receive_all([Upload(name=file_name, chunks=chunks)], max_bytes=max_bytes)

    async def receive_all(self, uploads: Sequence[Upload], *, max_bytes: int | None = None) -> Received:
        """Take files in without opening them; `max_bytes` together, the configured limit if None.

        Raises:
            DatasetTooLarge: they are larger; nothing is left behind.
            DatasetRefused: there are none, too many, or they are empty.
        """
        if len(uploads) > self._limits.max_dataset_files:
            raise DatasetRefused(
                f"You handed in {len(uploads)} files; {self._limits.max_dataset_files} are taken. Put them into a zip."
            )
        limit = self._limits.max_dataset_bytes if max_bytes is None else max_bytes
        return await receive(uploads, incoming=self._incoming, datasets=self._datasets, max_bytes=limit)

    async def prepare(self, received: Received, *, guild_id: int, owner_id: int, name: str | None = None) -> Dataset:
        """Have what was received examined and keep it as a dataset of that server; known content is a look-up.

        Raises:
            DatasetRefused: it cannot be trained on, or could not be examined; the sentence says why.
        """
        folder = self._folder(received.sha256)
        async with self._locks.setdefault(received.sha256, asyncio.Lock()):
            report = await asyncio.to_thread(_report, folder)
            if report is None:
                await self._examine(received, folder)
                report = await asyncio.to_thread(_report, folder)
        if report is None:
            raise PrepareFailed(name=received.title, why="what the trainer wrote about it cannot be read.")
        counts = report.counts
        if counts.kept < self._limits.min_images:
            raise TooFewImages(
                kept=counts.kept, dropped=counts.dropped, refused=counts.refused, needed=self._limits.min_images
            )
        wanted = dataset_name(name or received.files[0].name)
        async with self._db.transaction() as connection:
            return self._dataset(await self._insert(connection, received.sha256, guild_id, owner_id, wanted, report))

    async def get(self, dataset_id: int) -> Dataset:
        """The dataset of that number.

        Raises:
            NoSuchDataset: there is none.
        """
        row = await self._db.one("SELECT * FROM dataset WHERE id = ?", (dataset_id,))
        if row is None:
            raise NoSuchDataset(wanted=dataset_id)
        return self._dataset(row)

    async def named(self, guild_id: int, name: str) -> Dataset:
        """The dataset of that name, of that server.

        Raises:
            NoSuchDataset: there is none.
        """
        row = await self._db.one(
            "SELECT * FROM dataset WHERE guild_id = ? AND name = ?", (guild_id, name.strip().lower())
        )
        if row is None:
            raise NoSuchDataset(wanted=name)
        return self._dataset(row)

    async def search(self, guild_id: int, text: str = "", limit: int = 25) -> list[Dataset]:
        """Datasets of a server whose name holds `text`, the newest first."""
        rows = await self._db.all(
            "SELECT * FROM dataset WHERE guild_id = ? AND instr(name, lower(?)) > 0 ORDER BY id DESC LIMIT ?",
            (guild_id, text.strip(), limit),
        )
        return [self._dataset(row) for row in rows]

    async def report(self, dataset: Dataset) -> DatasetReport:
        """All that is known about a dataset's pictures."""
        return await asyncio.to_thread(read_report, dataset.folder)

    async def sweep(self, *, older_than_s: float) -> int:
        """Delete downloads that never arrived whole and content that is no dataset; returns how many folders."""
        used = {row[0] for row in await self._db.all("SELECT DISTINCT sha256 FROM dataset")}
        return await asyncio.to_thread(_sweep, self._incoming, self._datasets, used, self._now() - older_than_s)

    async def _examine(self, received: Received, folder: Path) -> None:
        """Fill `folder`, by rename: one that is there is whole."""
        part = folder.with_suffix(".part")
        await asyncio.to_thread(_remove, part, folder)
        await run_prepare(
            received.source,
            part,
            title=received.title,
            log_file=folder.parent / "prepare.log",
            command=self._command,
            env=self._env,
            settings=self._prepare,
        )
        await asyncio.to_thread(_publish, part, folder)
        log.info("%s examined: %s", received.title, folder)

    async def _insert(
        self, connection: Connection, sha256: str, guild_id: int, owner_id: int, wanted: str, report: DatasetReport
    ) -> Row:
        known = list(
            await connection.execute_fetchall(
                "SELECT * FROM dataset WHERE guild_id = ? AND sha256 = ?", (guild_id, sha256)
            )
        )
        if known:
            return known[0]
        taken = {
            row[0]
            for row in await connection.execute_fetchall("SELECT name FROM dataset WHERE guild_id = ?", (guild_id,))
        }
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        rows = await connection.execute_fetchall(
            """INSERT INTO dataset (guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *""",
            (
                guild_id,
                owner_id,
                name,
                sha256,
                report.digest,
                report.counts.model_dump_json(),
                report.summary,
                self._now(),
            ),
        )
        return next(iter(rows))

    def _folder(self, sha256: str) -> Path:
        return self._datasets / sha256 / PREPARED

    def _dataset(self, row: Row) -> Dataset:
        return Dataset(
            id=row["id"],
            guild_id=row["guild_id"],
            owner_id=row["owner_id"],
            name=row["name"],
            sha256=row["sha256"],
            folder=self._folder(row["sha256"]),
            counts=Counts.model_validate_json(row["counts"]),
            summary=row["summary"],
            created_at=datetime.fromtimestamp(row["created_at"], UTC),
        )


def _report(folder: Path) -> DatasetReport | None:
    """The report of a prepared folder; None if it is missing, or of another version and to be made again."""
    try:
        return read_report(folder)
    except (FileNotFoundError, ValidationError):
        return None


def _publish(part: Path, folder: Path) -> None:
    # The row that comes next survives a power cut, so these files must too; one call instead of one fsync a picture.
    os.sync()
    part.rename(folder)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(incoming: Path, datasets: Path, used: set[str], before: float) -> int:
    left_over = [*incoming.glob("*"), *(folder for folder in datasets.glob("*") if folder.name not in used)]
    old = [folder for folder in left_over if folder.stat().st_mtime < before]
    _remove(*old)
    return len(old)
