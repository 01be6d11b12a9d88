"""After a start: finishes the uploads that an earlier bot had begun, and answers them in their channel."""

from __future__ import annotations

import asyncio
import logging

from bot.bot_failpoints import failpoint
from bot.config import CaptionSettings
from bot.datasets import (
    Dataset,
    DatasetStore,
    ImportRequest,
    PendingUpload,
    PendingUploads,
    Received,
    UploadKind,
    import_files,
)
from bot.db import Database
from bot.errors import DarkroomError, DatabaseUnwritable
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue import DraftStore, State
from bot.ui.upload_posts import upload_failed, upload_incomplete, upload_prepared, upload_refused

log = logging.getLogger(__name__)

#: Before another try if nothing can be written (a full disk).
_RETRY_S = 60.0


class InterruptedUploads:
    """`record` before a client connects (later uploads are this bot's own), `run` in a task of its own."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        uploads: PendingUploads,
        datasets: DatasetStore,
        drafts: DraftStore,
        captions: CaptionSettings,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._uploads = uploads
        self._datasets = datasets
        self._drafts = drafts
        self._captions = captions
        self._interrupted: list[PendingUpload] = []

    async def record(self) -> None:
        """Record the unfinished uploads, before there are new ones."""
        self._interrupted = await self._uploads.all()

    async def run(self) -> None:
        """Finish each; the usual limit of concurrent preparations applies, and the queue does not wait."""
        async with asyncio.TaskGroup() as group:
            for upload in self._interrupted:
                group.create_task(self._finish_safely(upload))

    async def _finish_safely(self, upload: PendingUpload) -> None:
        while True:
            try:
                await self._finish(upload)
            except Exception:
                log.exception("the interrupted upload %s could not be finished; trying again", upload.title)
            else:
                return
            await asyncio.sleep(_RETRY_S)

    async def _finish(self, upload: PendingUpload) -> None:
        """Finish one upload; after a kill within, the next start does it again and answers once."""
        notification = await self._outcome(upload)
        async with self._db.transaction() as connection:
            if notification is not None:
                await self._outbox.put(connection, notification, channel_id=upload.channel_id)
            await self._uploads.remove_with(connection, upload.interaction_id)
        failpoint("upload_reported")
        log.info(
            "interrupted upload %s: %s",
            upload.title,
            notification.detail if notification else "its job is queued already",
        )

    async def _outcome(self, upload: PendingUpload) -> Notification | None:
        """Return the answer; None if its job is queued already and has messages of its own."""
        try:
            return await self._finished(upload)
        except DatabaseUnwritable:
            # Not the fault of the upload.
            raise
        except DarkroomError as error:
            return _notification(upload, upload_refused(upload, str(error)))
        except Exception:
            log.exception("the interrupted upload %s could not be prepared", upload.title)
            return _notification(upload, upload_failed(upload))

    async def _finished(self, upload: PendingUpload) -> Notification | None:
        received = None
        if upload.sha256 is not None:
            received = await self._datasets.find_received(upload.sha256, upload.files)
        if received is None:
            return _notification(upload, upload_incomplete(upload))
        dataset = await self._dataset(upload, received)
        failpoint("upload_prepared")
        if upload.kind is not UploadKind.FINETUNE:
            return _notification(upload, upload_prepared(upload, dataset))
        return await self._request(upload, dataset)

    async def _dataset(self, upload: PendingUpload, received: Received) -> Dataset:
        guild_id, owner_id = upload.guild_id, upload.owner_id
        match upload.kind:
            case UploadKind.FINETUNE:
                return await self._datasets.prepare(received, guild_id=guild_id, owner_id=owner_id)
            case UploadKind.IMPORT:
                request = ImportRequest.model_validate_json(upload.request)
                return await import_files(
                    self._datasets,
                    received,
                    request,
                    guild_id=guild_id,
                    owner_id=owner_id,
                    captions=self._captions,
                )
            case UploadKind.ADD:
                assert upload.dataset_id is not None
                if upload.is_done:
                    return await self._datasets.get(upload.dataset_id)
                return await self._datasets.add(upload.dataset_id, received, upload_id=upload.interaction_id)

    async def _request(self, upload: PendingUpload, dataset: Dataset) -> Notification | None:
        """Store the draft as the command would have. It always waits: the member's roles are checked at the press.

        Raises:
            DraftEnded: It was cancelled already, or expired while the bot was away.
        """
        draft = await self._drafts.keep(
            interaction_id=upload.interaction_id,
            guild_id=upload.guild_id,
            channel_id=upload.channel_id,
            owner_id=upload.owner_id,
            dataset_id=dataset.id,
            request=upload.request,
        )
        failpoint("upload_drafted")
        draft = await self._drafts.get(draft.id)
        if draft.state is not State.DRAFT:
            return None
        return _notification(upload, upload_prepared(upload, dataset), draft_id=draft.id, dataset_id=dataset.id)


def _notification(upload: PendingUpload, detail: str, *, draft_id: int = 0, dataset_id: int = 0) -> Notification:
    return Notification(
        kind=NotificationKind.UPLOAD,
        dedupe_key=f"upload:{upload.interaction_id}",
        detail=detail,
        owner_id=upload.owner_id,
        draft_id=draft_id,
        dataset_id=dataset_id,
    )
