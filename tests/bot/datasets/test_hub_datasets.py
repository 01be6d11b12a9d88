"""Tables of a dataset of the hub are read by the real trainer, in a process that is confined and limited."""

from __future__ import annotations

import io
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

pytestmark = pytest.mark.slow


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
