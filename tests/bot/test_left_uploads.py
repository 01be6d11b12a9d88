"""What an earlier bot had taken in and not answered: brought to its end once, and told once."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot.config import CaptionSettings, LimitSettings
from bot.datasets import (
    Dataset,
    DatasetStore,
    ImportWishes,
    PendingUpload,
    Received,
    Upload,
    UploadKind,
    Uploads,
    import_files,
)
from bot.db import Database
from bot.errors import DatabaseUnwritable
from bot.outbox import Notice, NoticeKind, Outbox
from bot.queue import Draft, DraftStore, JobStore, NewJob
from bot.scheduled import LeftUploads
from tests.bot.cogs.conftest import FAKE_TRAINER
from tests.bot.conftest import CHANNEL, GUILD
from tests.bot.fakes import Clock
from trainer.protocol.spec import make_spec

ANA = 7
WISHES = '{"preset": "lora"}'
PICTURES = {f"{number}.png": b"good %d" % number for number in range(6)}
MORE = {"new.png": b"new", "0.png": b"another of that name"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data folder, and the services of whichever bot works on it."""

    db: Database
    outbox: Outbox
    datasets: DatasetStore
    uploads: Uploads
    drafts: DraftStore

    async def start(self) -> None:
        """What the next bot does about uploads."""
        left = LeftUploads(
            self.db,
            self.outbox,
            uploads=self.uploads,
            datasets=self.datasets,
            drafts=self.drafts,
            captions=CaptionSettings(),
        )
        await left.remember()
        await left.run()

    async def receive(self, files: dict[str, bytes]) -> Received:
        return await self.datasets.receive_all([Upload(name=name, chunks=stream(data)) for name, data in files.items()])

    async def note(self, kind: UploadKind = UploadKind.FINETUNE, **values: object) -> None:
        """Somebody's files, before a byte of them is there."""
        wishes = WISHES if kind is UploadKind.FINETUNE else ImportWishes().to_json()
        upload = {
            "interaction_id": 1, "guild_id": GUILD, "channel_id": CHANNEL, "owner_id": ANA, "wishes": wishes,
            "title": "dogs_*.zip",
        }  # fmt: skip
        await self.uploads.note(PendingUpload(kind=kind, **{**upload, **values}))  # type: ignore[arg-type]

    async def take_in(
        self, kind: UploadKind = UploadKind.FINETUNE, files: dict[str, bytes] = PICTURES, **values: object
    ) -> Received:
        """Somebody's files, whole and not examined."""
        await self.note(kind, **values)
        received = await self.receive(files)
        await self.uploads.received(1, received)
        return received

    async def told(self) -> list[Notice]:
        """All that was told; nothing may be left to do."""
        assert await self.uploads.all() == []
        rows = await self.db.all("SELECT channel_id, dedupe_key, notice FROM outbox ORDER BY id")
        assert {(row["channel_id"], row["dedupe_key"]) for row in rows} <= {(CHANNEL, "upload:1")}
        return [Notice.model_validate_json(row["notice"]) for row in rows]

    async def requests(self) -> list[tuple[int, int, str]]:
        rows = await self.db.all("SELECT interaction_id, owner_id, wishes FROM job")
        return [tuple(row) for row in rows]


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def place(db: Database, outbox: Outbox, tmp_path: Path, clock: Clock) -> Place:
    clock.now = time.time()
    return Place(
        db=db,
        outbox=outbox,
        datasets=DatasetStore(
            db,
            data_dir=tmp_path / "data",
            limits=LimitSettings(max_dataset_mib=1, max_dataset_files=14),
            command=FAKE_TRAINER,
            env=dict(os.environ),
        ),
        uploads=Uploads(db),
        drafts=DraftStore(db, now=clock),
    )


async def grown(place: Place) -> Dataset:
    received = await place.receive(PICTURES)
    return await place.datasets.prepare(received, guild_id=GUILD, owner_id=ANA, name="dogs")


