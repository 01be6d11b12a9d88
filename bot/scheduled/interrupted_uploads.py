"""Finishes uploads whose interaction takes no answer, and answers them in their channel: those by the upload page, and
those whose answer came to nothing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from functools import partial

from bot.bot_failpoints import failpoint
from bot.config import CaptionSettings
from bot.datasets import (
    Dataset,
    DatasetStore,
    HubDatasets,
    ImportRequest,
    PendingUpload,
    PendingUploads,
    Received,
    ResumableUploads,
    UploadKind,
    import_files,
    progress_reported,
)
from bot.db import Database
from bot.db.errors import DatabaseUnwritable
from bot.errors import DarkroomError
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue import DraftStore
from bot.ui.discord_text import escape
from bot.ui.upload_posts import Unanswered, upload_failed, upload_incomplete, upload_prepared, upload_refused

log = logging.getLogger(__name__)

#: Before another try if nothing can be written (a full disk).
_RETRY_S = 60.0


class InterruptedUploads:
    """Finishes uploads whose interaction cannot be answered any more.

    After a start, those of an earlier bot (`record` before a client connects, `run` in a task of its own); later those
    that Discord takes no answer to (`finish`), and those that came by the page (`page_closed`, `run_closed`).
    """

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        uploads: PendingUploads,
        resumable: ResumableUploads,
        datasets: DatasetStore,
        hub_datasets: HubDatasets,
        drafts: DraftStore,
        captions: CaptionSettings,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._uploads = uploads
        self._resumable = resumable
        self._datasets = datasets
        self._hub_datasets = hub_datasets
        self._drafts = drafts
        self._captions = captions
        self._interrupted: list[PendingUpload] = []
        #: Uploads that their member closed on the page: these are all files.
        self._closed: asyncio.Queue[int] = asyncio.Queue()

    async def record(self) -> None:
        """Record the unfinished uploads, before there are new ones."""
        self._interrupted = await self._uploads.unfinished()

    async def run(self) -> None:
        """Finish each upload that an earlier bot left, as many at once as usual; the queue does not wait for them."""
        async with asyncio.TaskGroup() as group:
            for upload in self._interrupted:
                group.create_task(self._finish_safely(upload, Unanswered.RESTARTED))

    def page_closed(self, interaction_id: int) -> None:
        """Queue an upload that came by the page, and is complete, to be finished by `run_closed`."""
        self._closed.put_nowait(interaction_id)

    async def run_closed(self) -> None:
        """Finish the uploads that came by the page, each as soon as it is closed."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self.finish(await self._closed.get(), Unanswered.BY_PAGE, ""))

    async def finish(self, interaction_id: int, why: Unanswered, sentence: str) -> None:
        """Finish an upload of this bot and answer it in its channel; see `FinishUpload`."""
        upload = await self._uploads.find(interaction_id)
        if upload is not None:
            await self._finish_safely(upload, why, sentence)

    async def _finish_safely(self, upload: PendingUpload, why: Unanswered, sentence: str = "") -> None:
        while True:
            try:
                await self._finish(upload, why, sentence)
            except Exception:
                log.exception("the interrupted upload %s could not be finished; trying again", upload.title)
            else:
                return
            await asyncio.sleep(_RETRY_S)

    async def _finish(self, upload: PendingUpload, why: Unanswered, sentence: str) -> None:
        """Finish one upload; after a kill within, the next start does it again and answers once."""
        if sentence:
            notification: Notification | None = _notification(upload, upload_refused(upload, sentence, why))
        else:
            with progress_reported(partial(self._resumable.show, upload)) if upload.is_by_page else nullcontext():
                notification = await self._outcome(upload, why)
        async with self._db.transaction() as connection:
            if notification is not None:
                await self._outbox.put(connection, notification, channel_id=upload.channel_id)
            if upload.is_by_page and notification is not None and not notification.dataset_id:
                # Gigabytes are not sent twice: the page takes other files, or these again.
                await self._resumable.reopen(connection, upload)
            else:
                await self._uploads.remove_with(connection, upload.interaction_id)
                await self._outbox.cards.remove_upload(connection, upload.interaction_id)
        failpoint("upload_reported")
        if await self._uploads.find(upload.interaction_id) is None:
            await self._resumable.delete_files(upload.interaction_id)
        log.info(
            "interrupted upload %s: %s",
            upload.title,
            notification.detail if notification else "its job is queued already",
        )

    async def _outcome(self, upload: PendingUpload, why: Unanswered) -> Notification | None:
        """Return the answer; None if its job is queued already and has messages of its own."""
        try:
            return await self._finished(upload, why)
        except DatabaseUnwritable:
            # Not the fault of the upload.
            raise
        except DarkroomError as error:
            return _notification(upload, upload_refused(upload, escape(str(error), 1500), why))
        except Exception:
            log.exception("the interrupted upload %s could not be prepared", upload.title)
            return _notification(upload, upload_failed(upload, why))

    async def _finished(self, upload: PendingUpload, why: Unanswered) -> Notification | None:
        received = None
        if upload.sha256 is not None:
            received = await self._datasets.find_received(upload.sha256, upload.files)
        if received is None:
            received = await self._received_again(upload)
            if received is None:
                return _notification(upload, upload_incomplete(upload))
            await self._uploads.mark_received(upload.interaction_id, received)
            failpoint("upload_received")
        dataset = await self._dataset(upload, received)
        failpoint("upload_prepared")
        if upload.kind is not UploadKind.FINETUNE:
            return _notification(upload, upload_prepared(upload, dataset, why), dataset_id=dataset.id)
        return await self._request(upload, dataset, why)

    async def _received_again(self, upload: PendingUpload) -> Received | None:
        """Return the files of an upload that still can be had; None for attachments, whose addresses expire."""
        if upload.is_by_page:
            return await self._resumable.assemble(upload)
        hub = ImportRequest.model_validate_json(upload.request).hub if upload.kind is UploadKind.IMPORT else None
        return None if hub is None else await self._hub_datasets.download(hub, owner_id=upload.owner_id)

    async def _dataset(self, upload: PendingUpload, received: Received) -> Dataset:
        if upload.kind is UploadKind.ADD:
            assert upload.dataset_id is not None
            if upload.is_done:
                return await self._datasets.get(upload.dataset_id)
            return await self._datasets.add(upload.dataset_id, received, upload_id=upload.interaction_id)
        is_import = upload.kind is UploadKind.IMPORT
        return await import_files(
            self._datasets,
            received,
            ImportRequest.model_validate_json(upload.request) if is_import else ImportRequest(),
            guild_id=upload.guild_id,
            owner_id=upload.owner_id,
            captions=self._captions,
            is_private=upload.is_private,
        )

    async def _request(self, upload: PendingUpload, dataset: Dataset, why: Unanswered) -> Notification | None:
        """Store the draft as the command would have. It always waits: the member's roles are checked at the press.

        Raises:
            DraftEnded: It was cancelled already, or expired while the bot was away.
        """
        draft = await self._drafts.add(
            interaction_id=upload.interaction_id,
            guild_id=upload.guild_id,
            channel_id=upload.channel_id,
            owner_id=upload.owner_id,
            dataset_id=dataset.id,
            request=upload.request,
        )
        failpoint("upload_drafted")
        draft = await self._drafts.get(draft.id)
        if draft.job_id is not None:
            return None
        return _notification(upload, upload_prepared(upload, dataset, why), draft_id=draft.id, dataset_id=dataset.id)


def _notification(upload: PendingUpload, detail: str, *, draft_id: int = 0, dataset_id: int = 0) -> Notification:
    return Notification(
        kind=NotificationKind.ANSWER,
        # An upload by page that is refused can be finished again.
        dedupe_key=f"upload:{upload.interaction_id}" + (f":{upload.tries}" if upload.tries else ""),
        detail=detail,
        guild_id=upload.guild_id,
        owner_id=upload.owner_id,
        draft_id=draft_id,
        dataset_id=dataset_id,
    )
