"""Copies are found however they were saved; look-alikes are left alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.trainer.dataset.making import encoded
from trainer.dataset.images.image_similarity import MAX_DIFFERENCE, difference
from trainer.dataset.images.near_duplicates import Groups, candidates, exact_copies, near_pairs
from trainer.dataset.images.perceptual_hash import look_of


def scene(seed: int) -> Image.Image:
    """A drawing with edges, as real pictures have them."""
    import random

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

    def likeness(one: int, other: int, mirrored: bool) -> float | None:
        measure = difference(paths[one], paths[other], mirrored=mirrored)
        return measure if measure <= MAX_DIFFERENCE else None

    looks = {index: look_of(image) for index, image in enumerate(images)}
    return {(one, other) for one, other, _ in near_pairs(looks, likeness)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_that_was_changed_a_little_is_found(tmp_path: Path, variant: str) -> None:
    images = [scene(seed) for seed in range(12)]
    found = pairs_of(tmp_path, images + [VARIANTS[variant](image) for image in images])
    expected = {(index, index + 12) for index in range(12)}
    assert found <= expected
    assert len(found) >= 11


def test_different_pictures_are_not_paired(tmp_path: Path) -> None:
    assert pairs_of(tmp_path, [scene(seed) for seed in range(60)]) == set()


def test_a_changed_detail_is_no_near_duplicate(tmp_path: Path) -> None:
    other = scene(1)
    ImageDraw.Draw(other).ellipse((80, 60, 104, 84), fill="white", outline="black", width=3)
    looks = {0: look_of(scene(1)), 1: look_of(other)}
    assert list(candidates(looks)) == [(0, 1)]
    assert pairs_of(tmp_path, [scene(1), other]) == set()


def test_blank_pictures_are_never_paired() -> None:
    faint = Image.linear_gradient("L").point([100 + value // 32 for value in range(256)]).convert("RGB")
    looks = {index: look_of(faint.resize((100 + index, 100))) for index in range(5)}
    assert list(candidates(looks)) == []


def test_the_mirrors_hash_is_the_hash_of_the_mirror() -> None:
    look, turned = look_of(scene(3)), look_of(ImageOps.mirror(scene(3)))
    assert (look.mirrored_phash ^ turned.phash).bit_count() <= 2


def test_candidates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.dataset.images.near_duplicates._BLOCK_ROWS", 3)
    looks = {index: look_of(scene(index % 7)) for index in range(14)}
    found = list(candidates(looks))
    assert set(found) >= {(index, index + 7) for index in range(7)}
    assert len(found) == len({frozenset(pair) for pair in found})
    assert all(one < other for one, other in found)


def test_of_exact_copies_the_first_with_a_caption_is_kept() -> None:
    assert exact_copies(["a", "b", "a", None, "a", None], [False, False, True, False, True, False]) == {0: 2, 4: 2}
    assert exact_copies(["a", "a"], [False, False]) == {1: 0}


def test_what_is_joined_however_indirectly_is_one_group() -> None:
    groups = Groups(6)
    groups.join(5, 3)
    groups.join(1, 2)
    groups.join(3, 1)
    assert [groups.find(item) for item in range(6)] == [0, 1, 1, 1, 4, 1]
