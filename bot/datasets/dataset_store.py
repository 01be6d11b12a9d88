"""The table of datasets: prepare uploads, apply decisions, add files, find and delete datasets.

Files lie by content: `datasets/<sha256>/source` as uploaded, `…/prepared…` as prepared. A prepared folder never
changes: decisions make another revision, and the row moves on to it. A deleted dataset keeps its row, for the jobs
that were trained on it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import CaptionSettings, Config, LimitSettings, PrepareSettings, WebSettings
from bot.datasets import dataset_sql
from bot.datasets.dataset import (
    PREPARED,
    SOURCE,
    Dataset,
    Received,
    ReceivedFile,
    Upload,
    require_seen,
    revision_name,
)
from bot.datasets.dataset_files import (
    dataset_name,
    file_sizes,
    free_name,
    link_uploads,
    merge_files,
    pack_report,
    sweep,
    temporary_folder,
    touch,
    write_uploads,
)
from bot.datasets.prepare_runner import PrepareRunner
from bot.datasets.upload_limits import UploadLimits
from bot.db import Connection, Database, Row
from bot.db.audit import write_entry
from bot.errors import DatasetInUse, DatasetRefused, NoSuchDataset
from trainer.protocol.edits import Edits
from trainer.protocol.report import DatasetReport
from trainer.protocol.text import _


class DatasetStore:
    """Receives, prepares, changes and finds datasets."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        limits: LimitSettings | None = None,
        web: WebSettings | None = None,
        prepare: PrepareSettings | None = None,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
        env: Mapping[str, str] | None = None,
        download_env: Mapping[str, str] | None = None,
        cpu_slots: int = 2,
        min_free_bytes: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._datasets = data_dir.absolute() / "datasets"
        self._incoming = data_dir.absolute() / "incoming"
        self._limits = UploadLimits(limits or LimitSettings(), web or WebSettings(), min_free_bytes=min_free_bytes)
        self.runner = PrepareRunner(
            command=command,
            env=Config().confined_environment() if env is None else env,
            download_env=Config().trainer_environment() if download_env is None else download_env,
            settings=prepare or PrepareSettings(),
            max_upload_bytes=self._limits.max_bytes,
            cpu_slots=cpu_slots,
        )
        self._clock = clock
        #: Contents that were received, and are not examined yet, by their hash: how many times.
        self._in_hand = Counter[str]()
        #: One new revision of a dataset at a time; decisions are stored without waiting for it.
        self._locks: dict[int, asyncio.Lock] = {}

    # -- receive and prepare --------------------------------------------------------------------------------------

    async def receive(
        self, uploads: Sequence[Upload], *, max_bytes: int | None = None, owner_id: int | None = None
    ) -> Received:
        """Store uploaded files without opening them.

        Args:
            uploads: The files.
            max_bytes: Limit on all of them together; the configured one if None.
            owner_id: Whose datasets count; None: no limit applies.

        Raises:
            DatasetTooLarge: They are larger; nothing is left behind.
            TooManyDatasets: Their owner has as much as one may have; nothing was downloaded.
            DiskAlmostFull: There is no room for anyone; nothing was downloaded.
            DatasetRefused: There are none, too many, or they are empty.
        """
        self._limits.require_few_files(len(uploads))
        await self.require_disk()
        if owner_id is not None:
            await self.require_share(owner_id, datasets=1, more_bytes=1)
        return await write_uploads(
            uploads,
            incoming=self._incoming,
            datasets=self._datasets,
            max_bytes=self._limits.settings.max_dataset_bytes if max_bytes is None else max_bytes,
            claim=self._claim,
        )

    async def require_disk(self, more_bytes: int = 0) -> None:
        """Raise unless there is room for an upload.

        Raises:
            DiskAlmostFull: There is none for anyone.
        """
        await asyncio.to_thread(self._limits.require_disk, self._incoming, more_bytes)

    async def require_share(self, owner_id: int, *, datasets: int, more_bytes: int) -> None:
        """Raise unless a person may have so many datasets and bytes more.

        Raises:
            TooManyDatasets: They have as much as one may have.
        """
        stored = await self._db.all(dataset_sql.STORED, (owner_id,))
        self._limits.require_share(stored, datasets=datasets, more_bytes=more_bytes)

    async def adopt(self, paths: Mapping[str, Path]) -> Received:
        """Return what `receive` returns, of files that have arrived on this disk in another way.

        Args:
            paths: Where each is, by its name in the dataset; another name is made for it, and it stays where it is.
        """
        return await asyncio.to_thread(
            link_uploads, paths, incoming=self._incoming, datasets=self._datasets, claim=self._claim
        )

    async def find_received(self, sha256: str, files: Sequence[ReceivedFile]) -> Received | None:
        """Return what `receive` returned when these files arrived; None if they are not all there."""
        received = Received(sha256=sha256, source=self._datasets / sha256 / SOURCE, files=tuple(files))
        wanted = {(file.name, file.bytes) for file in files}
        is_there = await asyncio.to_thread(received.source.is_dir)
        if not is_there or not wanted <= set(await asyncio.to_thread(file_sizes, received.source)):
            return None
        self._claim(sha256)
        return received

    async def prepare(
        self, received: Received, *, guild_id: int, owner_id: int, name: str | None = None, is_private: bool = False
    ) -> Dataset:
        """Prepare received files and store them as a dataset of a server; known content is a look-up.

        Raises:
            TooManyDatasets: Their owner has as much as one may have.
            DatasetRefused: The dataset cannot be trained on, or could not be prepared; its files are deleted.
            PrivateCopy: These files are another member's private dataset.
        """
        async with self._deleted_if_refused(received):
            known = await self.with_content(guild_id, received)
            require_seen(known, owner_id)
            if known is not None and known.is_current and await asyncio.to_thread(known.folder.is_dir):
                return known
            report = await self.runner.prepare(
                received.source,
                self._datasets / received.sha256 / PREPARED,
                title=received.title,
                owner_id=owner_id,
            )
            self._limits.require_enough_images(report.counts)
            wanted = dataset_name(name or received.files[0].name)
            async with self._db.transaction() as connection:
                row = await self._insert(connection, received, guild_id, owner_id, wanted, report, is_private)
                return self._dataset(row)

    async def with_content(self, guild_id: int, received: Received) -> Dataset | None:
        """Return the dataset of a server that is made of exactly these files."""
        row = await self._db.one(dataset_sql.BY_CONTENT, (guild_id, received.sha256))
        return None if row is None else self._dataset(row)

    # -- find -----------------------------------------------------------------------------------------------------

    async def get(self, dataset_id: int) -> Dataset:
        """Return a dataset by its number.

        Raises:
            NoSuchDataset: There is none, or it was deleted.
        """
        row = await self._db.one(dataset_sql.BY_ID, (dataset_id,))
        if row is None:
            raise NoSuchDataset(wanted=dataset_id)
        return self._dataset(row)

    async def get_in(self, guild_id: int, dataset_id: int) -> Dataset:
        """Return a dataset of a server by its number.

        Raises:
            NoSuchDataset: The server has none of that number.
        """
        dataset = await self.get(dataset_id)
        if dataset.guild_id != guild_id:
            raise NoSuchDataset(wanted=dataset_id)
        return dataset

    async def named(self, guild_id: int, name: str) -> Dataset:
        """Return a dataset of a server by its name.

        Raises:
            NoSuchDataset: The server has none of that name.
        """
        row = await self._db.one(dataset_sql.BY_NAME, (guild_id, name.strip().lower()))
        if row is None:
            raise NoSuchDataset(wanted=name)
        return self._dataset(row)

    async def search(
        self, guild_id: int, text: str = "", limit: int = 25, offset: int = 0, *, viewer_id: int | None = None
    ) -> list[Dataset]:
        """Return a server's datasets whose name contains `text`, newest first; only those that a viewer may see."""
        values = {
            "guild_id": guild_id,
            "text": text.strip(),
            "limit": limit,
            "offset": offset,
            "viewer_id": viewer_id,
        }
        return [self._dataset(row) for row in await self._db.all(dataset_sql.SEARCH, values)]

    async def count(self, guild_id: int, *, viewer_id: int | None = None) -> int:
        """Return the number of a server's datasets; only of those that a viewer may see."""
        row = await self._db.one(dataset_sql.COUNT, {"guild_id": guild_id, "viewer_id": viewer_id})
        return 0 if row is None else int(row[0])

    async def report(self, dataset: Dataset) -> DatasetReport:
        """Return the report of a dataset's prepared folder."""
        return await self.runner.report(dataset.folder)

    @asynccontextmanager
    async def packed_report(self, dataset: Dataset) -> AsyncIterator[Path]:
        """Yield a zip of the report with its images; it is deleted afterwards."""
        report = await self.report(dataset)
        with temporary_folder(self._incoming) as folder:
            yield await asyncio.to_thread(pack_report, dataset.folder, report, folder / "report.zip")

    # -- change ---------------------------------------------------------------------------------------------------

    async def set_privacy(self, dataset_id: int, *, by: int, is_private: bool, guests: Sequence[int] = ()) -> Dataset:
        """Let only its owner, managers and `guests` see a dataset, or everyone.

        Raises:
            NoSuchDataset: It was deleted.
        """
        values = (is_private, json.dumps(sorted(set(guests))), dataset_id)
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(dataset_sql.SET_PRIVACY, values)
            dataset = self._dataset(_only(rows, dataset_id))
            verb = "hide dataset" if is_private else "show dataset"
            at, guild_id = self._clock.time(), dataset.guild_id
            await write_entry(connection, at=at, verb=verb, guild_id=guild_id, by=by, after=dataset.name)
        return dataset

    async def decide(self, dataset_id: int, change: Callable[[Edits], Edits]) -> Dataset:
        """Store a decision as a change of the newest edits, so that concurrent decisions all count.

        Nothing is prepared yet; see `apply`.

        Raises:
            NoSuchDataset: It was deleted.
        """
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(dataset_sql.BY_ID, (dataset_id,))
            dataset = self._dataset(_only(rows, dataset_id))
            edits = change(dataset.edits)
            rows = await connection.execute_fetchall(dataset_sql.SET_EDITS, (edits.model_dump_json(), dataset_id))
            return self._dataset(_only(rows, dataset_id))

    async def apply(self, dataset_id: int) -> Dataset:
        """Return the dataset with all decisions applied: a new revision, unless nothing is pending.

        Raises:
            NoSuchDataset: It was deleted.
            DatasetRefused: The result cannot be trained on; the dataset is unchanged and the decisions stay stored.
        """
        async with self._locks.setdefault(dataset_id, asyncio.Lock()):
            dataset = await self.get(dataset_id)
            while dataset.is_pending:
                folder = dataset.folder.with_name(revision_name(dataset.edits, dataset.earlier))
                report = await self._prepare_next(dataset, dataset.source, folder)
                await self._move_on(dataset, folder, dataset.earlier, report)
                # There may be more decisions by now.
                dataset = await self.get(dataset_id)
            return dataset

    async def edit(self, dataset_id: int, change: Callable[[Edits], Edits]) -> Dataset:
        """`decide`, then `apply`; raises what they raise."""
        await self.decide(dataset_id, change)
        return await self.apply(dataset_id)

    async def add(self, dataset_id: int, received: Received, *, upload_id: int | None = None) -> Dataset:
        """Add files to a dataset; its images keep their splits.

        Args:
            dataset_id: The dataset.
            received: The files.
            upload_id: Interaction of the `PendingUpload` that is marked as done in the same transaction.

        Raises:
            NoSuchDataset: It was deleted.
            DatasetRefused: Nothing is new, it would be too large, or the result is another dataset already.
        """
        async with self._deleted_if_refused(received), self._locks.setdefault(dataset_id, asyncio.Lock()):
            while True:
                dataset = await self.get(dataset_id)
                self._limits.require_room(dataset, await asyncio.to_thread(file_sizes, dataset.source), received)
                await self.require_share(dataset.owner_id, datasets=0, more_bytes=received.bytes)
                merged = await asyncio.to_thread(
                    merge_files, dataset.source, received, incoming=self._incoming, datasets=self._datasets
                )
                async with self._deleted_if_refused(merged):
                    if await self._extend(dataset, merged, upload_id=upload_id):
                        return await self.get(dataset_id)

    async def _extend(self, dataset: Dataset, merged: Received, *, upload_id: int | None) -> bool:
        """Prepare the files of a dataset and those that are added; False if the dataset has changed meanwhile."""
        earlier = f"{dataset.sha256}/{dataset.folder.name}"
        folder = merged.source.parent / revision_name(dataset.edits, earlier)
        report = await self._prepare_next(dataset, merged.source, folder)
        return await self._move_on(dataset, folder, earlier, report, source_bytes=merged.bytes, upload_id=upload_id)

    async def _prepare_next(self, dataset: Dataset, source: Path, folder: Path) -> DatasetReport:
        """Prepare the revision that follows a dataset."""
        report = await self.runner.prepare(
            source,
            folder,
            title=dataset.name,
            owner_id=dataset.owner_id,
            edits=dataset.edits,
            earlier=dataset.folder,
        )
        self._limits.require_enough_images(report.counts)
        return report

    async def write_captions(self, dataset_id: int, settings: CaptionSettings) -> Dataset:
        """Let a model write the missing captions; each is marked as automatic.

        Raises:
            NoSuchDataset: It was deleted.
            DatasetRefused: The model cannot be used, or took too long.
        """
        written = await self.runner.write_captions(await self.apply(dataset_id), settings)

        def with_captions(edits: Edits) -> Edits:
            automatic = {**edits.automatic, **written.automatic}
            return edits.model_copy(update={"automatic": automatic, "captioner": written.captioner})

        return await self.edit(dataset_id, with_captions)

    async def delete(self, dataset_id: int) -> Dataset:
        """Delete a dataset: its name is free at once; its files are swept later, unless a job needs them.

        Raises:
            NoSuchDataset: It was deleted already.
            DatasetInUse: An unfinished job needs it.
        """
        async with self._db.transaction() as connection:
            dataset = self._dataset(
                _only(await connection.execute_fetchall(dataset_sql.BY_ID, (dataset_id,)), dataset_id)
            )
            needs = {"dataset_id": dataset_id, "folder": f"{dataset.folder.parent}/"}
            for job in await connection.execute_fetchall(dataset_sql.JOB_THAT_NEEDS, needs):
                raise DatasetInUse(name=dataset.name, job_id=job["id"], job_name=job["name"])
            await connection.execute_fetchall(dataset_sql.DELETE, (self._clock.time(), dataset_id))
        await asyncio.to_thread(touch, dataset.folder, dataset.source, dataset.folder.parent)
        return dataset

    async def sweep(self, *, older_than_s: float) -> int:
        """Delete contents that never became a dataset and unused revisions; return the number of folders."""
        living = await self._db.all(dataset_sql.REVISIONS_IN_USE)
        uploaded = await self._db.all(dataset_sql.PENDING_CONTENTS)
        trained_on = [Path(row[0]) for row in await self._db.all(dataset_sql.TRAINED_ON)]
        return await asyncio.to_thread(
            sweep,
            self._incoming,
            self._datasets,
            contents={row["sha256"] for row in (*living, *uploaded)},
            revisions={
                *(f"{row['sha256']}/{row['revision']}" for row in living),
                *(f"{folder.parent.name}/{folder.name}" for folder in trained_on),
            },
            before=self._clock.time() - older_than_s,
        )

    # -- internals ------------------------------------------------------------------------------------------------

    async def _move_on(
        self,
        seen: Dataset,
        folder: Path,
        earlier: str,
        report: DatasetReport,
        *,
        source_bytes: int | None = None,
        upload_id: int | None = None,
    ) -> bool:
        """Let the row show another revision; False if the dataset is no longer as it was `seen`."""
        sha256 = folder.parent.name
        async with self._db.transaction() as connection:
            row = _only(await connection.execute_fetchall(dataset_sql.BY_ID, (seen.id,)), seen.id)
            if self._dataset(row) != seen:
                return False
            for other in await connection.execute_fetchall(dataset_sql.BY_CONTENT, (seen.guild_id, sha256)):
                if other["id"] != seen.id:
                    require_seen(self._dataset(other), seen.owner_id)
                    raise DatasetRefused(
                        _(
                            "Together these files are the dataset {other} already. {name} was not changed.",
                            other=other["name"],
                            name=seen.name,
                        )
                    )
            await connection.execute_fetchall(
                dataset_sql.MOVE_ON, (sha256, source_bytes, folder.name, earlier, *_report_values(report), seen.id)
            )
            await connection.execute_fetchall(dataset_sql.UPLOAD_DONE, (upload_id,))
        # The grace period of the old revision starts now.
        await asyncio.to_thread(touch, seen.folder, seen.source, seen.folder.parent)
        return True

    async def _insert(
        self,
        connection: Connection,
        received: Received,
        guild_id: int,
        owner_id: int,
        wanted: str,
        report: DatasetReport,
        is_private: bool,
    ) -> Row:
        for known in await connection.execute_fetchall(dataset_sql.BY_CONTENT, (guild_id, received.sha256)):
            require_seen(self._dataset(known), owner_id)
            if known["revision"] != PREPARED:
                return known
            # Prepared again, by another version of the trainer.
            again = (*_report_values(report), known["id"])
            return next(iter(await connection.execute_fetchall(dataset_sql.REPORT_AGAIN, again)))
        stored = await connection.execute_fetchall(dataset_sql.STORED, (owner_id,))
        self._limits.require_share(stored, datasets=1, more_bytes=received.bytes)
        name = free_name(wanted, {row[0] for row in await connection.execute_fetchall(dataset_sql.NAMES, (guild_id,))})
        values = (
            guild_id, owner_id, name, is_private, self._clock.time(), received.sha256, received.bytes,
            *_report_values(report)
        )  # fmt: skip
        return next(iter(await connection.execute_fetchall(dataset_sql.INSERT, values)))

    def _claim(self, sha256: str) -> None:
        self._in_hand[sha256] += 1

    @asynccontextmanager
    async def _deleted_if_refused(self, received: Received) -> AsyncIterator[None]:
        """Delete the files of an upload if the body refuses it, unless others need or examine the same."""
        sha256 = received.sha256
        self._in_hand[sha256] = max(1, self._in_hand[sha256])
        try:
            yield
        except DatasetRefused:
            # Nothing is awaited between the check and the rename: another upload of the same files claims them first.
            if await self._db.one(dataset_sql.IS_NEEDED, (sha256,)) is None and self._in_hand[sha256] == 1:
                with temporary_folder(self._incoming) as trash, suppress(FileNotFoundError):
                    received.source.rename(trash / SOURCE)
            raise
        finally:
            self._in_hand[sha256] -= 1
            if self._in_hand[sha256] <= 0:
                del self._in_hand[sha256]

    def _dataset(self, row: Row) -> Dataset:
        return Dataset.from_row(row, self._datasets)


def _report_values(report: DatasetReport) -> tuple[str, int, str, str]:
    """Columns that repeat the report, so that it need not be read to queue a job."""
    return report.digest, report.version, report.counts.model_dump_json(), report.summary


def _only(rows: object, dataset_id: int) -> Row:
    row: Row | None = next(iter(rows), None)  # type: ignore[call-overload]
    if row is None:
        raise NoSuchDataset(wanted=dataset_id)
    return row
