"""A disk that is really full, with the database on it, while files arrive by the upload page and results are loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.datasets import ImportRequest, PendingUpload, UploadKind
from bot.db import open_db
from bot.outbox import Outbox
from bot.queue import JobStore
from bot.web import LinkKind
from tests.bot.conftest import CHANNEL, GUILD, add_dataset
from tests.bot.fake_events import finished, started
from tests.bot.fakes import FakeClock
from tests.bot.web.conftest import ANA, running_pages
from tests.bot.web.test_tus import UPLOAD, Desk, checksum, stored
from tests.trainer.small_disk import fill, small_disk

BIG, SMALL, WEIGHTS = (bytes(range(256)) * count for count in (20_000, 12, 4096))


@dataclass
class FullDisk:
    """The upload, a finished job's file, and what fills the disk that all of it is on."""

    desk: Desk
    result_url: str
    ballast: Path


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[FullDisk]:
    clock = FakeClock()
    with small_disk(tmp_path / "disk", 12_000) as mounted:
        async with open_db(mounted / "darkroom.db") as db:
            await add_dataset(db)
            outbox = Outbox(db, clock=clock)
            store = JobStore(db, outbox, data_dir=mounted, clock=clock)
            async with running_pages(db, store, outbox, clock, mounted) as pages:
                job = await pages.job([started(1), finished(2)], {"output/lora.safetensors": WEIGHTS})
                upload = PendingUpload(
                    interaction_id=UPLOAD, guild_id=GUILD, channel_id=CHANNEL, owner_id=ANA, kind=UploadKind.IMPORT,
                    request=ImportRequest().model_dump_json(), title="", is_by_page=True, is_open=True,
                )  # fmt: skip
                await pages.site.uploads.add(upload)
                desk = Desk(pages, await pages.link(LinkKind.UPLOAD, UPLOAD))
                result_url = f"{await pages.link(LinkKind.JOB, job.id)}/files/output/lora.safetensors"
                yield FullDisk(desk, result_url, mounted / "ballast")


async def test_nothing_is_lost_doubled_or_refused_for_good(disk: FullDisk) -> None:
    desk = disk.desk
    big, small = await desk.created(len(BIG), "big.png"), await desk.created(len(SMALL), "small.png")
    assert (await desk.patch(small, 0, SMALL[:-1])).status == 204
    fill(disk.ballast)

    # The database is full, too: what asks for a change of it may try again, and a file that is not announced is gone.
    answers = [await desk.create(len(SMALL), f"{number}.png", key=f"{number}") for number in range(4)]
    empty = await desk.create(0, "empty.png")
    assert {answer.status for answer in (*answers, empty)} == {507}
    assert (await desk.patch(big, 0, BIG)).status == 507
    kept = await desk.offset(big)
    assert kept < len(BIG)
    whole = BIG[kept : kept + 1_000_000]
    assert (await desk.patch(big, kept, whole, Upload_Checksum=checksum(whole))).status == 507
    assert await desk.offset(big) == kept, "with a checksum all of it counts, or none"
    # The last byte finds room within its block, and then the database finds none.
    assert (await desk.patch(small, len(SMALL) - 1, SMALL[-1:])).status == 507
    assert await desk.offset(small) == len(SMALL)

    # Who only looks and loads notices nothing.
    status, _text, _headers = await desk.pages.get(desk.page)
    assert status == 200
    async with desk.pages.browser.get(disk.result_url, headers={"Range": "bytes=1000-"}) as answer:
        assert (answer.status, await answer.read()) == (206, WEIGHTS[1000:])

    disk.ballast.unlink()
    assert (await desk.patch(big, kept, BIG[kept:])).status == 204
    for number in range(4):
        url = await desk.created(len(SMALL), f"{number}.png", key=f"{number}")
        assert (await desk.patch(url, 0, SMALL)).status == 204
    files = await desk.files()
    assert sorted(file.path for file in files) == ["0.png", "1.png", "2.png", "3.png", "big.png", "small.png"]
    assert all(stored(desk, file) == (BIG if file.path == "big.png" else SMALL) for file in files)
    assert len(list(disk.ballast.parent.glob("uploads/*/*"))) == len(files)
