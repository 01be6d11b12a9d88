"""The bot's datasets with the real `trainer prepare`: decisions, captions and more files, without decoding twice."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bot.config import CaptionSettings
from bot.datasets import Dataset, DatasetStore, Upload
from bot.datasets.decisions import to_review, with_caption, with_decision, with_rules
from bot.db import open_db
from bot.errors import DatasetRefused
from tests.trainer.captioning.random_captioners import make_tagger
from tests.trainer.dataset.making import encoded, noise, png
from trainer.protocol.report import DatasetReport, FindingKind

pytestmark = pytest.mark.slow

GUILD = 10


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DatasetStore]:
    async with open_db(tmp_path / "data" / "darkroom.db") as db:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        yield DatasetStore(db, data_dir=tmp_path / "data", command=(sys.executable, "-m", "trainer"), env=env)


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


def uploads(files: dict[str, bytes]) -> list[Upload]:
    return [Upload(name=name, chunks=stream(data)) for name, data in files.items()]


def pictures(first: int, count: int) -> dict[str, bytes]:
    return {f"{seed}.png": png(seed, 160, 128) for seed in range(first, first + count)}


def image(report: DatasetReport, name: str) -> tuple[str, str, str]:
    found = next(each for each in report.images if each.source.endswith(name))
    assert found.pixels_sha256 is not None
    return found.pixels_sha256, found.status, found.caption


async def handed_in(store: DatasetStore, files: dict[str, bytes]) -> Dataset:
    received = await store.receive_all(uploads(files))
    return await store.prepare(received, guild_id=GUILD, owner_id=5, name="noise")


async def test_people_decide_and_the_next_revision_has_it(store: DatasetStore) -> None:
    again = encoded(noise(1, 160, 128), compress_level=1)
    dataset = await handed_in(store, {**pictures(1, 8), "again.png": again, "1.txt": b"a first noise"})
    report = await store.report(dataset)
    assert dataset.counts.kept == 8
    assert FindingKind.EXACT_DUPLICATE in {found.kind for each in report.images for found in each.findings}
    assert not any(each.image.status == "dropped" for each in to_review(report))

    first, status, caption = image(report, "1.png")
    third = image(report, "3.png")[0]
    assert (status, caption) == ("kept", "a first noise")
    await store.decide(dataset.id, lambda edits: with_decision(edits, third, "drop"))
    await store.decide(dataset.id, lambda edits: with_caption(edits, first, "another noise"))
    changed = await store.edit(dataset.id, lambda edits: with_rules(edits, trigger="ohwx"))

    after = await store.report(changed)
    assert changed.counts.kept == 7
    assert image(after, "3.png")[1] == "dropped"
    assert image(after, "1.png")[2] == "ohwx, another noise"
    dropped = next(each for each in after.images if each.source.endswith("3.png"))
    assert (dropped.decision, dropped.thumbnail is not None) == ("drop", True)
    assert await store.report(dataset) == report
    back = await store.edit(dataset.id, lambda edits: with_decision(edits, third, "keep"))
    assert back.counts.kept == 8


async def test_more_pictures_are_added_and_the_old_ones_are_linked_and_keep_their_side(store: DatasetStore) -> None:
    dataset = await handed_in(store, pictures(1, 12))
    before = await store.report(dataset)
    sides = {each.pixels_sha256: each.split for each in before.images}

    grown = await store.add(dataset.id, await store.receive_all(uploads({**pictures(50, 3), "50.txt": b"new"})))

    after = await store.report(grown)
    assert grown.counts.kept == 15
    assert {each.pixels_sha256: each.split for each in after.images if each.pixels_sha256 in sides} == sides
    assert image(after, "50.png")[2] == "new"
    old = {each.pixels_sha256: dataset.folder / (each.path or "") for each in before.images}
    for each in after.images:
        if each.pixels_sha256 in old:
            assert (grown.folder / (each.path or "")).samefile(old[each.pixels_sha256])


async def test_a_report_travels_with_its_pictures(store: DatasetStore) -> None:
    dataset = await handed_in(store, pictures(1, 6))
    async with store.packed_report(dataset) as packed:
        assert packed.stat().st_size > 1000
    assert not packed.exists()
    assert {"report.html", "report.md"} <= {path.name for path in dataset.folder.iterdir()}


async def test_a_model_writes_the_captions_that_are_missing_and_they_are_marked(
    store: DatasetStore, tmp_path: Path
) -> None:
    model = make_tagger(tmp_path / "model")
    dataset = await handed_in(store, {**pictures(1, 6), "1.txt": b"a first noise"})
    assert dataset.counts.captioned == 1

    with pytest.raises(DatasetRefused, match="nowhere"):
        await store.caption(dataset.id, CaptionSettings(model=str(tmp_path / "nowhere")))
    written = await store.caption(dataset.id, CaptionSettings(model=str(model)))

    report = await store.report(written)
    assert image(report, "1.png")[2] == "a first noise"
    assert written.edits.captioner == "model"
    said = [each for each in report.images if each.is_caption_automatic]
    assert len(said) == written.counts.automatic == len(written.edits.automatic) == 5
    assert {each.caption for each in said} == {"long hair, cat"}


async def test_parquet_from_strangers_is_not_read_whatever_the_settings_say(store: DatasetStore) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(seed) for seed in range(8)]}), table)
    with pytest.raises(DatasetRefused, match="Parquet"):
        await handed_in(store, {"pictures.parquet": table.getvalue()})