async def test_what_was_received_becomes_the_request_that_it_was_to_be(place: Place) -> None:
    await place.take_in()
    await place.start()
    (notice,) = await place.told()
    assert (notice.kind, notice.owner_id) == (NoticeKind.UPLOAD, ANA)
    assert (
        "I was restarted while I looked at **dogs\\_\\*.zip**. It is examined now (dataset **0**, 6 images kept)"
        in (notice.detail)
    )
    assert "your request waits:" in notice.detail
    draft = await place.drafts.get(notice.draft_id)
    assert (draft.interaction_id, draft.owner_id, draft.wishes) == (1, ANA, WISHES)
    assert draft.dataset_id == notice.dataset_id


async def test_one_that_was_to_go_at_once_waits_and_is_told_why(place: Place) -> None:
    await place.take_in(is_at_once=True)
    await place.start()
    (notice,) = await place.told()
    assert "your request waits for **Go on**: what you may queue is checked when you press it." in notice.detail
    assert await place.requests() == [(1, ANA, WISHES)]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (UploadKind.FINETUNE, "Nothing was queued; run /finetune again."),
        (UploadKind.IMPORT, "Nothing was kept; hand it in again with /dataset upload."),
        (UploadKind.ADD, "Nothing was changed; run /dataset add again."),
    ],
)
async def test_bytes_that_did_not_arrive_are_asked_for_again(place: Place, kind: UploadKind, advice: str) -> None:
    await place.note(kind, dataset_id=1 if kind is UploadKind.ADD else None)
    await place.start()
    (notice,) = await place.told()
    assert notice.detail == f"I was restarted before **dogs\\_\\*.zip** had arrived. {advice}"
    assert await place.requests() == []


async def test_bytes_that_a_power_cut_took_away_did_not_arrive(place: Place) -> None:
    received = await place.take_in()
    (received.source / "3.png").write_bytes(b"")
    await place.start()
    (notice,) = await place.told()
    assert "had arrived" in notice.detail


async def test_a_refusal_is_told_in_the_same_words(place: Place) -> None:
    await place.take_in(files={"dogs.zip": b"no zip at all"})
    await place.start()
    (notice,) = await place.told()
    assert "dogs.zip is not a zip archive. Nothing was queued." in notice.detail
    assert notice.draft_id == 0
    assert await place.requests() == []


async def test_a_bug_is_told_too_and_does_not_come_again_with_each_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(place.datasets, "_require_enough", broken)
    await place.take_in()
    await place.start()
    (notice,) = await place.told()
    assert "Something broke on my side. Nothing was queued; run /finetune again." in notice.detail


async def test_an_import_gets_all_that_was_wished_for_it(place: Place) -> None:
    await place.take_in(UploadKind.IMPORT, wishes=ImportWishes(name="hounds", trigger="ohwx").to_json())
    await place.start()
    (notice,) = await place.told()
    assert "dataset **hounds**, 6 images kept" in notice.detail
    assert (await place.datasets.named(GUILD, "hounds")).edits.rules.trigger == "ohwx"
    assert await place.requests() == []


async def test_nobody_changes_a_strangers_dataset_by_a_restart(place: Place) -> None:
    dataset = await grown(place)
    await place.take_in(UploadKind.IMPORT, owner_id=8, wishes=ImportWishes(trigger="mine").to_json())
    await place.start()
    (notice,) = await place.told()
    assert "somebody who may manage the server can change the dataset" in notice.detail
    assert (await place.datasets.get(dataset.id)).edits == dataset.edits
    await place.take_in(UploadKind.IMPORT, owner_id=8, wishes=ImportWishes(trigger="x", can_manage=True).to_json())
    await place.start()
    assert (await place.datasets.get(dataset.id)).edits.rules.trigger == "x"


