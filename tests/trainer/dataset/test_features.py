"""Pictures of one kind lie near each other, those of another far off."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.trainer.dataset import defects
from tests.trainer.dataset.making import encoded
from trainer.dataset.images.features import MANNER, feature_of, stack


def thumbnail(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((192, 192), Image.Resampling.LANCZOS)
    return copy


def distance(one: Image.Image, other: Image.Image) -> float:
    rows = stack([feature_of(thumbnail(one)), feature_of(thumbnail(other))])
    return float(np.linalg.norm(rows[0] - rows[1]))


def test_a_feature_is_small_and_always_the_same() -> None:
    feature = feature_of(thumbnail(defects.scene(0)))
    assert len(feature) <= 512
    assert feature == feature_of(thumbnail(defects.scene(0)))


def test_rows_come_back_in_order_and_finite() -> None:
    features = [feature_of(thumbnail(defects.drawing(seed))) for seed in range(3)]
    rows = stack(features)
    assert rows.shape == (3, len(features[0]) // 2)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert (stack(features[::-1]) == rows[::-1]).all()
    assert stack([]).shape == (0, rows.shape[1])


def test_a_smaller_and_re_encoded_copy_is_nearly_the_same() -> None:
    picture = thumbnail(defects.scene(0))
    copy = Image.open(io.BytesIO(encoded(picture.resize((150, 120)), "JPEG", quality=85)))
    assert distance(picture, copy) < 0.3 * distance(picture, defects.scene(1))


def test_pictures_of_one_kind_are_nearer_than_those_of_another() -> None:
    drawings, scenes = [defects.drawing(seed) for seed in range(6)], [defects.scene(seed) for seed in range(6)]
    among = [distance(drawings[0], other) for other in drawings[1:]]
    across = [distance(drawings[0], other) for other in scenes]
    assert max(among) < min(across)


def test_manner_tells_a_drawing_from_a_photograph_of_the_same_colours() -> None:
    flat = defects.drawing(2, 192)
    grain = np.random.default_rng(0).normal(0, 12, (192, 192, 3))
    grainy = Image.fromarray(np.clip(np.asarray(flat) + grain, 0, 255).astype(np.uint8))
    one, other, twin = stack([feature_of(flat), feature_of(grainy), feature_of(defects.drawing(3, 192))])
    assert np.linalg.norm((one - other)[MANNER]) > 2 * np.linalg.norm((one - twin)[MANNER])


@pytest.mark.parametrize("size", [(1, 1), (192, 1), (1, 192), (7, 5)])
def test_thumbnails_of_any_size_have_a_feature(size: tuple[int, int]) -> None:
    assert np.isfinite(stack([feature_of(Image.new("RGB", size, (9, 200, 30)))])).all()
