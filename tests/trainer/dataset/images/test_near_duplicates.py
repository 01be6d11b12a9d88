"""Copies are found however they were edited; images that only look alike are not taken for copies."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from tests.trainer.dataset.edited_images import (
    EDITS,
    FAMILY_SIZE,
    LOOK_ALIKES,
    PHOTO_EDITS,
    burst_frame,
    icon,
    photograph,
)
from trainer.dataset.images import duplicate_candidates, image_registration
from trainer.dataset.images.duplicate_candidates import burst_pairs, candidates
from trainer.dataset.images.image_registration import (
    CandidatePair,
    ComparedImage,
    KeypointGuess,
    ThumbnailComparer,
    _refined,
    agreement,
)
from trainer.dataset.images.near_duplicates import ExactCopy, UnionFind, exact_copies, near_pairs
from trainer.dataset.images.perceptual_hash import HashTable, ImageHashes, image_hashes
from trainer.errors import DecodersError

KINDS: dict[str, Callable[[int], Image.Image]] = {"photograph": photograph, "icon": icon}
CASES = [("photograph", edit) for edit in PHOTO_EDITS] + [("icon", edit) for edit in EDITS]
ORIGINALS = 4


@lru_cache
def original(kind: str, seed: int) -> Image.Image:
    return KINDS[kind](seed)


def groups_of(
    tmp_path: Path, images: Sequence[Image.Image], consecutive: Sequence[tuple[int, int]] = ()
) -> set[frozenset[int]]:
    """The groups of more than one image."""
    thumbnails, hashes = [], {}
    for index, image in enumerate(images):
        thumbnail = image.copy()
        thumbnail.thumbnail((192, 192), Image.Resampling.BOX)
        thumbnails.append(tmp_path / f"{index}.jpg")
        thumbnail.save(thumbnails[-1], quality=92)
        hashes[index] = image_hashes(thumbnail.convert("RGB"))

    comparer = ThumbnailComparer(dict(enumerate(thumbnails)), consecutive)
    sets = UnionFind(len(images))
    for one, other, _difference in near_pairs(HashTable(hashes.items()), comparer.difference, consecutive):
        sets.join(one, other)
    members: dict[int, set[int]] = {}
    for index in range(len(images)):
        members.setdefault(sets.find(index), set()).add(index)
    return {frozenset(group) for group in members.values() if len(group) > 1}


def candidate_pairs(hashes: dict[int, ImageHashes]) -> list[tuple[int, int]]:
    return [(pair.one, pair.other) for pair in candidates(HashTable(hashes.items()))]


@pytest.mark.parametrize(("kind", "edit"), CASES)
def test_an_edited_copy_is_in_the_group_of_its_original(tmp_path: Path, kind: str, edit: str) -> None:
    originals = [original(kind, seed) for seed in range(ORIGINALS)]
    copies = [PHOTO_EDITS[edit](image) for image in originals]
    expected = {frozenset((index, index + ORIGINALS)) for index in range(ORIGINALS)}
    found = groups_of(tmp_path, originals + copies)
    assert found <= expected
    assert len(found) >= ORIGINALS - 1


@pytest.mark.parametrize("family", LOOK_ALIKES)
def test_images_of_one_template_are_not_grouped(tmp_path: Path, family: str) -> None:
    assert groups_of(tmp_path, [LOOK_ALIKES[family](index) for index in range(FAMILY_SIZE)]) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_different_images_are_not_grouped(tmp_path: Path, kind: str) -> None:
    assert groups_of(tmp_path, [original(kind, seed) for seed in range(25)]) == set()


def test_a_drawing_with_a_changed_detail_is_another_one(tmp_path: Path) -> None:
    other = icon(1).copy()
    ImageDraw.Draw(other).ellipse((110, 90, 140, 120), fill="white", outline="black", width=3)
    assert groups_of(tmp_path, [icon(1), other]) == set()


def test_images_in_other_colors_are_not_copies_but_a_gray_one_is(tmp_path: Path) -> None:
    blue = LOOK_ALIKES["icons of one template"](0)
    red = Image.merge("RGB", (blue.getchannel("B"), blue.getchannel("G"), blue.getchannel("R")))
    assert groups_of(tmp_path, [blue, red]) == set()
    assert groups_of(tmp_path, [blue, ImageOps.grayscale(blue)]) == {frozenset((0, 1))}


def test_frames_of_a_burst_may_differ_more_than_copies(tmp_path: Path) -> None:
    frames = [photograph(5)]
    for seed in range(1, 4):
        frames.append(burst_frame(burst_frame(frames[-1], seed), seed + 10))
    pairs = burst_pairs({index: f"IMG_{index + 40}.jpg" for index in range(4)}, {})
    assert groups_of(tmp_path, frames, pairs) == {frozenset(range(4))}


def test_names_that_follow_each_other_are_no_burst_by_themselves(tmp_path: Path) -> None:
    images = [photograph(6), photograph(7), icon(3)]
    assert groups_of(tmp_path, images, burst_pairs({index: f"{index}.png" for index in range(3)}, {})) == set()


def test_frames_of_a_burst_are_paired_by_their_number() -> None:
    names = ["a/IMG_0041.jpg", "a/IMG_0042.jpg", "b/IMG_0043.jpg", "a/IMG_0044.jpg", "a/IMG_0090.jpg", "a/x.jpg"]
    assert burst_pairs(dict(enumerate(names)), {}) == [(0, 1), (1, 3)]


def test_frames_of_a_burst_are_paired_by_the_time_at_which_they_were_taken() -> None:
    names = dict(enumerate(["z.jpg", "a.jpg", "m.jpg", "n.jpg", "b.jpg"]))
    assert burst_pairs(names, {0: 100.0, 1: 98.5, 2: 107.0, 4: 109.5}) == [(0, 1)]


def test_many_images_of_one_time_have_few_pairs() -> None:
    assert len(burst_pairs({}, dict.fromkeys(range(1000), 5.0))) < 2 * 1000


def test_numbered_images_of_unlike_layouts_are_not_compared() -> None:
    left, right = Image.new("L", (200, 200)), Image.new("L", (200, 200))
    left.paste(255, (0, 0, 100, 200))
    right.paste(255, (80, 80, 120, 120))
    hashes = {number: image_hashes(image.convert("RGB")) for number, image in enumerate((left, right, left))}
    compared = []

    def difference(pair: CandidatePair) -> None:
        compared.append((pair.one, pair.other))

    assert list(near_pairs(HashTable(hashes.items()), difference, [(0, 1), (1, 2)])) == []
    assert compared == [(0, 2)]


def test_numbered_images_without_common_keypoints_are_not_compared() -> None:
    """Nearly every dataset is numbered, and many photographs are light above and dark below."""
    hashes = {}
    for number in range(6):
        rng = np.random.default_rng(number)
        shapes = (cv2.resize(rng.normal(0, *of), (192, 144)) for of in ((18, (5, 6)), (25, (48, 64))))
        light = np.clip(np.linspace(220, 40, 144)[:, None] + sum(shapes), 0, 255).astype(np.uint8)
        hashes[number] = image_hashes(Image.fromarray(light).convert("RGB"))
    compared = []

    def difference(pair: CandidatePair) -> None:
        compared.append((pair.one, pair.other))

    assert list(near_pairs(HashTable(hashes.items()), difference, [(number, number + 1) for number in range(5)])) == []
    assert all(other - one > 1 for one, other in compared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blur_px", [3, 5])
def test_an_alignment_is_refined_whatever_the_contrast(kind: str, blur_px: int) -> None:
    image = KINDS[kind](1).resize((192, 160))
    # Maps pixels of the one, 128 px wide as compared, to those of the other.
    movement = np.array([[1.01, 0.01, 1.2], [-0.01, 0.99, -0.8], [0, 0, 1]])
    scale = np.diag([1.5, 1.5, 1])
    in_full_size = (scale @ movement @ np.linalg.inv(scale))[:2].ravel().tolist()
    moved = image.transform(image.size, Image.Transform.AFFINE, in_full_size, Image.Resampling.BICUBIC)
    paler = moved.point([60 + value // 2 for value in range(256)] * 3)

    found = _refined(ComparedImage(paler), ComparedImage(image), np.eye(3), blur_px, 0.79)

    assert found is not None
    corners = np.array([[20, 108, 20, 108], [20, 20, 87, 87], [1, 1, 1, 1]])
    assert np.abs((found - movement) @ corners).max() < 0.6


def test_unlike_images_are_not_refined() -> None:
    one, other = (photograph(seed).resize((192, 160)) for seed in (1, 2))
    mixed = Image.blend(one, other, 0.5)
    assert _refined(ComparedImage(one), ComparedImage(mixed), np.eye(3), 5, 0.95) is None
    assert _refined(ComparedImage(one), ComparedImage(mixed), np.eye(3), 5, 0.3) is not None


def parts_of_a_drawing() -> tuple[ComparedImage, ComparedImage, NDArray[np.float64]]:
    """Two parts that agree in what both show, which is too little; and how pixels of the one are moved to the other."""
    drawing = icon(1).resize((400, 400))
    one, other = (ComparedImage(drawing.crop(box)) for box in ((0, 0, 320, 320), (80, 80, 400, 400)))
    return one, other, np.array([[1.0, 0, -32], [0, 1, -32], [0, 0, 1]])


def test_an_alignment_that_fits_is_not_refined_to_show_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of one drawing, neither within the other, which is most of the pairs of a folder of crops."""
    one, other, movement = parts_of_a_drawing()
    monkeypatch.setattr(image_registration, "_refined", pytest.fail)
    monkeypatch.setattr(image_registration, "may_be_same", lambda shared, flat_share: True)

    assert agreement(one, other, KeypointGuess(movement, 12)) is None


