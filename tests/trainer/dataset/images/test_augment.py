"""Variants depend only on seed, image and number, show nothing from outside the image, and keep captions true."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imgaug.random as imgaug_random
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.trainer.dataset.image_files import noise
from trainer.dataset.buckets import fit_to_bucket
from trainer.dataset.images.augment import make_variants, may_flip
from trainer.dataset.images.decoding import open_for_bucket
from trainer.errors import DatasetError
from trainer.protocol.augmentation import RANGES, Augmentation, AugmentationPreset, Augmenter, AugmenterName, Flip
from trainer.protocol.bucket_shapes import Size

PRESETS = (AugmentationPreset.LIGHT, AugmentationPreset.PHOTO, AugmentationPreset.ART)
GEOMETRY = [
    AugmenterName.ROTATE,
    AugmenterName.SCALE,
    AugmenterName.CROP,
    AugmenterName.TRANSLATE,
    AugmenterName.SHEAR,
    AugmenterName.PERSPECTIVE,
]


def custom(*augmenters: Augmenter, **fields: object) -> Augmentation:
    return Augmentation.model_validate({"preset": "custom", "custom": augmenters, **fields})


def just(name: AugmenterName, value: float | None = None, **fields: object) -> Augmentation:
    return custom(Augmenter(name=name, low=value, high=value), **fields)


def variants(
    image: Image.Image,
    augmentation: Augmentation,
    *,
    bucket: Size = (64, 64),
    caption: str = "a cat",
    content: str = "a",
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    made = make_variants(image, bucket, augmentation, caption=caption, pixels_sha256=content, seed=seed)
    return [np.asarray(variant, dtype=np.float64) for variant in made]


def of_bucket(image: Image.Image, bucket: Size = (64, 64)) -> NDArray[np.float64]:
    return np.asarray(fit_to_bucket(image, bucket), dtype=np.float64)


def differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("bucket", [(64, 64), (96, 48), (48, 96)])
def test_variants_have_the_buckets_size_and_are_all_different(preset: AugmentationPreset, bucket: Size) -> None:
    made = variants(noise(1), Augmentation(preset=preset, variants=6), bucket=bucket)

    assert [variant.shape for variant in made] == [(bucket[1], bucket[0], 3)] * 6
    together = [of_bucket(noise(1), bucket), *made]
    assert min(differ(a, b) for i, a in enumerate(together) for b in together[:i]) > 0.05


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_seed_image_and_number_make_the_same_variant(preset: AugmentationPreset) -> None:
    few, many = (Augmentation(preset=preset, variants=count) for count in (3, 8))

    made = variants(noise(1), many)
    variants(noise(2), many, content="b")
    again = variants(noise(1), few)

    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=False))
    assert not all(np.array_equal(a, b) for a, b in zip(made, variants(noise(1), many, seed=1), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(made, variants(noise(1), many, content="b"), strict=True))


@pytest.mark.slow
def test_another_process_makes_the_same_variants() -> None:
    """Variants do not depend on hash seeds, addresses or earlier random draws."""
    program = f"from {__name__} import digest_of_variants\nprint(digest_of_variants())"
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=Path(__file__).parents[4], text=True)

    assert printed.strip() == digest_of_variants()


def digest_of_variants() -> str:
    made = variants(noise(1), Augmentation(preset=AugmentationPreset.PHOTO), content="a")
    return hashlib.sha256(b"".join(np.asarray(variant).tobytes() for variant in made)).hexdigest()


def test_threads_do_not_change_the_variants() -> None:
    every = custom(*(Augmenter(name=n, low=r[0] / 2 + r[1] / 2, high=r[1], probability=0.5) for n, r in RANGES.items()))
    images = [noise(seed) for seed in range(6)]

    def made(number: int) -> list[NDArray[np.float64]]:
        return variants(images[number], every, content=str(number))

    alone = [made(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(made, list(range(6)) * 3))

    for number, result in enumerate(together):
        assert all(np.array_equal(a, b) for a, b in zip(alone[number % 6], result, strict=True))


def test_imgaugs_global_generator_is_neither_used_nor_changed() -> None:
    every = custom(*(Augmenter(name=name, low=low, high=high) for name, (low, high, _) in RANGES.items()))
    before = str(imgaug_random.get_global_rng().state)
    first = variants(noise(1), every)
    after = str(imgaug_random.get_global_rng().state)
    imgaug_random.get_global_rng().random(100)

    assert before == after
    assert str(imgaug_random.get_global_rng().state) != before
    assert all(np.array_equal(a, b) for a, b in zip(first, variants(noise(1), every), strict=True))


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("bucket", [(64, 64), (96, 48)])
def test_geometric_changes_show_no_corners(name: AugmenterName, bucket: Size) -> None:
    white = Image.new("RGB", (150, 100), "white")

    made = variants(
        white, custom(Augmenter(name=name, low=RANGES[name][0], high=RANGES[name][1]), variants=12), bucket=bucket
    )

    assert min(variant.min() for variant in made) == 255


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((AugmenterName.ROTATE, degrees) for degrees in (-170, -90, -30, -5, 5, 45, 180)),
        *((AugmenterName.SHEAR, degrees) for degrees in (-30, 10)),
        *((AugmenterName.TRANSLATE, share) for share in (-0.25, 0.1)),
    ],
)
def test_geometric_changes_show_no_reflected_border(name: AugmenterName, value: float) -> None:
    """An image that is red only at the border has no red inside a variant."""
    rows, columns = np.mgrid[0:200, 0:300]
    # 255 on the outermost pixels only: reflected, they would be a line inside the variant.
    edge = np.minimum.reduce([rows, columns, 199 - rows, 299 - columns]) < 2
    image = Image.fromarray(np.stack([edge * 255, edge * 0, edge * 0], axis=2).astype(np.uint8))

    for variant in variants(image, just(name, value, variants=1), bucket=(300, 200)):
        inner = variant[8:-8, 8:-8, 0]
        assert inner.max() < 128


def test_a_crop_shows_a_part_of_the_image() -> None:
    """With half of each side cut off, the remaining gradient has half of its range."""
    ramp = np.tile(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (400, 1, 3))

    made = variants(Image.fromarray(ramp), just(AugmenterName.CROP, 0.5, variants=8))

    assert all(110 < variant.max() - variant.min() < 140 for variant in made)
    assert len({round(float(variant.min())) for variant in made}) > 3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (AugmenterName.BRIGHTNESS, 1.5, (150, 75, 30)),
        (AugmenterName.BRIGHTNESS, 0.5, (50, 25, 10)),
        (AugmenterName.CONTRAST, 0.5, (114, 89, 74)),
        (AugmenterName.HUE, 120, (20, 100, 47)),
        (AugmenterName.SATURATION, 0, (100, 100, 100)),
        (AugmenterName.GRAYSCALE, 1, (61, 61, 61)),
        (AugmenterName.JPEG, 95, (100, 50, 20)),
    ],
)
def test_a_color_augmenter_follows_its_name_and_unit(
    name: AugmenterName, value: float, expected: tuple[int, int, int]
) -> None:
    plain = Image.new("RGB", (80, 80), (100, 50, 20))

    for variant in variants(plain, just(name, value, variants=1)):
        assert np.abs(variant.mean(axis=(0, 1)) - expected).max() <= 4
        assert variant.std(axis=(0, 1)).max() < 2


def test_noise_has_the_requested_deviation() -> None:
    plain = Image.new("RGB", (300, 300), (128, 128, 128))

    (variant,) = variants(plain, just(AugmenterName.GAUSSIAN_NOISE, 20, variants=1), bucket=(256, 256))

    assert variant.std() == pytest.approx(20, rel=0.03)
    assert variant.mean() == pytest.approx(128, abs=0.5)


def test_blur_and_rotation_are_in_px_and_degrees() -> None:
    half = Image.new("RGB", (200, 200), "black")
    half.paste("white", (0, 0, 100, 200))

    (blurred,) = variants(half, just(AugmenterName.GAUSSIAN_BLUR, 4, variants=1), bucket=(200, 200))
    (rotated,) = variants(half, just(AugmenterName.ROTATE, 90, variants=1), bucket=(200, 200))

    slope = -np.diff(blurred[100, :, 0]) / 255
    deviation = np.sqrt((slope * (np.arange(199) - 99) ** 2).sum())
    # imgaug truncates the Gaussian at 1.5 sigma.
    assert 0.6 * 4 < deviation < 4
    assert rotated[:90].min() > 250 or rotated[110:].min() > 250
    assert rotated[:90].max() < 5 or rotated[110:].max() < 5


@pytest.mark.parametrize("name", [AugmenterName.FLIP_HORIZONTAL, AugmenterName.FLIP_VERTICAL])
def test_a_flip_mirrors(name: AugmenterName) -> None:
    mirrored = {AugmenterName.FLIP_HORIZONTAL: ImageOps.mirror, AugmenterName.FLIP_VERTICAL: ImageOps.flip}[name]

    (variant,) = variants(noise(1, 64, 64), just(name, variants=1))

    assert np.array_equal(variant, of_bucket(mirrored(noise(1, 64, 64))))


@pytest.mark.parametrize(
    ("flip", "caption", "is_flipped"),
    [
        (Flip.AUTO, "a cat", True),
        (Flip.AUTO, "a cat looking left", False),
        (Flip.AUTO, "a sign saying 'open'", False),
        (Flip.ON, "a cat looking left", True),
        (Flip.OFF, "a cat", False),
    ],
)
def test_an_image_is_mirrored_only_if_its_caption_stays_true(flip: Flip, caption: str, is_flipped: bool) -> None:
    always = just(AugmenterName.FLIP_HORIZONTAL, variants=1, flip=flip)

    (variant,) = variants(noise(1, 64, 64), always, caption=caption)

    assert np.array_equal(variant, of_bucket(noise(1, 64, 64))) != is_flipped
    assert may_flip(always, caption) == is_flipped


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_do_not_mirror_an_image_whose_caption_names_a_side(preset: AugmentationPreset) -> None:
    half = Image.new("RGB", (100, 100), "black")
    half.paste("white", (50, 0, 100, 100))

    def sides(caption: str) -> set[bool]:
        made = variants(half, Augmentation(preset=preset, variants=16), caption=caption)
        return {bool(variant[:, :20].mean() < variant[:, -20:].mean()) for variant in made}

    assert sides("black on the left") == {True}
    assert sides("black and white") == {True, False}


def test_art_keeps_its_colors_and_level_lines() -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[::16], stripes[8::16] = (200, 30, 90), (10, 180, 60)

    for variant in variants(
        Image.fromarray(np.repeat(stripes[::8], 8, axis=0)), Augmentation(preset=AugmentationPreset.ART, variants=8)
    ):
        # Each row has one color.
        assert np.ptp(variant, axis=1).max() <= 2


def test_probability_is_the_share_of_variants() -> None:
    half = custom(Augmenter(name=AugmenterName.FLIP_HORIZONTAL, probability=0.5), variants=16)
    image = noise(1, 64, 64)
    flips = [
        not np.array_equal(variant, of_bucket(image))
        for number in range(10)
        for variant in variants(image, half, content=str(number))
    ]

    assert 60 < sum(flips) < 100


def test_a_jpeg_decoded_smaller_looks_the_same_in_its_bucket(tmp_path: Path) -> None:
    noise(1, 1600, 1200).save(tmp_path / "a.jpg", quality=95)
    noise(1, 1600, 1200).save(tmp_path / "a.png")

    drafted = open_for_bucket(tmp_path, "a.jpg", (128, 128))
    whole = open_for_bucket(tmp_path, "a.png", (128, 128))

    assert (drafted.size, whole.size) == ((400, 300), (1600, 1200))
    assert differ(of_bucket(drafted, (128, 128)), of_bucket(whole, (128, 128))) < 1.5


@pytest.mark.parametrize("size", [(100, 100), (255, 300), (260, 1000)])
def test_a_jpeg_is_never_decoded_smaller_than_twice_its_bucket(tmp_path: Path, size: Size) -> None:
    noise(1, *size).save(tmp_path / "a.jpg")

    opened = open_for_bucket(tmp_path, "a.jpg", (64, 64))

    assert min(opened.size) >= min(128, *size)


def test_gray_images_are_opened_as_rgb_and_a_damaged_one_is_a_dataset_error(tmp_path: Path) -> None:
    noise(1).convert("L").save(tmp_path / "gray.webp", lossless=True)
    (tmp_path / "bad.png").write_bytes(b"rubbish")

    assert open_for_bucket(tmp_path, "gray.webp", (64, 64)).mode == "RGB"
    with pytest.raises(DatasetError, match=r"bad\.png"):
        open_for_bucket(tmp_path, "bad.png", (64, 64))
