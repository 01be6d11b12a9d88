"""Images of one kind have similar features; outliers are found among them, but not in an even or mixed set."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from PIL import Image

from tests.trainer.dataset import defective_images
from tests.trainer.dataset.image_files import encoded
from trainer.dataset.images.image_features import (
    STYLE,
    _colors,
    _directions,
    diverse,
    find_outliers,
    image_feature,
    isolated,
    stack_features,
)
from trainer.protocol.report import FindingKind


def thumbnail(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((192, 192), Image.Resampling.LANCZOS)
    return copy


def distance(one: Image.Image, other: Image.Image) -> float:
    rows = stack_features([image_feature(thumbnail(one)), image_feature(thumbnail(other))])
    return float(np.linalg.norm(rows[0] - rows[1]))


def test_a_feature_is_small_and_deterministic() -> None:
    feature = image_feature(thumbnail(defective_images.scene(0)))
    assert len(feature) <= 512
    assert feature == image_feature(thumbnail(defective_images.scene(0)))


def test_rows_are_in_order_and_finite() -> None:
    features = [image_feature(thumbnail(defective_images.drawing(seed))) for seed in range(3)]
    rows = stack_features(features)
    assert rows.shape == (3, len(features[0]) // 2)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert (stack_features(features[::-1]) == rows[::-1]).all()
    assert stack_features([]).shape == (0, rows.shape[1])


def test_a_smaller_and_re_encoded_copy_has_nearly_the_same_feature() -> None:
    image = thumbnail(defective_images.scene(0))
    copy = Image.open(io.BytesIO(encoded(image.resize((150, 120)), "JPEG", quality=85)))
    assert distance(image, copy) < 0.3 * distance(image, defective_images.scene(1))


def test_angles_and_colors_are_counted_as_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    dx, dy = rng.integers(-1020, 1021, (2, 20_000)).astype(np.float32)
    by_angle = np.rint(np.arctan2(dy, dx) * np.float32(8 / np.pi)).astype(np.int64) & 7
    assert (_directions(dx, dy) == by_angle).all()

    lab = rng.integers(0, 256, (5_000, 3))
    palette, _edges = np.histogramdd(lab, bins=16, range=[(0, 256)] * 3)
    light, red, yellow = lab[:, 0] // 64, *(np.clip((lab[:, axis] - 64) // 32, 0, 3) for axis in (1, 2))
    expected = np.bincount(16 * light + 4 * red + yellow, minlength=64) / len(lab)
    assert _colors(palette.astype(np.float32)) == pytest.approx(0.5 * np.sqrt(expected), abs=1e-6)


def test_images_of_one_kind_are_nearer_than_those_of_another() -> None:
    drawings, scenes = (
        [defective_images.drawing(seed) for seed in range(6)],
        [defective_images.scene(seed) for seed in range(6)],
    )
    among = [distance(drawings[0], other) for other in drawings[1:]]
    across = [distance(drawings[0], other) for other in scenes]
    assert max(among) < min(across)


def test_style_distinguishes_a_drawing_and_a_photograph_of_the_same_colors() -> None:
    flat = defective_images.drawing(2, 192)
    grain = np.random.default_rng(0).normal(0, 12, (192, 192, 3))
    grainy = Image.fromarray(np.clip(np.asarray(flat) + grain, 0, 255).astype(np.uint8))
    one, other, twin = stack_features(
        [image_feature(flat), image_feature(grainy), image_feature(defective_images.drawing(3, 192))]
    )
    assert np.linalg.norm((one - other)[STYLE]) > 2 * np.linalg.norm((one - twin)[STYLE])


@pytest.mark.parametrize("size", [(1, 1), (192, 1), (1, 192), (7, 5)])
def test_thumbnails_of_any_size_have_a_feature(size: tuple[int, int]) -> None:
    assert np.isfinite(stack_features([image_feature(Image.new("RGB", size, (9, 200, 30)))])).all()


@cache
def drawn(seed: int) -> bytes:
    return image_feature(defective_images.drawing(seed))


@cache
def photographed(seed: int) -> bytes:
    return image_feature(thumbnail(defective_images.scene(seed)))


def alike(count: int = 40) -> dict[int, bytes]:
    return {number: drawn(number) for number in range(count)}


def test_three_outliers_among_forty_similar_images_are_found() -> None:
    outliers = {100 + seed: photographed(seed) for seed in range(3)}
    found = find_outliers({**alike(), **outliers}, {})
    assert set(found) == set(outliers)


def test_the_finding_has_the_distance() -> None:
    (finding,) = find_outliers({**alike(), 100: photographed(0)}, {}).values()
    assert finding.kind is FindingKind.OUTLIER
    assert finding.action == "kept"
    assert finding.measure is not None
    assert finding.threshold is not None
    assert finding.measure > finding.threshold


@pytest.mark.parametrize("start", [0, 200, 400])
def test_an_even_set_has_no_outliers(start: int) -> None:
    assert find_outliers({number: drawn(start + number) for number in range(60)}, {}) == {}
    assert find_outliers({number: photographed(start + number) for number in range(30)}, {}) == {}


def test_two_equally_large_kinds_are_not_outliers_of_each_other() -> None:
    mixed = {**alike(25), **{100 + seed: photographed(seed) for seed in range(25)}}
    assert find_outliers(mixed, {}) == {}


def test_a_sparse_kind_is_not_an_outlier_beside_a_dense_one() -> None:
    rng = np.random.default_rng(0)
    size = stack_features([drawn(0)]).shape[1]
    rows = np.concatenate([rng.normal(0, 0.01, (70, size)), rng.normal(1, 0.3, (30, size))])
    assert find_outliers({number: row.astype("<f2").tobytes() for number, row in enumerate(rows)}, {}) == {}


def test_outliers_need_a_dozen_different_images() -> None:
    few = {**alike(10), 100: photographed(0)}
    assert find_outliers(few, {}) == {}
    assert set(find_outliers({**few, 10: drawn(10)}, {})) == {100}
    copies = {**few, **{200 + number: drawn(0) for number in range(20)}}
    assert find_outliers(copies, {number: 0 for number in copies if number >= 200 or number == 0}) == {}


def test_copies_of_an_outlier_do_not_hide_it() -> None:
    copies = {100 + number: photographed(0) for number in range(8)}
    images = {**alike(), **copies}
    assert find_outliers(images, {}) == {}
    assert set(find_outliers(images, dict.fromkeys(copies, 100))) == set(copies)


def test_at_most_a_twentieth_is_reported() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.05, (91, stack_features([drawn(0)]).shape[1]))
    # Eleven outliers, each in another column, increasingly far away.
    for number, column in enumerate(range(STYLE.start, STYLE.stop)):
        rows[80 + number, column] += 2 + 0.2 * number
    found = find_outliers({number: row.astype("<f2").tobytes() for number, row in enumerate(rows)}, {})
    assert set(found) == {86, 87, 88, 89, 90}


def test_the_order_of_the_images_does_not_matter() -> None:
    images = {**alike(), 100: photographed(0), 101: photographed(1)}
    backwards = dict(reversed(images.items()))
    group = {100: 100, 101: 100}
    assert find_outliers(images, group) == find_outliers(backwards, group) != {}
    assert diverse(images) == diverse(backwards)
    assert isolated(images, group) == isolated(backwards, group)


def test_a_few_diverse_images_cover_every_kind() -> None:
    images = {
        **alike(30),
        100: photographed(0),
        200: image_feature(Image.new("RGB", (64, 64), "white")),
        300: image_feature(thumbnail(defective_images.page())),
    }
    chosen = diverse(images, 5)
    assert len(set(chosen)) == 5
    assert chosen[0] < 30
    assert {100, 200, 300} <= set(chosen)


def test_diverse_images_are_all_different() -> None:
    assert len(diverse({number: drawn(number % 2) for number in range(10)})) == 2
    assert diverse({}) == ()


def test_the_most_isolated_images_come_first_and_one_of_each_group() -> None:
    page = image_feature(thumbnail(defective_images.page()))
    images = {**alike(20), 100: photographed(0), 101: photographed(0), 102: page}
    found = isolated(images, {100: 100, 101: 100}, 3)
    assert set(found[:2]) == {100, 102}
    assert found[2] < 20
    # Without the group, the copy is its nearest neighbor.
    assert set(isolated(images, {}, 3)).isdisjoint({100, 101})
    assert isolated({1: drawn(1), 2: drawn(1)}, {1: 1, 2: 1}) == ()
