"""The demo dataset: reproducible, captioned, with planted defects for the report to find."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from recipes.tiny.demo_dataset import DUPLICATED, PORTRAITS, TRIGGER, write_demo_dataset
from recipes.tiny.scenes import caption_seed


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    path = tmp_path_factory.mktemp("demo") / "demo.zip"
    write_demo_dataset(path)
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_zip_is_reproducible(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    write_demo_dataset(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == Path(str(archive.filename)).read_bytes()


@pytest.mark.slow
def test_every_image_has_a_caption_with_the_trigger_word(archive: zipfile.ZipFile) -> None:
    images = [name for name in archive.namelist() if "momo_" in name and name.endswith(".png")]
    assert len(images) == len(PORTRAITS) + len(DUPLICATED)
    for name in images:
        assert TRIGGER in archive.read(name.replace(".png", ".txt")).decode().split()
        assert min(Image.open(io.BytesIO(archive.read(name))).size) >= 96


@pytest.mark.slow
def test_it_has_two_duplicates_a_broken_image_and_a_file_that_is_not_an_image(archive: zipfile.ZipFile) -> None:
    contents = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    assert len(contents) - len(set(contents)) == 2
    with pytest.raises((UnidentifiedImageError, OSError)):
        Image.open(io.BytesIO(archive.read("momo-dataset/images/broken.png"))).load()
    assert "momo-dataset/images/notes.pdf" in archive.namelist()


def test_captions_of_the_base_never_have_the_trigger_word() -> None:
    assert not any(TRIGGER in caption_seed(seed) for seed in range(500))
