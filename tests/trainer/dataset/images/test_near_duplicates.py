"""Copies are found however they were saved; similar images are not taken for copies."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.trainer.dataset.image_files import encoded
from trainer.dataset.images.near_duplicates import (
    UnionFind,
    candidates,
    exact_copies,
    image_hashes,
    near_pairs,
    thumbnail_distance,
)


def scene(seed: int) -> Image.Image:
    """A drawing with edges, like real images."""
    rng = random.Random(seed)
    image = Image.new("RGB", (192, 160), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, side = rng.randrange(160), rng.randrange(130), rng.randrange(20, 70)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


VARIANTS = {
    "re-encoded": lambda i: Image.open(io.BytesIO(encoded(i, "JPEG", quality=40))).convert("RGB"),
    "resized": lambda i: i.resize((120, 100)),
    "brightened": lambda i: ImageEnhance.Brightness(i).enhance(1.15),
    "slightly cropped": lambda i: i.crop((5, 4, 187, 156)),
    "mirrored": ImageOps.mirror,
}


def pairs_of(tmp_path: Path, images: list[Image.Image]) -> set[tuple[int, int]]:
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)

    def distance(one: int, other: int, mirrored: bool) -> float | None:
        return thumbnail_distance(paths[one], paths[other], mirrored)

    hashes = {index: image_hashes(image) for index, image in enumerate(images)}
    return {(one, other) for one, other, _ in near_pairs(hashes, distance)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_slightly_changed_copy_is_found(tmp_path: Path, variant: str) -> None:
    images = [scene(seed) for seed in range(12)]
    found = pairs_of(tmp_path, images + [VARIANTS[variant](image) for image in images])
    expected = {(index, index + 12) for index in range(12)}
    assert found <= expected
    assert len(found) >= 11


def test_different_images_are_not_paired(tmp_path: Path) -> None:
    assert pairs_of(tmp_path, [scene(seed) for seed in range(60)]) == set()


def test_an_image_with_a_changed_detail_is_not_a_near_duplicate(tmp_path: Path) -> None:
    other = scene(1)
    ImageDraw.Draw(other).ellipse((80, 60, 104, 84), fill="white", outline="black", width=3)
    hashes = {0: image_hashes(scene(1)), 1: image_hashes(other)}
    assert list(candidates(hashes)) == [(0, 1)]
    assert pairs_of(tmp_path, [scene(1), other]) == set()


def test_blank_images_are_never_paired() -> None:
    faint = Image.linear_gradient("L").point([100 + value // 32 for value in range(256)]).convert("RGB")
    hashes = {index: image_hashes(faint.resize((100 + index, 100))) for index in range(5)}
    assert list(candidates(hashes)) == []


def test_the_mirrored_hash_is_the_hash_of_the_mirrored_image() -> None:
    hashes, mirrored = image_hashes(scene(3)), image_hashes(ImageOps.mirror(scene(3)))
    assert (hashes.mirrored_phash ^ mirrored.phash).bit_count() <= 2


def test_candidates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.dataset.images.near_duplicates._BLOCK_ROWS", 3)
    hashes = {index: image_hashes(scene(index % 7)) for index in range(14)}
    found = list(candidates(hashes))
    assert set(found) >= {(index, index + 7) for index in range(7)}
    assert len(found) == len({frozenset(pair) for pair in found})
    assert all(one < other for one, other in found)


def test_the_first_exact_copy_with_a_caption_is_kept() -> None:
    assert exact_copies(["a", "b", "a", "a"], [False, False, True, True]) == {0: 2, 3: 2}
    assert exact_copies(["a", "a"], [False, False]) == {1: 0}


def test_indirectly_joined_items_are_in_one_set() -> None:
    sets = UnionFind(6)
    sets.join(5, 3)
    sets.join(1, 2)
    sets.join(3, 1)
    assert [sets.find(item) for item in range(6)] == [0, 1, 1, 1, 4, 1]
