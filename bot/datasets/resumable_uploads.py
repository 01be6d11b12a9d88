"""Files that arrive in pieces, by the upload page: bytes are kept over lost connections and restarts of the bot.

A file's bytes lie in `uploads/<interaction>/<file>`, and as many have arrived as it is long: there is no second record
that could differ. Once its member closes the upload, the files become a content like any other (`DatasetStore`).
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bot.bot_failpoints import failpoint
from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import WebSettings
from bot.datasets.dataset import Received, title_of
from bot.datasets.dataset_files import free_path, plain_path
from bot.datasets.dataset_store import DatasetStore
from bot.datasets.partial_file import BeyondItsEnd, Checksum, PartialFile, run_to_its_end, write_pieces
from bot.datasets.pending_uploads import PendingUpload, PendingUploads
from bot.db import Connection, Database, Row
from bot.errors import DatasetRefused, DatasetTooLarge, UploadClosed
from bot.outbox import Outbox
from trainer.protocol.progress import PrepareProgress
from trainer.protocol.text import _, ngettext

_DAY_S = 86_400

#: Until the request that a newer one replaces has left the file.
_HANDOVER_S = 15.0

_INSERT = """
INSERT INTO upload_file (id, interaction_id, path, bytes, client_key, metadata) VALUES (?, ?, ?, ?, ?, ?)
RETURNING *
"""
_OF_UPLOAD = "SELECT * FROM upload_file WHERE interaction_id = ? ORDER BY rowid"
_IS_OPEN = "SELECT is_open FROM upload WHERE interaction_id = ?"
#: What one person's open uploads will have, in all servers.
_ARRIVING = """
SELECT COALESCE(SUM(bytes), 0) AS bytes FROM upload_file JOIN upload USING (interaction_id) WHERE owner_id = ?
"""


@dataclass(frozen=True, kw_only=True)
class ArrivingFile:
    """A file of an open upload, and how much of it has arrived."""

    id: str
    interaction_id: int
    #: Its name in the dataset: a path of plain names.
    path: str
    bytes: int
    #: Bytes that have arrived.
    offset: int
    #: The page's name for it; empty: none.
    client_key: str
    #: As the sender described it; it is sent back as it came.
    metadata: str

    @property
    def is_complete(self) -> bool:
        return self.offset == self.bytes


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """How much of an upload has arrived, for those who wait for it."""

    files: int
    complete: int
    bytes: int
    arrived_bytes: int
    #: Of the preparation, once it is closed.
    progress: PrepareProgress | None = None


class FileBusy(Exception):
    """Another request writes to the file, and does not end."""


class WrongOffset(Exception):
    """The sender continues at another byte than the end of the file."""


class ChecksumMismatch(Exception):
    """What arrived is not what was sent; it was discarded."""


class ResumableUploads:
    """The files of open uploads."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        uploads: PendingUploads,
        datasets: DatasetStore,
        *,
        data_dir: Path,
        settings: WebSettings,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._uploads = uploads
        self._datasets = datasets
        self._folder = data_dir.absolute() / "uploads"
        self._settings = settings
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}
        #: How far the preparation of a closed upload has come, by its interaction.
        self._progress: dict[int, PrepareProgress] = {}
        #: The task that writes to a file.
        self._writers: dict[str, asyncio.Task[None]] = {}

    # -- what has arrived -----------------------------------------------------------------------------------------

    async def files(self, interaction_id: int) -> list[ArrivingFile]:
        """Return the files of an upload, in the order in which they were announced."""
        rows = await self._db.all(_OF_UPLOAD, (interaction_id,))
        return await asyncio.to_thread(lambda: [self._file(row) for row in rows])

    async def find(self, interaction_id: int, file_id: str) -> ArrivingFile | None:
        """Return a file of an upload; None if there is none of that name."""
        row = await self._db.one(
            "SELECT * FROM upload_file WHERE interaction_id = ? AND id = ?", (interaction_id, file_id)
        )
        return None if row is None else await asyncio.to_thread(self._file, row)

    async def arrived(self, upload: PendingUpload) -> Arrived:
        """Return how much of an upload has arrived, or how far its preparation has come."""
        files = await self.files(upload.interaction_id)
        return Arrived(
            files=len(files),
            complete=sum(file.is_complete for file in files),
            bytes=sum(file.bytes for file in files),
            arrived_bytes=sum(file.offset for file in files),
            progress=self._progress.get(upload.interaction_id),
        )

    # -- change ---------------------------------------------------------------------------------------------------

    async def add(
        self, upload: PendingUpload, path: str, size: int, *, max_bytes: int, client_key: str = "", metadata: str = ""
    ) -> ArrivingFile:
        """Announce a file, and return it with what has arrived of it: nothing, unless it was announced before.

        Args:
            upload: It is open.
            path: The file's name as its owner calls it, folders included; untrusted.
            size: Bytes that it will have.
            max_bytes: Limit on all files of the upload together.
            client_key: The same file has the same key when it is announced again; empty: none.
            metadata: As the sender described it.

        Raises:
            UploadClosed: It takes no files any more.
            DatasetTooLarge, TooManyDatasets, DiskAlmostFull, DatasetRefused: It does not fit.
        """
        await self._datasets.require_disk(size)
        file_id = secrets.token_hex(16)
        path_on_disk = self._path(upload.interaction_id, file_id)
        # Before its row: a file that is announced can be asked for.
        await asyncio.to_thread(_make_empty, path_on_disk)
        is_announced = False
        try:
            async with self._db.transaction() as connection:
                row = await self._insert(connection, upload, file_id, path, size, max_bytes, client_key, metadata)
            is_announced = row["id"] == file_id
        finally:
            if not is_announced:
                await asyncio.to_thread(path_on_disk.unlink, missing_ok=True)
        return await asyncio.to_thread(self._file, row)

    async def _insert(
        self,
        connection: Connection,
        upload: PendingUpload,
        file_id: str,
        path: str,
        size: int,
        max_bytes: int,
        client_key: str,
        metadata: str,
    ) -> Row:
        """Store a file of an upload; return its row, or that of the same file."""
        await self._require_open(connection, upload.interaction_id)
        rows = list(await connection.execute_fetchall(_OF_UPLOAD, (upload.interaction_id,)))
        known = next((row for row in rows if client_key and row["client_key"] == client_key), None)
        if known is not None and known["bytes"] == size:
            return known
        self._require_room(rows, path, size, max_bytes)
        (arriving,) = await connection.execute_fetchall(_ARRIVING, (upload.owner_id,))
        await self._datasets.require_share(
            upload.owner_id, datasets=int(upload.dataset_id is None), more_bytes=arriving["bytes"] + size
        )
        name = free_path(plain_path(path), {row["path"].casefold() for row in rows})
        key = None if known else client_key or None
        (row,) = await connection.execute_fetchall(_INSERT, (file_id, upload.interaction_id, name, size, key, metadata))
        await self._outbox.cards.show_upload(connection, upload.interaction_id, channel_id=upload.channel_id)
        return row

    async def append(
        self, file: ArrivingFile, offset: int, pieces: AsyncIterator[bytes], *, checksum: Checksum | None = None
    ) -> int:
        """Write what arrives to the end of a file, and return how much of it there is then.

        A connection that breaks costs what is not written yet. With a checksum, all of the pieces count, or none.

        Args:
            file: The file.
            offset: Where the sender goes on.
            pieces: The bytes.
            checksum: Of the pieces.

        Raises:
            FileBusy, WrongOffset, ChecksumMismatch, BeyondItsEnd: See there.
            UploadClosed: The upload takes no files any more.
            DiskAlmostFull: The disk is full; what could be written counts.
        """
        async with self._writing(file.id):
            path = self._path(file.interaction_id, file.id)
            try:
                writer = await asyncio.to_thread(PartialFile.open, path, checksum)
            except FileNotFoundError:
                raise UploadClosed from None
            try:
                if writer.begin != offset:
                    raise WrongOffset
                await self._datasets.require_disk(0)
                await write_pieces(writer, pieces, left=file.bytes - offset)
                if not writer.is_as_sent:
                    raise ChecksumMismatch
            except (ChecksumMismatch, BeyondItsEnd):
                writer.is_discarded = True
                raise
            except BaseException:
                writer.is_discarded = checksum is not None
                raise
            finally:
                end = await run_to_its_end(writer.close)
            failpoint("upload_piece")
            return end

    async def remove(self, file: ArrivingFile) -> None:
        """Delete a file of an open upload."""
        async with self._writing(file.id):
            async with self._db.transaction() as connection:
                await self._require_open(connection, file.interaction_id)
                await connection.execute_fetchall("DELETE FROM upload_file WHERE id = ?", (file.id,))
            await asyncio.to_thread(self._path(file.interaction_id, file.id).unlink, missing_ok=True)

    async def close(self, upload: PendingUpload, *, request: str) -> None:
        """Let an upload take no more files; it can be assembled from now on, and `request` says to what.

        Raises:
            DatasetRefused: A file is not complete, or there is none.
            UploadClosed: It is closed already.
        """
        files = await self.files(upload.interaction_id)
        missing = [file for file in files if not file.is_complete]
        if missing:
            raise DatasetRefused(
                ngettext(
                    "{n} file has not arrived completely: {file}. Add it again, or remove it from the list.",
                    "{n} files have not arrived completely, such as {file}. Add them again, or remove them from the "
                    "list.",
                    len(missing),
                    file=missing[0].path,
                )
            )
        if not any(file.bytes for file in files):
            raise DatasetRefused(_("No file has arrived yet. Add your images first."))
        async with self._db.transaction() as connection:
            await self._require_open(connection, upload.interaction_id)
            await connection.execute_fetchall(
                "UPDATE upload SET is_open = 0, request = ?, title = ? WHERE interaction_id = ?",
                (request, title_of([file.path for file in files]), upload.interaction_id),
            )
            await self._outbox.cards.show_upload(connection, upload.interaction_id, channel_id=upload.channel_id)
        failpoint("upload_closed")

    async def assemble(self, upload: PendingUpload) -> Received:
        """Make a content of the files of a closed upload; repeated after a kill, it returns the same."""
        files = await self.files(upload.interaction_id)
        paths = {file.path: self._path(upload.interaction_id, file.id) for file in files}
        return await self._datasets.adopt(paths)

    async def show(self, upload: PendingUpload, progress: PrepareProgress | None = None) -> None:
        """Update the message in the channel that shows how far the upload has come."""
        if progress is not None:
            self._progress[upload.interaction_id] = progress
        async with self._db.transaction() as connection:
            await self._outbox.cards.show_upload(connection, upload.interaction_id, channel_id=upload.channel_id)

    async def reopen(self, connection: Connection, upload: PendingUpload) -> None:
        """Let an upload take files again, in the caller's transaction: what came cannot be used as it is."""
        self._progress.pop(upload.interaction_id, None)
        await connection.execute_fetchall(
            "UPDATE upload SET is_open = 1, sha256 = NULL, files = NULL, tries = tries + 1 WHERE interaction_id = ?",
            (upload.interaction_id,),
        )
        await self._outbox.cards.show_upload(connection, upload.interaction_id, channel_id=upload.channel_id)

    async def cancel(self, upload: PendingUpload) -> None:
        """Delete an open upload with its files.

        Raises:
            UploadClosed: It is being prepared already.
        """
        async with self._db.transaction() as connection:
            await self._require_open(connection, upload.interaction_id)
            await self._uploads.remove_with(connection, upload.interaction_id)
            await self._outbox.cards.remove_upload(connection, upload.interaction_id)
        await self.delete_files(upload.interaction_id)

    async def delete_files(self, interaction_id: int) -> None:
        """Delete the files of an upload that is no longer pending."""
        self._progress.pop(interaction_id, None)
        await asyncio.to_thread(shutil.rmtree, self._folder / str(interaction_id), ignore_errors=True)

    async def sweep(self) -> int:
        """Cancel open uploads to which nothing was added until their link ended, and return how many.

        Folders that belong to no upload are deleted too.
        """
        before = self._clock.time() - self._settings.link_days * _DAY_S
        rows = await self._db.all("SELECT * FROM upload WHERE is_open AND created_at < ?", (before,))
        stale = [row for row in rows if await asyncio.to_thread(self._last_change, row["interaction_id"]) < before]
        for row in stale:
            with suppress(UploadClosed):
                await self.cancel(PendingUpload.from_row(row))
        known = {str(row[0]) for row in await self._db.all("SELECT interaction_id FROM upload")}
        for folder in await asyncio.to_thread(lambda: list(self._folder.glob("*"))):
            if folder.name not in known:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return len(stale)

    # -- internals ------------------------------------------------------------------------------------------------

    async def _require_open(self, connection: Connection, interaction_id: int) -> None:
        rows = list(await connection.execute_fetchall(_IS_OPEN, (interaction_id,)))
        if not rows or not rows[0]["is_open"]:
            raise UploadClosed

    def _require_room(self, rows: Sequence[Row], path: str, size: int, max_bytes: int) -> None:
        most = self._settings.max_upload_files
        if len(rows) >= most:
            raise DatasetRefused(
                _("One upload may have {allowed} files; this one would have more. Put them into a zip.", allowed=most)
            )
        if sum(row["bytes"] for row in rows) + size > max_bytes:
            raise DatasetTooLarge(file_name=plain_path(path), max_bytes=max_bytes)

    @asynccontextmanager
    async def _writing(self, file_id: str) -> AsyncIterator[None]:
        """Hold the lock of a file, so that only the body writes to it.

        A request that comes later replaces one that still runs: its sender has lost the connection, and the server
        does not know yet.
        """
        lock = self._locks.setdefault(file_id, asyncio.Lock())
        if (other := self._writers.get(file_id)) is not None:
            other.cancel()
        try:
            async with asyncio.timeout(_HANDOVER_S):
                await lock.acquire()
        except TimeoutError:
            raise FileBusy from None
        task = asyncio.current_task()
        assert task is not None
        self._writers[file_id] = task
        try:
            yield
        finally:
            if self._writers.get(file_id) is task:
                del self._writers[file_id]
            lock.release()

    def _path(self, interaction_id: int, file_id: str) -> Path:
        return self._folder / str(interaction_id) / file_id

    def _file(self, row: Row) -> ArrivingFile:
        path = self._path(row["interaction_id"], row["id"])
        return ArrivingFile(
            id=row["id"],
            interaction_id=row["interaction_id"],
            path=row["path"],
            bytes=row["bytes"],
            offset=path.stat().st_size if path.exists() else 0,
            client_key=row["client_key"] or "",
            metadata=row["metadata"],
        )

    def _last_change(self, interaction_id: int) -> float:
        folder = self._folder / str(interaction_id)
        return max((path.stat().st_mtime for path in folder.glob("*")), default=0.0)


def _make_empty(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=False)
