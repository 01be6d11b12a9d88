"""Datasets of the hub are downloaded once; tables are read by the real trainer, in a confined, limited process."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from bot.config import Config, PrepareSettings, WebSettings
from bot.datasets import DatasetStore, HubDatasets
from bot.db import Database
from bot.errors import DatasetRefused
from tests.trainer.dataset.local_hub import local_hub
from trainer.protocol.hub import HubDatasetFacts


def table(count: int = 6) -> bytes:
    """A Parquet table of images with captions and classes."""
    cells = []
    for number in range(count):
        image = io.BytesIO()
        Image.effect_noise((128 + number, 128), 80).convert("RGB").save(image, "PNG")
        cells.append({"bytes": image.getvalue(), "path": None})
    columns = {"image": cells, "text": [f"number {n}" for n in range(count)], "label": ["a", "b"] * (count // 2)}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@pytest.mark.slow
async def test_a_table_of_the_hub_becomes_a_dataset_with_captions_and_classes(db: Database, tmp_path: Path) -> None:
    with local_hub("lambda/pets", {"data/train.parquet": table(), "broken.parquet": b"PAR1"}) as (address, _asked):
        config = Config()
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        store = DatasetStore(
            db,
            data_dir=tmp_path / "data",
            env=config.confined_environment(),
            download_env=config.trainer_environment() | online,
        )
        hub = HubDatasets(store, prepare=PrepareSettings(), web=WebSettings(), incoming=tmp_path / "data" / "incoming")
        facts = await hub.look_up("hf://lambda/pets")
        received = await hub.download(facts, owner_id=1)
        small = HubDatasets(
            store, prepare=PrepareSettings(), web=WebSettings(max_upload_files=3), incoming=tmp_path / "small"
        )
        with pytest.raises(DatasetRefused, match="at most 3 images"):
            await small.download(facts, owner_id=1)
    report = await store.runner.prepare(
        received.source, received.source.parent / "prepared", title=received.title, owner_id=1
    )
    assert report.counts.kept == 6
    assert [(image.caption, image.class_name) for image in report.images] == [
        (f"number {number}", "ab"[number % 2]) for number in range(6)
    ]
    assert [each.source for each in report.refused] == ["pets/broken.parquet"]
    assert list((tmp_path / "small").glob("*")) == []


class AskedStore(DatasetStore):
    """Tells how many downloads have come as far as to look for one that runs."""

    asked: asyncio.Semaphore

    async def require_share(self, owner_id: int, *, datasets: int, more_bytes: int) -> None:
        await super().require_share(owner_id, datasets=datasets, more_bytes=more_bytes)
        self.asked.release()


def runs(folder: Path) -> int:
    return len(list(folder.glob("run-*")))


#: In place of `trainer fetch-dataset SOURCE --out FOLDER`: notes that it runs, and waits until it may go on.
FETCH = """
import pathlib, sys, time
here, out = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[4])
(here / f"run-{time.monotonic_ns()}").touch()
while not (here / "go").exists():
    time.sleep(0.01)
out.mkdir()
(out / "a.jpg").write_bytes(b"a")
"""


async def test_a_dataset_that_is_asked_for_while_it_is_downloaded_is_downloaded_once(
    db: Database, tmp_path: Path
) -> None:
    script = tmp_path / "fetch.py"
    script.write_text(FETCH)
    store = AskedStore(db, data_dir=tmp_path / "data", command=(sys.executable, str(script)))
    store.asked = asyncio.Semaphore(0)
    hub = HubDatasets(store, prepare=PrepareSettings(), web=WebSettings(), incoming=tmp_path / "data" / "incoming")
    facts = HubDatasetFacts(name="lambda/pets", commit="c0ffee", files=1, bytes=1)
    async with asyncio.TaskGroup() as group:
        downloads = [group.create_task(hub.download(facts, owner_id=owner)) for owner in (1, 2)]
        for _download in downloads:
            await store.asked.acquire()
        (tmp_path / "go").touch()
    assert runs(tmp_path) == 1
    first, second = (download.result() for download in downloads)
    assert first == second
    assert (second.source / first.files[0].name).read_bytes() == b"a"
    assert (await hub.download(facts, owner_id=3)).files == first.files
    assert runs(tmp_path) == 2, "later it is another download"
