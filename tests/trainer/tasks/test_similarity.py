"""Similarity of samples: copies of training images, and distances between images."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter, ImageOps

from tests.trainer.report.sample_reports import report_image
from trainer.dataset.split.overlap import JobImage
from trainer.errors import DatasetError
from trainer.protocol.report import Split
from trainer.tasks.sample_similarity import Album, clip_score, feature_distance, pixel_difference


def scene(seed: int, size: tuple[int, int] = (128, 128)) -> PILImage.Image:
    """Draw seeded boxes and circles, not mirror-symmetric."""
    random = Random(seed)

    def color() -> tuple[int, int, int]:
        return random.randrange(256), random.randrange(256), random.randrange(256)

    image = PILImage.new("RGB", size, color())
    draw = ImageDraw.Draw(image)
    for number in range(12):
        x, y, side = random.randrange(size[0]), random.randrange(size[1]), random.randrange(15, 60)
        (draw.ellipse if number % 2 else draw.rectangle)((x, y, x + side, y + side), fill=color())
    return image


def album_of(folder: Path, images: list[PILImage.Image]) -> Album:
    members = []
    for number, image in enumerate(images):
        (folder / "thumbnails").mkdir(parents=True, exist_ok=True)
        image.save(folder / "thumbnails" / f"{number:04}.jpg", quality=85)
        members.append(JobImage(image=report_image(number), source=0, split=Split.TRAIN))
    (folder / "scratch").mkdir()
    return Album(members, [folder], folder / "scratch")


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return album_of(tmp_path, [scene(seed) for seed in range(8)])


def saved(folder: Path, image: PILImage.Image) -> Path:
    image.save(folder / "sample.png")
    return folder / "sample.png"


def test_a_resized_and_blurred_copy_is_found(album: Album, tmp_path: Path) -> None:
    copy = scene(3).resize((512, 512)).filter(ImageFilter.GaussianBlur(1.5))

    near = album.nearest(saved(tmp_path, copy))

    assert (near.index, near.is_same, near.is_mirrored) == (3, True, False)
    assert near.distance < 0.7


def test_a_mirrored_copy_is_found(album: Album, tmp_path: Path) -> None:
    near = album.nearest(saved(tmp_path, ImageOps.mirror(scene(5))))

    assert (near.index, near.is_same, near.is_mirrored) == (5, True, True)


def test_a_square_crop_of_a_wide_image_is_found(tmp_path: Path) -> None:
    long = scene(20, (384, 192))
    album = album_of(tmp_path, [scene(1), long, scene(2)])

    near = album.nearest(saved(tmp_path, long.crop((96, 0, 288, 192))))

    assert (near.index, near.is_same) == (1, True)


def test_another_image_is_not_a_copy_and_its_nearest_is_by_features(album: Album, tmp_path: Path) -> None:
    sample = saved(tmp_path, scene(99))

    near = album.nearest(sample)

    assert not near.is_same
    assert near.image_distance > 26
    assert near.distance == pytest.approx(album.distance(sample))
    nearest = min(album.thumbnails, key=lambda path: feature_distance(path, sample))
    assert album.thumbnails[near.index] == nearest


def test_a_blank_sample_is_not_a_copy_of_a_blank_image(tmp_path: Path) -> None:
    gray = PILImage.new("RGB", (96, 96), (120, 120, 120))

    near = album_of(tmp_path, [scene(1), gray]).nearest(saved(tmp_path, gray))

    assert near.index == 1
    assert not near.is_same


def test_the_search_can_be_interrupted(album: Album, tmp_path: Path) -> None:
    def check() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        album.nearest(saved(tmp_path, scene(1)), check)


def test_an_album_without_training_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no training images"):
        Album([], [tmp_path], tmp_path)


def test_distances_are_0_for_equal_images_and_large_for_black_and_white(tmp_path: Path) -> None:
    black, white = tmp_path / "black.png", tmp_path / "white.png"
    PILImage.new("RGB", (8, 8), "black").save(black)
    PILImage.new("RGB", (8, 8), "white").save(white)

    assert pixel_difference(black, white) == 1
    assert pixel_difference(white, white) == feature_distance(white, white) == 0
    assert feature_distance(black, white) > 0.5


def test_the_clip_score_is_the_mean_cosine_of_the_pairs() -> None:
    images_ND, prompts_ND = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])

    assert clip_score(images_ND, prompts_ND) == 0.5
