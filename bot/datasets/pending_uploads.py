"""Uploads that have no answer yet: stored before the download, so that a restarted bot can finish them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field, TypeAdapter

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import CaptionSettings
from bot.datasets.dataset import Dataset, Received, ReceivedFile, require_change
from bot.datasets.dataset_store import DatasetStore
from bot.datasets.decisions import with_rules
from bot.db import Connection, Database, Row, as_stored
from trainer.protocol.edits import Edits, Layout
from trainer.protocol.frozen import Frozen
from trainer.protocol.hub import HubDatasetFacts

_FILES = TypeAdapter(tuple[ReceivedFile, ...])

_INSERT = """
INSERT INTO upload (interaction_id, guild_id, channel_id, owner_id, kind, request, is_at_once, dataset_id, title,
    is_private, is_by_page, is_open, created_at)
VALUES (:interaction_id, :guild_id, :channel_id, :owner_id, :kind, :request, :is_at_once, :dataset_id, :title,
    :is_private, :is_by_page, :is_open, :now)
ON CONFLICT (interaction_id) DO NOTHING RETURNING interaction_id
"""


class UploadKind(StrEnum):
    """The command that the files were uploaded with."""

    FINETUNE = "finetune"
    IMPORT = "import"
    ADD = "add"


@dataclass(frozen=True, kw_only=True)
class PendingUpload:
    """Uploaded files whose owner has no answer yet."""

    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    kind: UploadKind
    #: `JobRequest` or `ImportRequest` as JSON, by `kind`.
    request: str = "{}"
    #: The job is queued without a confirmation.
    is_at_once: bool = False
    #: The dataset that the files are added to.
    dataset_id: int | None = None
    #: Names the files in messages to their owner.
    title: str
    #: Only its owner, managers and people whom the owner names may see the dataset that they become.
    is_private: bool = False
    #: Set once the files are on the disk.
    sha256: str | None = None
    files: tuple[ReceivedFile, ...] = ()
    #: Its files come by the upload page (`ResumableUploads`); it is open until their owner says that these are all.
    is_by_page: bool = False
    is_open: bool = False
    #: How often it was closed, and then refused.
    tries: int = 0
    #: The files have been added to `dataset_id`; only the answer is missing.
    is_done: bool = False

    @classmethod
    def from_row(cls, row: Row) -> PendingUpload:
        values = as_stored(cls, row)
        values |= {name: bool(row[name]) for name in values if name.startswith("is_")}
        values["kind"] = UploadKind(row["kind"])
        values["files"] = () if row["files"] is None else _FILES.validate_json(row["files"])
        return cls(**values)


class PendingUploads:
    """The table of pending uploads: `add` before the download, `mark_received` after it, `remove` once answered."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock

    async def add(self, upload: PendingUpload) -> bool:
        """Store an upload before its download begins; False if its interaction was stored before."""
        values = {**vars(upload), "files": None, "now": self._clock.time()}
        async with self._db.transaction() as connection:
            return bool(list(await connection.execute_fetchall(_INSERT, values)))

    async def find(self, interaction_id: int) -> PendingUpload | None:
        """Return the upload of an interaction; None if its owner has been answered."""
        row = await self._db.one("SELECT * FROM upload WHERE interaction_id = ?", (interaction_id,))
        return None if row is None else PendingUpload.from_row(row)

    async def expect_by_page(self, interaction_id: int) -> None:
        """Let the files of an upload come by the upload page: as attachments they are too large."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE upload SET is_by_page = 1, is_open = 1 WHERE interaction_id = ? AND sha256 IS NULL",
                (interaction_id,),
            )

    async def mark_received(self, interaction_id: int, received: Received) -> None:
        """Store that the files are on the disk."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE upload SET sha256 = ?, files = ? WHERE interaction_id = ?",
                (received.sha256, _FILES.dump_json(received.files).decode(), interaction_id),
            )

    async def remove(self, interaction_id: int) -> None:
        """Remove an upload whose owner has been answered."""
        async with self._db.transaction() as connection:
            await self.remove_with(connection, interaction_id)

    async def remove_with(self, connection: Connection, interaction_id: int) -> None:
        """Remove an upload in the transaction that stores its answer."""
        await connection.execute_fetchall("DELETE FROM upload_file WHERE interaction_id = ?", (interaction_id,))
        await connection.execute_fetchall("DELETE FROM upload WHERE interaction_id = ?", (interaction_id,))

    async def unfinished(self) -> list[PendingUpload]:
        """Return the uploads that are not open and whose owners have no answer, oldest first."""
        rows = await self._db.all("SELECT * FROM upload WHERE NOT is_open ORDER BY created_at")
        return [PendingUpload.from_row(row) for row in rows]


class ImportRequest(Frozen):
    """What the member asked for in addition to the files."""

    #: None: named after the first file.
    name: str | None = None
    trigger: str = ""
    #: Column of the captions in tables; empty: the only one with text.
    caption_column: str = Field(default="", max_length=100)
    layout: Layout = Layout.AUTO
    wants_captions: bool = False
    #: The dataset of the Hugging Face hub whose files they are: what was found out before the download.
    hub: HubDatasetFacts | None = None
    #: The member could manage the server then. It matters if the files are another member's dataset already.
    can_manage: bool = False


async def import_files(
    store: DatasetStore,
    received: Received,
    request: ImportRequest,
    *,
    guild_id: int,
    owner_id: int,
    captions: CaptionSettings,
    is_private: bool = False,
) -> Dataset:
    """Prepare files as a dataset and apply the request to it. Idempotent.

    Raises:
        DatasetRefused: The dataset cannot be trained on, or could not be prepared.
        NotYourDataset: The files are another member's dataset already, and the request would change it.
    """
    dataset = await store.prepare(
        received, guild_id=guild_id, owner_id=owner_id, name=request.name, is_private=is_private
    )
    if is_private and not dataset.is_private:
        require_change(dataset, user_id=owner_id, can_manage=request.can_manage)
        dataset = await store.set_privacy(dataset.id, by=owner_id, is_private=True)
    changes = bool(request.trigger or request.caption_column or request.layout is not Layout.AUTO)
    if changes or request.wants_captions:
        require_change(dataset, user_id=owner_id, can_manage=request.can_manage)
    if changes:
        dataset = await store.edit(dataset.id, lambda edits: _with_request(edits, request))
    if request.wants_captions:
        dataset = await store.write_captions(dataset.id, captions)
    return dataset


def _with_request(edits: Edits, request: ImportRequest) -> Edits:
    if request.trigger:
        edits = with_rules(edits, trigger=request.trigger)
    if request.caption_column:
        edits = edits.model_copy(update={"caption_column": request.caption_column})
    if request.layout is not Layout.AUTO:
        edits = edits.model_copy(update={"layout": request.layout})
    return edits
