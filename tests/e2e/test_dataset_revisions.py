"""Datasets with the real `trainer prepare`: decisions, captions and more files, without decoding twice."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bot.config import CaptionSettings
from bot.datasets import Dataset, DatasetStore
from bot.datasets.decisions import review_questions, with_caption, with_decisions, with_rules
from bot.db import open_db
from bot.errors import DatasetRefused
from tests.bot.fakes import uploads
from tests.trainer.captioning.random_captioners import make_tagger
from tests.trainer.dataset.image_files import encoded, noise, png
from tests.trainer.fork_server import ForkServer
from trainer.protocol.report import DatasetReport, FindingKind

pytestmark = pytest.mark.slow

GUILD = 10


@pytest.fixture
async def store(tmp_path: Path, fork_server: ForkServer) -> AsyncIterator[DatasetStore]:
    async with open_db(tmp_path / "data" / "darkroom.db") as db:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        yield DatasetStore(db, data_dir=tmp_path / "data", command=fork_server.command, env=env)


def images(first: int, count: int) -> dict[str, bytes]:
    return {f"{seed}.png": png(seed, 160, 128) for seed in range(first, first + count)}


def image(report: DatasetReport, name: str) -> tuple[str, str, str]:
    found = next(each for each in report.images if each.source.endswith(name))
    assert found.pixels_sha256 is not None
    return found.pixels_sha256, found.status, found.caption


async def uploaded(store: DatasetStore, files: dict[str, bytes]) -> Dataset:
    received = await store.receive(uploads(files))
    return await store.prepare(received, guild_id=GUILD, owner_id=5, name="noise")


async def test_decisions_are_in_the_next_revision(store: DatasetStore) -> None:
    again = encoded(noise(1, 160, 128), compress_level=1)
    dataset = await uploaded(store, {**images(1, 8), "again.png": again, "1.txt": b"a first noise"})
    report = await store.report(dataset)
    assert dataset.counts.kept == 8
    assert FindingKind.EXACT_DUPLICATE in {found.kind for each in report.images for found in each.findings}
    assert not any(question.is_dropped for question in review_questions(report))

    first, status, caption = image(report, "1.png")
    third = image(report, "3.png")[0]
    assert (status, caption) == ("kept", "a first noise")
    await store.decide(dataset.id, lambda edits: with_decisions(edits, [third], "drop"))
    await store.decide(dataset.id, lambda edits: with_caption(edits, first, "another noise"))
    changed = await store.edit(dataset.id, lambda edits: with_rules(edits, trigger="ohwx"))

    after = await store.report(changed)
    assert changed.counts.kept == 7
    assert image(after, "3.png")[1] == "dropped"
    assert image(after, "1.png")[2] == "ohwx, another noise"
    dropped = next(each for each in after.images if each.source.endswith("3.png"))
    assert (dropped.decision, dropped.thumbnail is not None) == ("drop", True)
    assert await store.report(dataset) == report
    back = await store.edit(dataset.id, lambda edits: with_decisions(edits, [third], "keep"))
    assert back.counts.kept == 8


async def test_added_images_do_not_change_the_old_ones_or_their_splits(store: DatasetStore) -> None:
    dataset = await uploaded(store, images(1, 12))
    before = await store.report(dataset)
    splits = {each.pixels_sha256: each.split for each in before.images}

    grown = await store.add(dataset.id, await store.receive(uploads({**images(50, 3), "50.txt": b"new"})))

    after = await store.report(grown)
    assert grown.counts.kept == 15
    assert {each.pixels_sha256: each.split for each in after.images if each.pixels_sha256 in splits} == splits
    assert image(after, "50.png")[2] == "new"
    old = {each.pixels_sha256: dataset.folder / (each.path or "") for each in before.images}
    for each in after.images:
        if each.pixels_sha256 in old:
            assert (grown.folder / (each.path or "")).samefile(old[each.pixels_sha256])


async def test_a_report_is_packed_with_its_images(store: DatasetStore) -> None:
    dataset = await uploaded(store, images(1, 6))
    async with store.packed_report(dataset) as packed:
        assert packed.stat().st_size > 1000
    assert not packed.exists()
    assert {"report.html", "report.md"} <= {path.name for path in dataset.folder.iterdir()}


async def test_a_model_writes_missing_captions_and_they_are_marked(store: DatasetStore, tmp_path: Path) -> None:
    model = make_tagger(tmp_path / "model")
    dataset = await uploaded(store, {**images(1, 6), "1.txt": b"a first noise"})
    assert dataset.counts.captioned == 1

    with pytest.raises(DatasetRefused, match="nowhere"):
        await store.write_captions(dataset.id, CaptionSettings(model=str(tmp_path / "nowhere")))
    written = await store.write_captions(dataset.id, CaptionSettings(model=str(model)))

    report = await store.report(written)
    assert image(report, "1.png")[2] == "a first noise"
    assert written.edits.captioner == "model"
    automatic = [each for each in report.images if each.is_caption_automatic]
    assert len(automatic) == written.counts.automatic == len(written.edits.automatic) == 5
    assert {each.caption for each in automatic} == {"long hair, cat"}


async def test_uploaded_parquet_is_never_read(store: DatasetStore) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(seed) for seed in range(8)]}), table)
    with pytest.raises(DatasetRefused, match="Parquet"):
        await uploaded(store, {"images.parquet": table.getvalue()})
