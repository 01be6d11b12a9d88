"""A drawing that shows a training picture is told from one that does not; and how far two drawings are apart."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter, ImageOps

from tests.trainer.report.making import picture
from trainer.dataset.split.overlap import Member
from trainer.errors import DatasetError
from trainer.protocol.report import Split
from trainer.tasks.similarity import Album, feature_distance, mean_likeness, pixel_difference


def scene(seed: int, size: tuple[int, int] = (128, 128)) -> PILImage.Image:
    """Boxes and circles that are another picture for each seed, and not their own mirror image."""
    random = Random(seed)

    def colour() -> tuple[int, int, int]:
        return random.randrange(256), random.randrange(256), random.randrange(256)

    image = PILImage.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y, side = random.randrange(size[0]), random.randrange(size[1]), random.randrange(15, 60)
        (draw.ellipse if number % 2 else draw.rectangle)((x, y, x + side, y + side), fill=colour())
    return image


def album_of(folder: Path, images: list[PILImage.Image]) -> Album:
    members = []
    for number, image in enumerate(images):
        (folder / "thumbnails").mkdir(parents=True, exist_ok=True)
        image.save(folder / "thumbnails" / f"{number:04}.jpg", quality=85)
        members.append(Member(image=picture(number), source=0, split=Split.TRAIN))
    (folder / "scratch").mkdir()
    return Album(members, [folder], folder / "scratch")


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return album_of(tmp_path, [scene(seed) for seed in range(8)])


def saved(folder: Path, image: PILImage.Image) -> Path:
    image.save(folder / "drawing.png")
    return folder / "drawing.png"


def test_a_copy_is_found_whatever_its_size_and_sharpness(album: Album, tmp_path: Path) -> None:
    copy = scene(3).resize((512, 512)).filter(ImageFilter.GaussianBlur(1.5))

    near = album.nearest(saved(tmp_path, copy))

    assert (near.place, near.is_same, near.is_mirrored) == (3, True, False)
    assert near.distance < 0.7


def test_a_mirrored_copy_is_found_too(album: Album, tmp_path: Path) -> None:
    near = album.nearest(saved(tmp_path, ImageOps.mirror(scene(5))))

    assert (near.place, near.is_same, near.is_mirrored) == (5, True, True)


def test_what_a_square_crop_leaves_of_a_long_picture_is_found(tmp_path: Path) -> None:
    long = scene(20, (384, 192))
    album = album_of(tmp_path, [scene(1), long, scene(2)])

    near = album.nearest(saved(tmp_path, long.crop((96, 0, 288, 192))))

    assert (near.place, near.is_same) == (1, True)


def test_another_picture_is_no_copy_and_has_its_nearest_by_kind(album: Album, tmp_path: Path) -> None:
    drawing = saved(tmp_path, scene(99))

    near = album.nearest(drawing)

    assert not near.is_same
    assert near.difference > 26
    assert near.distance == pytest.approx(album.distance(drawing))
    nearest = min(album.thumbnails, key=lambda path: feature_distance(path, drawing))
    assert album.thumbnails[near.place] == nearest


def test_blank_drawings_are_no_copies_of_blank_pictures(tmp_path: Path) -> None:
    grey = PILImage.new("RGB", (96, 96), (120, 120, 120))

    near = album_of(tmp_path, [scene(1), grey]).nearest(saved(tmp_path, grey))

    assert near.place == 1
    assert not near.is_same


def test_it_stops_when_it_is_asked_to(album: Album, tmp_path: Path) -> None:
    def check() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        album.nearest(saved(tmp_path, scene(1)), check)


def test_without_pictures_there_is_no_album(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no training pictures"):
        Album([], [tmp_path], tmp_path)


def test_differences_are_nothing_for_the_same_and_everything_for_black_and_white(tmp_path: Path) -> None:
    black, white = tmp_path / "black.png", tmp_path / "white.png"
    PILImage.new("RGB", (8, 8), "black").save(black)
    PILImage.new("RGB", (8, 8), "white").save(white)

    assert pixel_difference(black, white) == 1
    assert pixel_difference(white, white) == feature_distance(white, white) == 0
    assert feature_distance(black, white) > 0.5


def test_likeness_is_the_mean_cosine_of_the_pairs() -> None:
    pictures_ND, prompts_ND = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])

    assert mean_likeness(pictures_ND, prompts_ND) == 0.5
