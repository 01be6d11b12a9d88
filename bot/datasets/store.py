"""Datasets by content: `datasets/<sha256>/source` as handed in, `…/prepared…` as examined; and who calls them what.

A prepared folder never changes: what people decide makes another revision, and the row moves on to it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bot.config import CaptionSettings, LimitSettings, PrepareSettings
from bot.datasets import sql
from bot.datasets.dataset import Dataset, Received, ReceivedFile, Upload
from bot.datasets.examining import Examiner
from bot.datasets.merging import merge
from bot.datasets.packing import pack_report
from bot.datasets.receiving import PREPARED, SOURCE, dataset_name, receive
from bot.datasets.revisions import dataset_of, is_prepared, make_young, remove, revision_name, sweep
from bot.db import Connection, Database, Row
from bot.errors import DatasetInUse, DatasetRefused, DatasetTooLarge, NoSuchDataset, TooFewImages
from trainer.protocol.edits import Edits
from trainer.protocol.report import DatasetReport, read_report


class DatasetStore:
    """Takes datasets in, has them examined, lets people change them, and finds them again."""

    def __init__(
        self,
        db: Database,
        *,
        data_dir: Path,
        limits: LimitSettings | None = None,
        prepare: PrepareSettings | None = None,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
        env: Mapping[str, str] | None = None,
        cpu_slots: int = 2,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._datasets = data_dir.absolute() / "datasets"
        self._incoming = data_dir.absolute() / "incoming"
        self._limits = limits or LimitSettings()
        self._examiner = Examiner(
            command=command,
            env=os.environ if env is None else env,
            settings=prepare or PrepareSettings(),
            cpu_slots=cpu_slots,
        )
        self._now = now
        #: One new revision of a dataset at a time; decisions are written down without waiting for it.
        self._locks: dict[int, asyncio.Lock] = {}

    # -- taking in -----------------------------------------------------------------------------------------------

    async def receive(self, file_name: str, chunks: AsyncIterator[bytes], max_bytes: int | None = None) -> Received:
        """Take one file in; see `receive_all`."""
        return await self.receive_all([Upload(name=file_name, chunks=chunks)], max_bytes=max_bytes)

    async def receive_all(self, uploads: Sequence[Upload], *, max_bytes: int | None = None) -> Received:
        """Take files in without opening them; `max_bytes` together, the configured limit if None.

        Raises:
            DatasetTooLarge: they are larger; nothing is left behind.
            DatasetRefused: there are none, too many, or they are empty.
        """
        self._require_few(len(uploads))
        limit = self._limits.max_dataset_bytes if max_bytes is None else max_bytes
        return await receive(uploads, incoming=self._incoming, datasets=self._datasets, max_bytes=limit)

    async def received_before(self, sha256: str, files: Sequence[ReceivedFile]) -> Received | None:
        """What `receive_all` gave when these files arrived, None if they are not all there."""
        received = Received(sha256=sha256, source=self._datasets / sha256 / SOURCE, files=tuple(files))
        wanted = {(file.name, file.bytes) for file in files}
        is_there = await asyncio.to_thread(received.source.is_dir)
        return received if is_there and wanted <= set(await asyncio.to_thread(_sizes, received.source)) else None

    async def prepare(self, received: Received, *, guild_id: int, owner_id: int, name: str | None = None) -> Dataset:
        """Have what was received examined and keep it as a dataset of that server; known content is a look-up.

        Raises:
            DatasetRefused: it cannot be trained on, or could not be examined; the sentence says why.
        """
        known = await self.known(guild_id, received)
        if known is not None and await asyncio.to_thread(is_prepared, known.folder):
            return known
        report = await self._examiner.examine(
            received.source, self._datasets / received.sha256 / PREPARED, title=received.title
        )
        self._require_enough(report)
        wanted = dataset_name(name or received.files[0].name)
        async with self._db.transaction() as connection:
            return self._dataset(await self._insert(connection, received.sha256, guild_id, owner_id, wanted, report))

    async def known(self, guild_id: int, received: Received) -> Dataset | None:
        """The dataset of that server that is made of just these files, None if there is none."""
        row = await self._db.one(sql.BY_CONTENT, (guild_id, received.sha256))
        return None if row is None else self._dataset(row)

    # -- asking --------------------------------------------------------------------------------------------------

    async def get(self, dataset_id: int) -> Dataset:
        """The dataset of that number.

        Raises:
            NoSuchDataset: there is none, or it was deleted.
        """
        row = await self._db.one(sql.BY_ID, (dataset_id,))
        if row is None:
            raise NoSuchDataset(wanted=dataset_id)
        return self._dataset(row)

    async def get_in(self, guild_id: int, dataset_id: int) -> Dataset:
        """The dataset of that number, of that server.

        Raises:
            NoSuchDataset: there is none there.
        """
        dataset = await self.get(dataset_id)
        if dataset.guild_id != guild_id:
            raise NoSuchDataset(wanted=dataset_id)
        return dataset

    async def named(self, guild_id: int, name: str) -> Dataset:
        """The dataset of that name, of that server.

        Raises:
            NoSuchDataset: there is none.
        """
        row = await self._db.one(sql.BY_NAME, (guild_id, name.strip().lower()))
        if row is None:
            raise NoSuchDataset(wanted=name)
        return self._dataset(row)

    async def search(self, guild_id: int, text: str = "", limit: int = 25, offset: int = 0) -> list[Dataset]:
        """Datasets of a server whose name holds `text`, the newest first."""
        return [self._dataset(row) for row in await self._db.all(sql.SEARCH, (guild_id, text.strip(), limit, offset))]

    async def count(self, guild_id: int) -> int:
        """How many datasets a server has."""
        row = await self._db.one(sql.COUNT, (guild_id,))
        return 0 if row is None else int(row[0])

    async def report(self, dataset: Dataset) -> DatasetReport:
        """All that is known about a dataset's pictures."""
        return await asyncio.to_thread(read_report, dataset.folder)

    @asynccontextmanager
    async def packed_report(self, dataset: Dataset) -> AsyncIterator[Path]:
        """A zip of the report with its pictures, for as long as it is sent."""
        folder = self._incoming / secrets.token_hex(8)
        await asyncio.to_thread(folder.mkdir, parents=True)
        try:
            report = await self.report(dataset)
            yield await asyncio.to_thread(pack_report, dataset.folder, report, folder / "report.zip")
        finally:
            await asyncio.to_thread(remove, folder)

    async def source_bytes(self, dataset: Dataset) -> int:
        """Size of what was handed in."""
        return sum(size for _, size in await asyncio.to_thread(_sizes, dataset.source))

    # -- changing ------------------------------------------------------------------------------------------------

    async def decide(self, dataset_id: int, change: Callable[[Edits], Edits]) -> Dataset:
        """Write down what somebody decided, as a change of the newest edits: two who decide at once both count.

        Nothing is examined yet; see `apply`.

        Raises:
            NoSuchDataset: it was deleted.
        """
        async with self._db.transaction() as connection:
            rows = await connection.execute_fetchall(sql.BY_ID, (dataset_id,))
            dataset = self._dataset(_only(rows, dataset_id))
            edits = change(dataset.edits)
            rows = await connection.execute_fetchall(sql.DECIDE, (edits.model_dump_json(), dataset_id))
            return self._dataset(_only(rows, dataset_id))

    async def apply(self, dataset_id: int) -> Dataset:
        """The dataset with all that was decided about it: a new revision, unless there is nothing new.

        Raises:
            NoSuchDataset: it was deleted.
            DatasetRefused: it cannot be trained on like that; it stays as it was, the decisions stay written down.
        """
        async with self._locks.setdefault(dataset_id, asyncio.Lock()):
            dataset = await self.get(dataset_id)
            while dataset.is_pending:
                folder = dataset.folder.with_name(revision_name(dataset.edits, dataset.earlier))
                report = await self._examiner.examine(
                    dataset.source, folder, title=dataset.name, edits=dataset.edits, earlier=dataset.folder
                )
                self._require_enough(report)
                await self._move_on(dataset, folder, dataset.earlier, report)
                # Somebody may have decided more in the meantime.
                dataset = await self.get(dataset_id)
            return dataset

    async def edit(self, dataset_id: int, change: Callable[[Edits], Edits]) -> Dataset:
        """`decide`, then `apply`; raises what they raise."""
        await self.decide(dataset_id, change)
        return await self.apply(dataset_id)

    async def add(self, dataset_id: int, received: Received, *, upload_id: int | None = None) -> Dataset:
        """The dataset with more files; the pictures that it had keep their side of the split.

        `upload_id`: the interaction of a `PendingUpload`, which is marked as done with it.

        Raises:
            NoSuchDataset: it was deleted.
            DatasetRefused: nothing is new, it would be too large, or all of it is another dataset already.
        """
        async with self._locks.setdefault(dataset_id, asyncio.Lock()):
            while True:
                dataset = await self.get(dataset_id)
                await self._require_room(dataset, received)
                merged = await asyncio.to_thread(
                    merge, dataset.source, received, incoming=self._incoming, datasets=self._datasets
                )
                earlier = f"{dataset.sha256}/{dataset.folder.name}"
                folder = merged.source.parent / revision_name(dataset.edits, earlier)
                report = await self._examiner.examine(
                    merged.source, folder, title=dataset.name, edits=dataset.edits, earlier=dataset.folder
                )
                self._require_enough(report)
                if await self._move_on(dataset, folder, earlier, report, upload_id=upload_id):
                    return await self.get(dataset_id)

    async def caption(self, dataset_id: int, settings: CaptionSettings) -> Dataset:
        """The dataset with captions by a model where it had none, each marked as automatic.

        Raises:
            NoSuchDataset: it was deleted.
            DatasetRefused: the model cannot be used, or took too long.
        """
        written = await self._examiner.captions(await self.apply(dataset_id), settings)

        def with_captions(edits: Edits) -> Edits:
            automatic = {**edits.automatic, **written.automatic}
            return edits.model_copy(update={"automatic": automatic, "captioner": written.captioner})

        return await self.edit(dataset_id, with_captions)

    async def delete(self, dataset_id: int) -> Dataset:
        """Forget a dataset: its name is free at once, its files are swept later, those that a job needs never.

        Raises:
            NoSuchDataset: it is gone already.
            DatasetInUse: a job that has not ended needs it.
        """
        async with self._db.transaction() as connection:
            dataset = self._dataset(_only(await connection.execute_fetchall(sql.BY_ID, (dataset_id,)), dataset_id))
            for job in await connection.execute_fetchall(sql.JOB_THAT_NEEDS, (dataset_id,)):
                raise DatasetInUse(name=dataset.name, job_id=job["id"], job_name=job["name"])
            await connection.execute_fetchall(sql.DELETE, (self._now(), dataset_id))
        await asyncio.to_thread(make_young, dataset.folder, dataset.source, dataset.folder.parent)
        return dataset

    async def sweep(self, *, older_than_s: float) -> int:
        """Delete what never became a dataset, and revisions that nothing uses; returns how many folders."""
        living = await self._db.all(sql.REVISIONS_IN_USE)
        uploaded = await self._db.all(sql.UPLOADED)
        trained_on = [Path(row[0]) for row in await self._db.all(sql.TRAINED_ON)]
        return await asyncio.to_thread(
            sweep,
            self._incoming,
            self._datasets,
            contents={row["sha256"] for row in (*living, *uploaded)},
            revisions={
                *(f"{row['sha256']}/{row['revision']}" for row in living),
                *(f"{folder.parent.name}/{folder.name}" for folder in trained_on),
            },
            before=self._now() - older_than_s,
        )

    # -- within --------------------------------------------------------------------------------------------------

    async def _move_on(
        self, seen: Dataset, folder: Path, earlier: str, report: DatasetReport, *, upload_id: int | None = None
    ) -> bool:
        """Let the row show another revision; False, and nothing is changed, if it is no longer as it was seen."""
        sha256 = folder.parent.name
        async with self._db.transaction() as connection:
            row = _only(await connection.execute_fetchall(sql.BY_ID, (seen.id,)), seen.id)
            if self._dataset(row) != seen:
                return False
            others = await connection.execute_fetchall(sql.BY_CONTENT, (seen.guild_id, sha256))
            for other in others:
                if other["id"] != seen.id:
                    raise DatasetRefused(
                        f"Together these files are the dataset {other['name']} already. {seen.name} was not changed."
                    )
            values = (sha256, folder.name, earlier, report.digest, report.counts.model_dump_json(), report.summary)
            await connection.execute_fetchall(sql.MOVE_ON, (*values, seen.id))
            await connection.execute_fetchall(sql.UPLOAD_DONE, (upload_id,))
        # What is left behind has its grace from now on.
        await asyncio.to_thread(make_young, seen.folder, seen.source, seen.folder.parent)
        return True

    async def _insert(
        self, connection: Connection, sha256: str, guild_id: int, owner_id: int, wanted: str, report: DatasetReport
    ) -> Row:
        for known in await connection.execute_fetchall(sql.BY_CONTENT, (guild_id, sha256)):
            return known
        taken = {row[0] for row in await connection.execute_fetchall(sql.NAMES, (guild_id,))}
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        counts = report.counts.model_dump_json()
        values = (guild_id, owner_id, name, sha256, report.digest, counts, report.summary, self._now())
        return next(iter(await connection.execute_fetchall(sql.INSERT, values)))

    def _require_few(self, files: int) -> None:
        if files > self._limits.max_dataset_files:
            raise DatasetRefused(
                f"You handed in {files} files; {self._limits.max_dataset_files} are taken. Put them into a zip."
            )

    def _require_enough(self, report: DatasetReport) -> None:
        counts, needed = report.counts, self._limits.min_images
        if counts.kept < needed:
            raise TooFewImages(kept=counts.kept, dropped=counts.dropped, refused=counts.refused, needed=needed)

    async def _require_room(self, dataset: Dataset, received: Received) -> None:
        there = await asyncio.to_thread(_sizes, dataset.source)
        self._require_few(len(there) + len(received.files))
        if sum(size for _, size in there) + received.bytes > self._limits.max_dataset_bytes:
            raise DatasetTooLarge(
                file_name=f"{dataset.name} with {received.title}", max_bytes=self._limits.max_dataset_bytes
            )

    def _dataset(self, row: Row) -> Dataset:
        return dataset_of(row, self._datasets)


def _only(rows: object, dataset_id: int) -> Row:
    row: Row | None = next(iter(rows), None)  # type: ignore[call-overload]
    if row is None:
        raise NoSuchDataset(wanted=dataset_id)
    return row


def _sizes(source: Path) -> list[tuple[str, int]]:
    return [(path.name, path.stat().st_size) for path in source.iterdir()]
