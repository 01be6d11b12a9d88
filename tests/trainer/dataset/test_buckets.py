"""Buckets crop little, keep to the area, and fill a batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.dataset.image_files import noise
from trainer.dataset.buckets import MAX_MERGE_CROP, assign_buckets, fit_to_bucket
from trainer.protocol.bucket_shapes import (
    bucket_for,
    bucket_shapes,
    cropped_share,
    default_step,
    fit_images,
    nearest_bucket,
)

SIZES = st.tuples(st.integers(64, 4000), st.integers(64, 4000))
RESOLUTIONS = st.sampled_from([64, 128, 256, 512, 768, 1024])


@pytest.mark.parametrize(
    ("size", "resolution", "step", "bucket"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((1600, 1200), 512, 64, (576, 448)),
        ((1080, 1920), 512, 64, (384, 640)),
        ((200, 200), 64, 8, (64, 64)),
        ((96, 128), 64, 8, (56, 72)),
        ((4000, 1000), 512, 64, (1024, 256)),
        ((9000, 100), 512, 64, (1024, 256)),
    ],
)
def test_known_sizes_get_the_expected_bucket(
    size: tuple[int, int], resolution: int, step: int, bucket: tuple[int, int]
) -> None:
    assert bucket_for(*size, resolution, step) == bucket


@given(SIZES, RESOLUTIONS)
def test_a_bucket_has_whole_steps_and_at_most_the_area_of_the_square(size: tuple[int, int], resolution: int) -> None:
    step = default_step(resolution, 50)
    width, height = bucket_for(*size, resolution, step)
    assert width % step == height % step == 0
    assert width * height <= resolution**2
    assert max(width, height) <= 2 * resolution


@given(SIZES, RESOLUTIONS)
def test_no_other_bucket_crops_less(size: tuple[int, int], resolution: int) -> None:
    step = default_step(resolution, 50)
    least = min(cropped_share(size, shape) for shape in bucket_shapes(resolution, step))
    assert cropped_share(size, bucket_for(*size, resolution, step)) <= least + 1e-9


@given(SIZES)
def test_a_rotated_image_gets_the_rotated_bucket(size: tuple[int, int]) -> None:
    assert bucket_for(*size, 512, 64) == bucket_for(size[1], size[0], 512, 64)[::-1]


@pytest.mark.parametrize(
    ("resolution", "images", "step"),
    [(64, 9, 8), (128, 9, 16), (256, 999, 32), (512, 9, 64), (512, 100, 32), (1024, 9, 64)],
)
def test_the_step_is_coarse_for_few_images(resolution: int, images: int, step: int) -> None:
    assert default_step(resolution, images) == step


def test_a_step_beyond_the_resolution_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        bucket_for(100, 100, 32, 64)


@given(st.lists(SIZES, max_size=40), st.integers(1, 8))
def test_small_buckets_are_merged_unless_that_crops_too_much(sizes: list[tuple[int, int]], batch: int) -> None:
    buckets = assign_buckets(sizes, 512, 64, batch)
    assert len(buckets) == len(sizes)
    for size, bucket in zip(sizes, buckets, strict=True):
        own = bucket_for(*size, 512, 64)
        assert bucket == own or cropped_share(size, bucket) <= MAX_MERGE_CROP


def test_a_bucket_of_one_joins_its_neighbor_and_a_panorama_stays_alone() -> None:
    sizes = [(512, 512)] * 8 + [(620, 512), (2048, 512)]
    assert Counter(assign_buckets(sizes, 512, 64, batch=4)) == {(512, 512): 9, (1024, 256): 1}
    assert len(set(assign_buckets(sizes, 512, 64, batch=1))) == 3


def test_the_cropped_share_is_the_area_cut_off() -> None:
    assert cropped_share((200, 100), (64, 64)) == pytest.approx(0.5)
    assert cropped_share((100, 200), (64, 64)) == pytest.approx(0.5)
    assert cropped_share((300, 200), (96, 64)) == 0


@given(st.tuples(st.integers(64, 300), st.integers(64, 300)), st.sampled_from(bucket_shapes(128, 16)))
def test_the_result_has_the_size_of_the_bucket(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert fit_to_bucket(Image.new("RGB", size), bucket).size == bucket


def test_the_middle_of_the_image_is_kept() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    middle = np.asarray(fit_to_bucket(image, (64, 64)))
    assert (middle[:, 4:-4] == (0, 0, 255)).all()
    same = noise(1, 64, 64)
    assert fit_to_bucket(same, (64, 64)) is not same
    assert fit_to_bucket(same, (64, 64)).tobytes() == same.tobytes()


def test_an_image_is_enlarged_if_either_side_grows() -> None:
    fit = fit_images([(500, 600), (512, 600), (100, 100)], 512)
    assert [each.bucket for each in fit.images] == [(448, 576), (448, 576), (512, 512)]
    assert (fit.enlarged, fit.most_enlarged) == (1, 5.12)
    assert fit_images([(500, 500)], 512).enlarged == 1


@given(SIZES, st.sampled_from([(64, 8), (512, 64), (768, 32), (1024, 64)]))
def test_the_bucket_is_the_best_of_all(size: tuple[int, int], training: tuple[int, int]) -> None:
    assert bucket_for(*size, *training) == nearest_bucket(size, bucket_shapes(*training))


def test_a_resolution_is_told_by_bucket_and_on_average() -> None:
    fit = fit_images([(640, 640), (512, 640), (1024, 512), (600, 640)], 512)
    assert [(bucket, images) for bucket, (images, _cropped) in fit.buckets.items()] == [
        ((512, 512), 2), ((448, 576), 1), ((704, 320), 1),
    ]  # fmt: skip
    assert [cropped for _images, cropped in fit.buckets.values()] == pytest.approx([0.03125, 1 / 36, 1 / 11])
    assert fit.mean_cropped == pytest.approx((0.0625 + 1 / 36 + 1 / 11) / 4)
    assert fit_images([], 512).mean_cropped == fit_images([], 512).most_enlarged == 0
