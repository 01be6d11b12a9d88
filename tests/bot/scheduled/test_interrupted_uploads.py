"""Uploads that an earlier bot received and did not answer: finished once, and answered once."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot.config import CaptionSettings, LimitSettings, PrepareSettings, WebSettings
from bot.datasets import (
    Dataset,
    DatasetStore,
    HubDatasets,
    ImportRequest,
    PendingUpload,
    PendingUploads,
    Received,
    ResumableUploads,
    Upload,
    UploadKind,
    import_files,
)
from bot.datasets.upload_limits import UploadLimits
from bot.db import Database
from bot.db.errors import DatabaseUnwritable
from bot.outbox import Notification, NotificationKind, Outbox
from bot.queue import Draft, DraftStore, JobStore, NewJob
from bot.scheduled import InterruptedUploads
from tests.bot.cogs.conftest import forked_trainer
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.fakes import FakeClock
from trainer.protocol.spec import make_spec

ANA = 7
REQUEST = '{"preset": "lora"}'
IMAGES = {f"{number}.png": b"good %d" % number for number in range(6)}
MORE = {"new.png": b"new", "0.png": b"another of that name"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data folder, and the services of the bot that uses it."""

    db: Database
    outbox: Outbox
    datasets: DatasetStore
    uploads: PendingUploads
    resumable: ResumableUploads
    hub_datasets: HubDatasets
    drafts: DraftStore

    def next_bot(self) -> InterruptedUploads:
        return InterruptedUploads(
            self.db,
            self.outbox,
            uploads=self.uploads,
            resumable=self.resumable,
            datasets=self.datasets,
            hub_datasets=self.hub_datasets,
            drafts=self.drafts,
            captions=CaptionSettings(),
        )

    async def start(self) -> None:
        """Finish uploads as the next bot does."""
        left = self.next_bot()
        await left.record()
        await left.run()

    async def receive(self, files: dict[str, bytes]) -> Received:
        return await self.datasets.receive([Upload(name=name, chunks=stream(data)) for name, data in files.items()])

    async def add_upload(self, kind: UploadKind = UploadKind.FINETUNE, **values: object) -> None:
        """Store an upload before its download."""
        request = REQUEST if kind is UploadKind.FINETUNE else ImportRequest().model_dump_json()
        upload = {
            "interaction_id": 1, "guild_id": GUILD, "channel_id": CHANNEL, "owner_id": ANA, "request": request,
            "title": "dogs_*.zip",
        }  # fmt: skip
        await self.uploads.add(PendingUpload(kind=kind, **{**upload, **values}))  # type: ignore[arg-type]

    async def receive_upload(
        self, kind: UploadKind = UploadKind.FINETUNE, files: dict[str, bytes] = IMAGES, **values: object
    ) -> Received:
        """Store an upload and its files, not prepared yet."""
        await self.add_upload(kind, **values)
        received = await self.receive(files)
        await self.uploads.mark_received(1, received)
        return received

    async def answers(self) -> list[Notification]:
        """Return all answers; no upload may be left."""
        assert await self.uploads.unfinished() == []
        rows = await self.db.all("SELECT channel_id, dedupe_key, notification FROM outbox ORDER BY id")
        assert {(row["channel_id"], row["dedupe_key"]) for row in rows} <= {(CHANNEL, "upload:1")}
        return [Notification.model_validate_json(row["notification"]) for row in rows]

    async def requests(self) -> list[tuple[int, int, str]]:
        rows = await self.db.all("SELECT interaction_id, owner_id, request FROM draft")
        return [tuple(row) for row in rows]


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def place(db: Database, outbox: Outbox, tmp_path: Path, clock: FakeClock) -> Place:
    clock.at = time.time()
    datasets = DatasetStore(
        db,
        data_dir=tmp_path / "data",
        limits=LimitSettings(max_dataset_mib=1, max_dataset_files=14),
        command=forked_trainer(),
        env=dict(os.environ),
    )
    uploads = PendingUploads(db)
    return Place(
        db=db,
        outbox=outbox,
        datasets=datasets,
        uploads=uploads,
        resumable=ResumableUploads(
            db, outbox, uploads, datasets, data_dir=tmp_path / "data", settings=WebSettings(), clock=clock
        ),
        hub_datasets=HubDatasets(
            datasets, prepare=PrepareSettings(), web=WebSettings(), incoming=tmp_path / "data" / "incoming"
        ),
        drafts=DraftStore(db, clock=clock),
    )


