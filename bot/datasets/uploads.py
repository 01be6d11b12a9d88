"""What people hand in, written down from before its download until they are answered; a bot that ends loses none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter

from bot.datasets.dataset import Received, ReceivedFile
from bot.db import Connection, Database, Row

_FILES = TypeAdapter(tuple[ReceivedFile, ...])

_NOTE = """
INSERT INTO upload (interaction_id, guild_id, channel_id, owner_id, kind, wishes, is_at_once, dataset_id, title,
    created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class UploadKind(StrEnum):
    """What the files were handed in for."""

    FINETUNE = "finetune"
    IMPORT = "import"
    ADD = "add"


@dataclass(frozen=True, kw_only=True)
class PendingUpload:
    """Files that were handed in, and whose owner has no answer yet."""

    interaction_id: int
    guild_id: int
    channel_id: int
    owner_id: int
    kind: UploadKind
    #: What was asked for beside the files, as JSON; the command knows its form.
    wishes: str = "{}"
    #: To be queued without a question.
    is_at_once: bool = False
    #: What they are added to.
    dataset_id: int | None = None
    #: What to call them to their owner.
    title: str
    #: Once they are on the disk: their content, and the files.
    sha256: str | None = None
    files: tuple[ReceivedFile, ...] = ()
    #: They are in the dataset that they were to be added to; only the answer is missing.
    is_done: bool = False


class Uploads:
    """The table of them: `note`, `received`, `forget`, in this order."""

    def __init__(self, db: Database, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._now = now

    async def note(self, upload: PendingUpload) -> None:
        """Write down that it is about to be downloaded."""
        values = (
            upload.interaction_id,
            upload.guild_id,
            upload.channel_id,
            upload.owner_id,
            upload.kind,
            upload.wishes,
            upload.is_at_once,
            upload.dataset_id,
            upload.title,
            self._now(),
        )
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(_NOTE, values)

    async def received(self, interaction_id: int, received: Received) -> None:
        """Write down that its files are on the disk."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE upload SET sha256 = ?, files = ? WHERE interaction_id = ?",
                (received.sha256, _FILES.dump_json(received.files).decode(), interaction_id),
            )

    async def forget(self, interaction_id: int) -> None:
        """Its owner is answered."""
        async with self._db.transaction() as connection:
            await self.forget_with(connection, interaction_id)

    async def forget_with(self, connection: Connection, interaction_id: int) -> None:
        """Its owner is answered by what the caller's transaction commits."""
        await connection.execute_fetchall("DELETE FROM upload WHERE interaction_id = ?", (interaction_id,))

    async def all(self) -> list[PendingUpload]:
        """Those whose owners have no answer, the oldest first."""
        return [_upload(row) for row in await self._db.all("SELECT * FROM upload ORDER BY created_at")]


def _upload(row: Row) -> PendingUpload:
    return PendingUpload(
        interaction_id=row["interaction_id"],
        guild_id=row["guild_id"],
        channel_id=row["channel_id"],
        owner_id=row["owner_id"],
        kind=UploadKind(row["kind"]),
        wishes=row["wishes"],
        is_at_once=bool(row["is_at_once"]),
        dataset_id=row["dataset_id"],
        title=row["title"],
        sha256=row["sha256"],
        files=() if row["files"] is None else _FILES.validate_json(row["files"]),
        is_done=bool(row["is_done"]),
    )