def test_images_of_other_colors_are_not_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their grays are the same, so that no alignment changes what tells them apart."""
    monkeypatch.setattr(image_registration, "_refined", pytest.fail)
    image = photograph(1)
    luma, blue, red = image.convert("YCbCr").split()
    recolored = Image.merge("YCbCr", (luma, *(ImageOps.invert(each) for each in (blue, red)))).convert("RGB")
    assert agreement(ComparedImage(image), ComparedImage(recolored)) is None


@pytest.mark.parametrize(("count", "is_layout_tried"), [(11, True), (12, False)])
def test_no_layout_is_tried_after_many_keypoints_told_a_right_alignment(
    monkeypatch: pytest.MonkeyPatch, count: int, *, is_layout_tried: bool
) -> None:
    """A few keypoints may be of a pattern that repeats."""
    one, other, movement = parts_of_a_drawing()
    monkeypatch.setattr(image_registration, "may_be_same", lambda shared, flat_share: True)
    tried = []

    def layouts(one: ComparedImage, other: ComparedImage) -> list[None]:
        tried.append((one, other))
        return []

    monkeypatch.setattr(image_registration, "_layouts", layouts)
    assert agreement(one, other, KeypointGuess(movement, count)) is None
    assert bool(tried) == is_layout_tried


@pytest.mark.parametrize("turned", [False, True])
def test_common_keypoints_tell_how_an_image_is_moved_to_its_copy(*, turned: bool) -> None:
    image = photograph(1)
    width, height = image.size
    copy = image.crop((round(0.2 * width), round(0.1 * height), width, round(0.9 * height)))
    copy = copy.transpose(Image.Transpose.ROTATE_90) if turned else copy
    found = list(candidates(HashTable(enumerate(map(image_hashes, (image, copy))))))
    assert [(pair.one, pair.other) for pair in found] == [(0, 1)]
    assert found[0].guess is not None
    scale, copy_scale = 128 / max(image.size), 128 / max(copy.size)
    ends = [(0, copy.height), (copy.width, 0)] if turned else [(0, 0), copy.size]
    for (across, down), end in zip([(0.2, 0.1), (1, 0.9)], ends, strict=True):
        start = np.array([across * width * scale, down * height * scale, 1])
        assert np.abs((found[0].guess.transform @ start)[:2] - np.multiply(end, copy_scale)).max() < 3


@pytest.mark.parametrize("count", [7, 24])
def test_a_few_keypoints_tell_how_an_image_is_turned(count: int) -> None:
    rng = np.random.default_rng(1)
    keypoints = rng.integers(0, 256, (count, 32), dtype=np.uint8).tobytes()
    places = rng.integers(0, 256, (count, 2), dtype=np.uint8)
    # Half px.
    turned = np.stack([255 - places[:, 1], places[:, 0]], axis=1)
    hashes = []
    for at in (places, turned):
        layout = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        hashes.append(
            ImageHashes(blurred=layout, content=layout, keypoints=keypoints, places=at.tobytes(), is_blank=False)
        )
    (found,) = candidates(HashTable(enumerate(hashes)))
    assert found.guess is not None
    assert found.guess.agreeing == count
    turn = np.array([[0, -1, 127.5], [1, 0, 0], [0, 0, 1]])
    assert np.abs(found.guess.transform - turn).max() < 1e-3


def test_blank_images_are_never_candidates() -> None:
    faint = Image.linear_gradient("L").point([100 + value // 32 for value in range(256)]).convert("RGB")
    assert candidate_pairs({index: image_hashes(faint.resize((100 + index, 100))) for index in range(5)}) == []


def test_a_large_family_of_look_alikes_has_few_candidates_per_image() -> None:
    one = image_hashes(LOOK_ALIKES["icons of one template"](0))
    rng = np.random.default_rng(0)
    hashes = {}
    for index in range(300):
        noise = rng.integers(-2, 3, 256)
        layout = np.clip(np.frombuffer(one.blurred, np.uint8).astype(int) + noise, 0, 255).astype(np.uint8).tobytes()
        hashes[index] = type(one)(
            blurred=layout, content=layout, keypoints=one.keypoints, places=one.places, is_blank=False
        )
    assert 300 <= len(list(candidates(HashTable(hashes.items())))) <= 300 * 12


def test_every_image_of_one_is_compared_once(tmp_path: Path) -> None:
    hashes = {index: image_hashes(photograph(1)) for index in range(8)}
    compared = []

    def difference(pair: CandidatePair) -> float:
        compared.append((pair.one, pair.other))
        return 0.0

    assert len(list(near_pairs(HashTable(hashes.items()), difference))) == len(compared) == 7


def all_the_same(pair: CandidatePair) -> float:
    """Module-level, so that a process can be given it."""
    return (pair.one + pair.other) / 100


def test_pairs_do_not_depend_on_the_number_of_processes() -> None:
    hashes = {index: image_hashes(photograph(1)) for index in range(30)}
    alone = list(near_pairs(HashTable(hashes.items()), all_the_same))
    assert len(alone) >= len(hashes) - 1
    assert list(near_pairs(HashTable(hashes.items()), all_the_same, processes=2)) == alone


def die(pair: CandidatePair) -> float:
    os._exit(9)


def test_a_comparison_process_that_dies_is_told_in_a_sentence() -> None:
    hashes = {index: image_hashes(photograph(1)) for index in range(30)}
    with pytest.raises(DecodersError, match="compares images ended"):
        list(near_pairs(HashTable(hashes.items()), die, processes=2))


@pytest.mark.parametrize("most_shared", [4_000_000, 3_000])
def test_candidates_do_not_depend_on_how_many_keypoints_are_looked_at_at_a_time(
    monkeypatch: pytest.MonkeyPatch, most_shared: int
) -> None:
    of_template = LOOK_ALIKES["icons of one template"]
    hashes = HashTable((index, image_hashes(of_template(index))) for index in range(12))
    monkeypatch.setattr(duplicate_candidates, "_MOST_SHARED", most_shared)
    at_once = list(candidates(hashes))
    monkeypatch.setattr(duplicate_candidates, "_BLOCK", 40)

    assert len(at_once) > 5
    assert repr(list(candidates(hashes))) == repr(at_once)


def test_memory_of_the_candidates_does_not_grow_with_the_square_of_a_family() -> None:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 256, (64, 32), dtype=np.uint8)
    hashes = {}
    for number in range(1200):
        changed = np.packbits(rng.random((64, 32, 8)) < 0.05, axis=2).reshape(64, 32)
        layout = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        keypoints, places = (shared ^ changed).tobytes(), rng.integers(0, 256, (64, 2), dtype=np.uint8).tobytes()
        hashes[number] = ImageHashes(blurred=layout, content=layout, keypoints=keypoints, places=places, is_blank=False)
    tracemalloc.start()
    try:
        # All are found before the first one is given.
        next(candidates(HashTable(hashes.items())))
        # 45 MiB; copied instead of sorted in place it would be 79, and 156 with all pairs kept.
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_of_exact_copies_the_captioned_then_the_larger_then_the_one_not_named_a_copy_is_kept() -> None:
    def image(source: str, *, captioned: bool = False, area: int = 100, pixels: str = "a") -> ExactCopy:
        return ExactCopy(pixels_sha256=pixels, is_captioned=captioned, area=area, source=source)

    assert exact_copies([image("1"), image("2", captioned=True), image("3", area=900), image("4", pixels="b")]) == {
        0: 1,
        2: 1,
    }
    assert exact_copies([image("1"), image("2", area=900)]) == {0: 1}
    for name in ("cat copy.png", "cat (1).png", "cat - Kopie.png", "Copy of cat.png", "cat - Copie (2).png"):
        assert exact_copies([image(name), image("cat.png")]) == {0: 1}, name
    assert exact_copies([image("copyright.png"), image("cat.png")]) == {1: 0}


def test_indirectly_joined_items_are_in_one_set() -> None:
    sets = UnionFind(6)
    sets.join(5, 3)
    sets.join(1, 2)
    sets.join(3, 1)
    assert [sets.find(item) for item in range(6)] == [0, 1, 1, 1, 4, 1]


def test_images_that_share_keypoints_in_other_places_are_not_compared() -> None:
    """Letters and corners are in many images; no movement brings all of them to where the other image has them."""
    rng = np.random.default_rng(1)
    keypoints = rng.integers(0, 256, (24, 32), dtype=np.uint8).tobytes()
    places = rng.integers(0, 256, (24, 2), dtype=np.uint8)
    layouts = [rng.integers(0, 256, 256, dtype=np.uint8).tobytes() for _ in range(3)]
    turned = np.stack([255 - places[:, 1], places[:, 0]], axis=1)
    shuffled = rng.permutation(places)
    hashes = {
        number: ImageHashes(blurred=layout, content=layout, keypoints=keypoints, places=at.tobytes(), is_blank=False)
        for number, (layout, at) in enumerate(zip(layouts, (places, turned, shuffled), strict=True))
    }
    assert candidate_pairs(hashes) == [(0, 1)]


def test_copies_are_compared_although_the_last_image_has_no_keypoint() -> None:
    rng = np.random.default_rng(1)

    def hashed(keypoints: bytes, places: bytes) -> ImageHashes:
        layout = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        return ImageHashes(blurred=layout, content=layout, keypoints=keypoints, places=places, is_blank=False)

    of_copy = rng.bytes(24 * 32), rng.bytes(24 * 2)
    images = [hashed(*of_copy), hashed(rng.bytes(24 * 32), rng.bytes(24 * 2)), hashed(*of_copy), hashed(b"", b"")]
    assert candidate_pairs(dict(enumerate(images))) == [(0, 2)]


def test_images_that_have_one_motif_in_common_among_much_else_are_not_compared() -> None:
    """Eight keypoints agree in both; of a copy, most of those that both show would."""
    rng = np.random.default_rng(2)
    motif, motif_places = rng.integers(0, 256, (8, 32), dtype=np.uint8), rng.integers(80, 170, (8, 2), dtype=np.uint8)

    def hashed(alike: NDArray[np.uint8], others: int) -> ImageHashes:
        """The motif, what is alike but lies elsewhere, and more."""
        layout = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        count = len(alike) + others
        keypoints = np.concatenate([motif, alike, rng.integers(0, 256, (others, 32), dtype=np.uint8)])
        # Corners, between which everything lies.
        places = np.concatenate([motif_places, rng.integers(0, 256, (count, 2), dtype=np.uint8)])
        places[-2:] = (0, 0), (255, 255)
        return ImageHashes(
            blurred=layout, content=layout, keypoints=keypoints.tobytes(), places=places.tobytes(), is_blank=False
        )

    def are_compared(elsewhere: int, others: int) -> bool:
        alike = rng.integers(0, 256, (elsewhere, 32), dtype=np.uint8)
        return candidate_pairs(dict(enumerate([hashed(alike, others), hashed(alike, others)]))) == [(0, 1)]

    assert are_compared(elsewhere=0, others=48)
    assert are_compared(elsewhere=12, others=8)
    assert not are_compared(elsewhere=12, others=40)


def test_hashes_are_compared_from_the_disk() -> None:
    one = image_hashes(photograph(1))
    tracemalloc.start()
    try:
        HashTable((number, one) for number in range(2_000))
        # Numbers and positions; the hashes have 2,700 bytes an image.
        assert tracemalloc.get_traced_memory()[1] < 2_000 * 100
    finally:
        tracemalloc.stop()


def test_images_of_similar_layout_are_compared_if_their_keypoints_agree_or_the_layouts_are_nearly_equal() -> None:
    rng = np.random.default_rng(1)
    keypoints = rng.integers(0, 256, (8, 32), dtype=np.uint8).tobytes()
    places, elsewhere = (rng.permutation(256).astype(np.uint8)[:16] for _ in range(2))
    coarse, noise = (cv2.resize(rng.uniform(40, 200, (4, 4)), (16, 16)), rng.normal(0, 1, (16, 16)))

    def hashed(strength: float, at: NDArray[np.uint8]) -> ImageHashes:
        layout = np.clip(coarse + strength * noise, 0, 255).astype(np.uint8).tobytes()
        return ImageHashes(blurred=layout, content=layout, keypoints=keypoints, places=at.tobytes(), is_blank=False)

    def is_compared(strength: float, at: NDArray[np.uint8]) -> bool:
        return bool(candidate_pairs({0: hashed(0, places), 1: hashed(strength, at)}))

    # Of the noise, 30 levels leave a correlation of 0.86, and 10 leave 0.98.
    assert is_compared(30, places)
    assert not is_compared(30, elsewhere)
    assert is_compared(10, elsewhere)


def test_images_without_any_keypoint_are_compared_by_their_layout() -> None:
    shades = [Image.linear_gradient("L").rotate(90 * turns).convert("RGB") for turns in range(2)]
    assert candidate_pairs(dict(enumerate(map(image_hashes, shades)))) == [(0, 1)]