async def prepared(place: Place) -> Dataset:
    received = await place.receive(IMAGES)
    return await place.datasets.prepare(received, guild_id=GUILD, owner_id=ANA, name="dogs")


async def test_received_files_become_the_requested_draft(place: Place) -> None:
    await place.receive_upload()
    await place.start()
    (notification,) = await place.answers()
    assert (notification.kind, notification.owner_id) == (NotificationKind.ANSWER, ANA)
    assert "(dataset **0**, 6 images kept)" in notification.detail
    assert notification.draft_id
    draft = await place.drafts.get(notification.draft_id)
    assert (draft.interaction_id, draft.owner_id, draft.request) == (1, ANA, REQUEST)
    assert draft.dataset_id == notification.dataset_id


async def test_a_request_without_confirmation_waits_for_one(place: Place) -> None:
    await place.receive_upload(is_at_once=True)
    await place.start()
    (notification,) = await place.answers()
    assert "**Start training**" in notification.detail
    assert await place.requests() == [(1, ANA, REQUEST)]


@pytest.mark.parametrize("kind", UploadKind)
async def test_an_incomplete_download_is_reported(place: Place, kind: UploadKind) -> None:
    await place.add_upload(kind, dataset_id=1 if kind is UploadKind.ADD else None)
    await place.start()
    (notification,) = await place.answers()
    assert "before **dogs\\_\\*.zip** had arrived" in notification.detail
    assert await place.requests() == []


async def test_files_that_a_power_cut_truncated_are_incomplete(place: Place) -> None:
    received = await place.receive_upload()
    (received.source / "3.png").write_bytes(b"")
    await place.start()
    (notification,) = await place.answers()
    assert "had arrived" in notification.detail


async def test_a_refusal_is_reported(place: Place) -> None:
    await place.receive_upload(files={"dogs.zip": b"no zip at all"})
    await place.start()
    (notification,) = await place.answers()
    assert "dogs.zip is not a zip archive. Nothing was queued." in notification.detail
    assert notification.draft_id == 0
    assert await place.requests() == []


async def test_a_bug_is_reported_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(UploadLimits, "require_enough_images", broken)
    await place.receive_upload()
    await place.start()
    (notification,) = await place.answers()
    assert "Something broke on my side. Nothing was queued; run /finetune again." in notification.detail


async def test_an_import_gets_the_requested_name_and_trigger(place: Place) -> None:
    await place.receive_upload(
        UploadKind.IMPORT, request=ImportRequest(name="hounds", trigger="ohwx").model_dump_json()
    )
    await place.start()
    (notification,) = await place.answers()
    assert "dataset **hounds**" in notification.detail
    assert (await place.datasets.named(GUILD, "hounds")).edits.rules.trigger == "ohwx"
    assert await place.requests() == []


@pytest.mark.parametrize("kind", [UploadKind.FINETUNE, UploadKind.IMPORT])
async def test_what_was_to_be_private_is_private_after_a_restart(place: Place, kind: UploadKind) -> None:
    await place.receive_upload(kind, is_private=True)
    await place.start()
    newest, *_earlier = await place.datasets.search(GUILD)
    assert newest.is_private


async def test_a_restart_does_not_let_a_member_change_the_dataset_of_another(place: Place) -> None:
    dataset = await prepared(place)
    await place.receive_upload(UploadKind.IMPORT, owner_id=8, request=ImportRequest(trigger="mine").model_dump_json())
    await place.start()
    (notification,) = await place.answers()
    assert "or a manager of the server can do this with the dataset" in notification.detail
    assert (await place.datasets.get(dataset.id)).edits == dataset.edits
    await place.receive_upload(
        UploadKind.IMPORT, owner_id=8, request=ImportRequest(trigger="x", can_manage=True).model_dump_json()
    )
    await place.start()
    assert (await place.datasets.get(dataset.id)).edits.rules.trigger == "x"


