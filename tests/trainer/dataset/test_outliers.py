"""Strangers among alike pictures are named; in an even set, or a mixed one, nobody is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image

from tests.trainer.dataset import defects
from trainer.dataset.images.features import MANNER, feature_of, stack
from trainer.dataset.images.outliers import diverse, find_outliers, isolated
from trainer.protocol.report import FindingKind


@cache
def drawn(seed: int) -> bytes:
    return feature_of(defects.drawing(seed))


@cache
def photographed(seed: int) -> bytes:
    return feature_of(_small(defects.scene(seed)))


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((192, 192), Image.Resampling.LANCZOS)
    return image


def alike(count: int = 40) -> dict[int, bytes]:
    return {number: drawn(number) for number in range(count)}


def test_three_strangers_among_forty_alike_are_found_and_nobody_else() -> None:
    strangers = {100 + seed: photographed(seed) for seed in range(3)}
    found = find_outliers({**alike(), **strangers}, {})
    assert set(found) == set(strangers)


def test_the_warning_says_how_far_off_it_is() -> None:
    (finding,) = find_outliers({**alike(), 100: photographed(0)}, {}).values()
    assert finding.kind is FindingKind.OUTLIER
    assert finding.action == "kept"
    assert finding.measure is not None
    assert finding.threshold is not None
    assert finding.measure > finding.threshold
    assert finding.message == f"unlike the rest: its nearest neighbours are {finding.measure:.1f} times as far as usual"


@pytest.mark.parametrize("start", [0, 200, 400])
def test_an_even_set_has_no_outliers(start: int) -> None:
    assert find_outliers({number: drawn(start + number) for number in range(60)}, {}) == {}
    assert find_outliers({number: photographed(start + number) for number in range(30)}, {}) == {}


def test_two_kinds_half_and_half_are_no_outliers_of_each_other() -> None:
    mixed = {**alike(25), **{100 + seed: photographed(seed) for seed in range(25)}}
    assert find_outliers(mixed, {}) == {}


def test_pictures_of_a_loose_kind_are_no_outliers_beside_a_tight_one() -> None:
    rng = np.random.default_rng(0)
    size = stack([drawn(0)]).shape[1]
    rows = np.concatenate([rng.normal(0, 0.01, (70, size)), rng.normal(1, 0.3, (30, size))])
    assert find_outliers({number: row.astype("<f2").tobytes() for number, row in enumerate(rows)}, {}) == {}


def test_a_dozen_different_pictures_are_needed() -> None:
    few = {**alike(10), 100: photographed(0)}
    assert find_outliers(few, {}) == {}
    assert set(find_outliers({**few, 10: drawn(10)}, {})) == {100}
    copies = {**few, **{200 + number: drawn(0) for number in range(20)}}
    assert find_outliers(copies, {number: 0 for number in copies if number >= 200 or number == 0}) == {}


def test_copies_of_a_stranger_do_not_keep_it_company() -> None:
    copies = {100 + number: photographed(0) for number in range(8)}
    pictures = {**alike(), **copies}
    assert find_outliers(pictures, {}) == {}
    assert set(find_outliers(pictures, dict.fromkeys(copies, 100))) == set(copies)


def test_no_more_than_a_twentieth_is_spoken_of() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.05, (91, stack([drawn(0)]).shape[1]))
    # Eleven strangers, each in another way, the later the stranger.
    for number, column in enumerate(range(MANNER.start, MANNER.stop)):
        rows[80 + number, column] += 2 + 0.2 * number
    found = find_outliers({number: row.astype("<f2").tobytes() for number, row in enumerate(rows)}, {})
    assert set(found) == {86, 87, 88, 89, 90}


def test_the_order_of_the_pictures_does_not_matter() -> None:
    pictures = {**alike(), 100: photographed(0), 101: photographed(1)}
    backwards = dict(reversed(pictures.items()))
    group = {100: 100, 101: 100}
    assert find_outliers(pictures, group) == find_outliers(backwards, group) != {}
    assert diverse(pictures) == diverse(backwards)
    assert isolated(pictures, group) == isolated(backwards, group)


def test_few_diverse_pictures_cover_every_kind() -> None:
    pictures = {
        **alike(30),
        100: photographed(0),
        200: feature_of(Image.new("RGB", (64, 64), "white")),
        300: feature_of(_small(defects.page())),
    }
    chosen = diverse(pictures, 5)
    assert len(set(chosen)) == 5
    assert chosen[0] < 30
    assert {100, 200, 300} <= set(chosen)


def test_diverse_pictures_are_never_the_same_twice() -> None:
    assert len(diverse({number: drawn(number % 2) for number in range(10)})) == 2
    assert diverse({}) == ()


def test_the_loneliest_come_first_and_one_of_each_group() -> None:
    page = feature_of(_small(defects.page()))
    pictures = {**alike(20), 100: photographed(0), 101: photographed(0), 102: page}
    lonely = isolated(pictures, {100: 100, 101: 100}, 3)
    assert set(lonely[:2]) == {100, 102}
    assert lonely[2] < 20
    # Without the group, the copy is its company.
    assert set(isolated(pictures, {}, 3)).isdisjoint({100, 101})
    assert isolated({1: drawn(1), 2: drawn(1)}, {1: 1, 2: 1}) == ()