@pytest.mark.parametrize("is_in_already", [False, True])
async def test_files_are_added_once(place: Place, *, is_in_already: bool) -> None:
    dataset = await grown(place)
    received = await place.take_in(UploadKind.ADD, MORE, dataset_id=dataset.id)
    if is_in_already:
        await place.datasets.add(dataset.id, received, upload_id=1)
    await place.start()
    (notice,) = await place.told()
    assert (
        notice.detail == "I was restarted while I added **dogs\\_\\*.zip** to **dogs**. It is done now: 8 images kept."
    )
    assert (await place.datasets.report(await place.datasets.get(dataset.id))).counts.images == 8


async def test_a_dataset_that_was_deleted_meanwhile_is_named(place: Place) -> None:
    dataset = await grown(place)
    await place.take_in(UploadKind.ADD, MORE, dataset_id=dataset.id)
    await place.datasets.delete(dataset.id)
    await place.start()
    (notice,) = await place.told()
    assert "There is no dataset" in notice.detail


async def test_a_bot_that_was_killed_between_post_and_answer_says_it_once_more_never(place: Place) -> None:
    """The keys of the outbox hold it, whatever is done again."""
    for _ in range(2):
        await place.take_in()
        await place.start()
    assert len(await place.told()) == 1
    assert len(await place.requests()) == 1


async def test_a_job_that_was_queued_before_the_kill_tells_of_itself(place: Place, store: JobStore) -> None:
    dataset = await grown(place)
    await place.take_in(is_at_once=True)
    await place.drafts.keep(
        interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, wishes=WISHES
    )
    spec = make_spec({"name": "dogs", "dataset": str(dataset.folder)})
    await store.submit(
        NewJob(interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, spec=spec)
    )
    await place.start()
    assert [notice for notice in await place.told() if notice.kind is NoticeKind.UPLOAD] == []
    assert len(await place.requests()) == 1


async def test_a_request_that_is_too_old_by_now_is_told_as_that(place: Place, clock: Clock) -> None:
    dataset = await grown(place)
    await place.take_in()
    await place.drafts.keep(
        interaction_id=1, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, dataset_id=dataset.id, wishes=WISHES
    )
    clock.advance(100_000)
    await place.start()
    (notice,) = await place.told()
    assert "This request is older than a day and no longer waits." in notice.detail


async def test_what_comes_after_the_start_is_the_running_bots_own(place: Place) -> None:
    left = LeftUploads(
        place.db,
        place.outbox,
        uploads=place.uploads,
        datasets=place.datasets,
        drafts=place.drafts,
        captions=CaptionSettings(),
    )
    await left.remember()
    await place.take_in()
    await left.run()
    assert [upload.interaction_id for upload in await place.uploads.all()] == [1]


async def test_a_disk_that_cannot_be_written_to_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.scheduled.uploads._PAUSE_S", 0.01)
    keep, failures = place.drafts.keep, [1, 2]

    async def unwritable(**values: Any) -> Draft:
        if failures:
            failures.pop()
            raise DatabaseUnwritable(path=place.db.path, why="the disk is full")
        return await keep(**values)

    monkeypatch.setattr(place.drafts, "keep", unwritable)
    await place.take_in()
    await place.start()
    (notice,) = await place.told()
    assert "your request waits:" in notice.detail


async def test_the_sweep_leaves_what_somebody_waits_for(place: Place, tmp_path: Path) -> None:
    received = await place.take_in()
    for path in sorted((tmp_path / "data/datasets").rglob("*"), reverse=True):
        os.utime(path, (0, 0))
    assert await place.datasets.sweep(older_than_s=86_400) == 0
    assert received.source.is_dir()
    await place.uploads.forget(1)
    assert await place.datasets.sweep(older_than_s=86_400) == 1
    assert not received.source.exists()


async def test_an_import_of_files_that_are_there_is_the_dataset_that_they_are(place: Place) -> None:
    dataset = await grown(place)
    again = await import_files(
        place.datasets,
        await place.receive(PICTURES),
        ImportWishes(),
        guild_id=GUILD,
        owner_id=8,
        captions=CaptionSettings(),
    )
    assert again == dataset
