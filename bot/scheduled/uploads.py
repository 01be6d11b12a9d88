"""After a start: what an earlier bot had taken in and not answered is brought to its end, and told in the channel."""

from __future__ import annotations

import asyncio
import logging

from bot.config import CaptionSettings
from bot.crashing import crash_point
from bot.datasets import (
    Dataset,
    DatasetStore,
    ImportWishes,
    PendingUpload,
    Received,
    UploadKind,
    Uploads,
    import_files,
)
from bot.db import Database
from bot.errors import DarkroomError, DatabaseUnwritable
from bot.outbox import Notice, NoticeKind, Outbox
from bot.queue import DraftStore, State
from bot.ui.uploads import examined_words, failed_words, not_arrived_words, refused_words

log = logging.getLogger(__name__)

#: Before another try where nothing can be written (a full disk).
_PAUSE_S = 60.0


class LeftUploads:
    """`remember` before a client connects (what comes after it is this bot's own), `run` in a task of its own."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        uploads: Uploads,
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
        self._left: list[PendingUpload] = []

    async def remember(self) -> None:
        """Note what is left, before anything new is handed in."""
        self._left = await self._uploads.all()

    async def run(self) -> None:
        """Bring each to its end; as many are examined at a time as ever, and the queue waits for none."""
        async with asyncio.TaskGroup() as group:
            for upload in self._left:
                group.create_task(self._finish_safely(upload))

    async def _finish_safely(self, upload: PendingUpload) -> None:
        while True:
            try:
                await self._finish(upload)
            except Exception:
                log.exception("%s of an earlier bot could not be brought to its end; trying again", upload.title)
            else:
                return
            await asyncio.sleep(_PAUSE_S)

    async def _finish(self, upload: PendingUpload) -> None:
        """A bot that is killed within does it again at its next start, and says it once."""
        notice = await self._outcome(upload)
        async with self._db.transaction() as connection:
            if notice is not None:
                key = f"upload:{upload.interaction_id}"
                await self._outbox.put(connection, notice, channel_id=upload.channel_id, dedupe_key=key)
            await self._uploads.forget_with(connection, upload.interaction_id)
        crash_point("upload_told")
        log.info("%s of an earlier bot: %s", upload.title, notice.detail if notice else "its job tells of itself")

    async def _outcome(self, upload: PendingUpload) -> Notice | None:
        """What to tell, None if it was queued already: a job tells of itself."""
        try:
            return await self._brought_in(upload)
        except DatabaseUnwritable:
            # No fault of the upload's.
            raise
        except DarkroomError as error:
            return _notice(upload, refused_words(upload, str(error)))
        except Exception:
            log.exception("%s of an earlier bot could not be examined", upload.title)
            return _notice(upload, failed_words(upload))

    async def _brought_in(self, upload: PendingUpload) -> Notice | None:
        received = None
        if upload.sha256 is not None:
            received = await self._datasets.received_before(upload.sha256, upload.files)
        if received is None:
            return _notice(upload, not_arrived_words(upload))
        dataset = await self._dataset(upload, received)
        crash_point("upload_examined")
        if upload.kind is not UploadKind.FINETUNE:
            return _notice(upload, examined_words(upload, dataset))
        return await self._request(upload, dataset)

    async def _dataset(self, upload: PendingUpload, received: Received) -> Dataset:
        guild_id, owner_id = upload.guild_id, upload.owner_id
        match upload.kind:
            case UploadKind.FINETUNE:
                return await self._datasets.prepare(received, guild_id=guild_id, owner_id=owner_id)
            case UploadKind.IMPORT:
                wishes = ImportWishes.from_json(upload.wishes)
                return await import_files(
                    self._datasets,
                    received,
                    wishes,
                    guild_id=guild_id,
                    owner_id=owner_id,
                    captions=self._captions,
                )
            case UploadKind.ADD:
                assert upload.dataset_id is not None
                if upload.is_done:
                    return await self._datasets.get(upload.dataset_id)
                return await self._datasets.add(upload.dataset_id, received, upload_id=upload.interaction_id)

    async def _request(self, upload: PendingUpload, dataset: Dataset) -> Notice | None:
        """Keep the draft as the command would have; it waits even where it was to go at once: roles are the person's.

        Raises:
            DraftEnded: it was cancelled already, or the bot was away for longer than it waits.
        """
        draft = await self._drafts.keep(
            interaction_id=upload.interaction_id,
            guild_id=upload.guild_id,
            channel_id=upload.channel_id,
            owner_id=upload.owner_id,
            dataset_id=dataset.id,
            wishes=upload.wishes,
        )
        crash_point("upload_kept")
        draft = await self._drafts.get(draft.id)
        if draft.state is not State.DRAFT:
            return None
        return _notice(upload, examined_words(upload, dataset), draft_id=draft.id, dataset_id=dataset.id)


def _notice(upload: PendingUpload, detail: str, *, draft_id: int = 0, dataset_id: int = 0) -> Notice:
    return Notice(
        kind=NoticeKind.UPLOAD,
        job_id=0,
        detail=detail,
        owner_id=upload.owner_id,
        draft_id=draft_id,
        dataset_id=dataset_id,
    )
