"""The datasets of the demo: those that ship are drawn by the recipe, captioned, with planted defects for the report."""

import io
import zipfile
from importlib import resources

import pytest
from PIL import Image, ImageChops, UnidentifiedImageError

from recipes.tiny.demo_dataset import (
    BLUEPRINT,
    DUPLICATED,
    PORTRAITS,
    TRIGGER,
    UNCAPTIONED,
    blueprint_files,
    momo_files,
)
from recipes.tiny.scenes import caption_seed


def shipped(name: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO((resources.files("bot.demo") / name).read_bytes())) as archive:
        return {each: archive.read(each) for each in archive.namelist()}


def is_same(first: bytes, second: bytes) -> bool:
    """Whether two files are equal; two images: to the pixel (their bytes depend on the version of Pillow)."""
    if first == second or not first.startswith(b"\x89PNG") or not second.startswith(b"\x89PNG"):
        return first == second
    images = [Image.open(io.BytesIO(each)) for each in (first, second)]
    return images[0].size == images[1].size and ImageChops.difference(*images).getbbox() is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "draw"), [("momo.zip", momo_files), ("blueprint.zip", blueprint_files)])
def test_the_shipped_zip_is_what_the_recipe_draws(name: str, draw: object) -> None:
    assert callable(draw)
    drawn, packed = draw(), shipped(name)
    assert sorted(drawn) == sorted(packed)
    # One that is cut off after its first bytes is no image.
    assert [each for each in drawn if "broken" not in each and not is_same(drawn[each], packed[each])] == []


def test_every_image_of_momo_has_a_caption_with_the_trigger_word() -> None:
    files = shipped("momo.zip")
    images = [name for name in files if "momo_" in name and name.endswith(".png")]
    assert len(images) == len(PORTRAITS) + len(DUPLICATED)
    for name in images:
        assert TRIGGER in files[name.replace(".png", ".txt")].decode().split()
        assert min(Image.open(io.BytesIO(files[name])).size) >= 96


def test_momo_has_two_duplicates_a_broken_image_and_a_file_that_is_not_an_image() -> None:
    files = shipped("momo.zip")
    contents = [content for name, content in files.items() if name.endswith(".png")]
    assert len(contents) - len(set(contents)) == 2
    with pytest.raises((UnidentifiedImageError, OSError)):
        Image.open(io.BytesIO(files["momo-dataset/images/broken.png"])).load()
    assert "momo-dataset/images/notes.pdf" in files


def test_the_blueprints_leave_decisions_to_their_owner() -> None:
    files = shipped("blueprint.zip")
    drawings = [name for name in files if name.startswith("blueprints/blueprint_") and name.endswith("png")]
    bare = [name for name in drawings if name.replace(".png", ".txt") not in files]
    assert len(bare) == len(UNCAPTIONED)
    assert all(files[name].decode().startswith(BLUEPRINT) for name in files if name.endswith("_01.txt"))
    assert {"blueprints/out_of_focus.png", "blueprints/thumbnail.png", "blueprints/blueprint_06_bright.png"} < set(
        files
    )


def test_captions_of_the_base_never_have_the_trigger_word() -> None:
    assert not any(TRIGGER in caption_seed(seed) for seed in range(500))