@pytest.mark.parametrize("is_in_already", [False, True])
async def test_files_are_added_once(place: Place, *, is_in_already: bool) -> None:
    dataset = await prepared(place)
    received = await place.receive_upload(UploadKind.ADD, MORE, dataset_id=dataset.id)
    if is_in_already:
        await place.datasets.add(dataset.id, received, upload_id=1)
    await place.start()
    (notification,) = await place.answers()
    assert "8 images kept" in notification.detail
    assert (await place.datasets.report(await place.datasets.get(dataset.id))).counts.images == 8


async def test_a_dataset_that_was_deleted_in_the_meantime_is_reported(place: Place) -> None:
    dataset = await prepared(place)
    await place.receive_upload(UploadKind.ADD, MORE, dataset_id=dataset.id)
    await place.datasets.delete(dataset.id)
    await place.start()
    (notification,) = await place.answers()
    assert "There is no dataset" in notification.detail


async def test_a_kill_between_post_and_removal_gives_no_second_answer(place: Place) -> None:
    """The keys of the outbox prevent a second answer."""
    for _ in range(2):
        await place.receive_upload()
        await place.start()
    assert len(await place.answers()) == 1
    assert len(await place.requests()) == 1


async def test_a_job_that_was_queued_before_the_kill_needs_no_answer(place: Place, store: JobStore) -> None:
    dataset = await prepared(place)
    await place.receive_upload(is_at_once=True)
    await place.drafts.add(
        interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, request=REQUEST
    )
    spec = make_spec({"name": "dogs", "dataset": str(dataset.folder)})
    await store.submit(
        NewJob(interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, spec=spec)
    )
    await place.start()
    assert [
        notification for notification in await place.answers() if notification.kind is NotificationKind.ANSWER
    ] == []
    assert len(await place.requests()) == 1


async def test_an_expired_request_is_reported(place: Place, clock: FakeClock) -> None:
    dataset = await prepared(place)
    await place.receive_upload()
    await place.drafts.add(
        interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, request=REQUEST
    )
    clock.advance(100_000)
    await place.start()
    (notification,) = await place.answers()
    assert notification.draft_id == 0


async def test_uploads_after_the_start_belong_to_the_running_bot(place: Place) -> None:
    left = place.next_bot()
    await left.record()
    await place.receive_upload()
    await left.run()
    assert [upload.interaction_id for upload in await place.uploads.unfinished()] == [1]


async def test_an_unwritable_disk_is_retried(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.scheduled.interrupted_uploads._RETRY_S", 0.01)
    add, failures = place.drafts.add, [1, 2]

    async def unwritable(**values: Any) -> Draft:
        if failures:
            failures.pop()
            raise DatabaseUnwritable(path=place.db.path, why="the disk is full")
        return await add(**values)

    monkeypatch.setattr(place.drafts, "add", unwritable)
    await place.receive_upload()
    await place.start()
    (notification,) = await place.answers()
    assert notification.draft_id


async def test_the_sweep_keeps_pending_uploads(place: Place, tmp_path: Path) -> None:
    received = await place.receive_upload()
    for path in sorted((tmp_path / "data/datasets").rglob("*"), reverse=True):
        os.utime(path, (0, 0))
    assert await place.datasets.sweep(older_than_s=86_400) == 0
    assert received.source.is_dir()
    await place.uploads.remove(1)
    assert await place.datasets.sweep(older_than_s=86_400) == 1
    assert not received.source.exists()


async def test_an_import_of_known_files_is_the_existing_dataset(place: Place) -> None:
    dataset = await prepared(place)
    again = await import_files(
        place.datasets,
        await place.receive(IMAGES),
        ImportRequest(),
        guild_id=GUILD,
        owner_id=8,
        captions=CaptionSettings(),
    )
    assert again == dataset
