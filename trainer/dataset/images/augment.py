"""Variants of a training picture: each a function of the seed, the picture and the variant's number alone.

Every value comes from a generator of its own, named by seed, picture, variant and place in the list. So nothing depends
on the order of pictures, on threads, or on what else draws numbers, and imgaug's global generator is never touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.dataset.buckets import Size, fit
from trainer.dataset.captions.orientation import forbids_flip
from trainer.dataset.images.augment_presets import augmenters_of
from trainer.dataset.seeds import derive_seed
from trainer.protocol.augmentation import FLIPS, Augmentation, Augmenter, AugmenterName, Flip

#: Raise it when the same settings would make other variants.
METHOD_VERSION = 1

Pixels: TypeAlias = NDArray[np.uint8]
#: One change with its values drawn.
_Change: TypeAlias = Callable[[Pixels], Pixels]

#: What moves pixels works on a copy that is larger than the bucket by this, so that a zoom stays sharp.
_ROOM = 1.25
_GEOMETRY = (
    *FLIPS,
    AugmenterName.ROTATE,
    AugmenterName.SCALE,
    AugmenterName.CROP,
    AugmenterName.TRANSLATE,
    AugmenterName.SHEAR,
    AugmenterName.PERSPECTIVE,
)


def may_flip(augmentation: Augmentation, caption: str) -> bool:
    """True if a picture may be mirrored under its caption."""
    return augmentation.flip is Flip.ON or (augmentation.flip is Flip.AUTO and not forbids_flip(caption))


def make_variants(
    image: Image.Image, bucket: Size, augmentation: Augmentation, *, caption: str, pixels_sha256: str, seed: int
) -> Iterator[Image.Image]:
    """All variants of an RGB picture, one after the other, at the bucket's size.

    What moves pixels comes first, on the whole picture, then the bucket's crop, then what colours them. Nothing comes
    in from outside the picture: rotation, shear and shift zoom in by as much as they need.

    On one core a variant at 512 px takes 18 ms with `light`, 34 ms with `photo` and 17 ms with `art`, where encoding it
    by the VAE of SD 1.5 takes more than 4 s.
    """
    roomy = _with_room(image, bucket)
    for moves, colours in _drawn(augmentation, caption, pixels_sha256, seed):
        yield _apply(colours, fit(_apply(moves, roomy), bucket))


def move_mask(
    mask: Image.Image, bucket: Size, augmentation: Augmentation, *, caption: str, pixels_sha256: str, seed: int
) -> Iterator[Image.Image]:
    """A picture's mask (8-bit grey, in its shape) as each variant of `make_variants` moves the picture, not cropped.

    The same changes with the same values; none of those that colour.
    """
    roomy = _with_room(mask.convert("L"), bucket)
    for moves, _ in _drawn(augmentation, caption, pixels_sha256, seed):
        yield _apply(moves, roomy)


def _drawn(
    augmentation: Augmentation, caption: str, pixels_sha256: str, seed: int
) -> Iterator[tuple[list[tuple[Augmenter, Random]], list[tuple[Augmenter, Random]]]]:
    """For each variant the changes that it gets: what moves pixels, and what colours them."""
    augmenters = augmenters_of(augmentation)
    if not may_flip(augmentation, caption):
        augmenters = tuple(augmenter for augmenter in augmenters if augmenter.name not in FLIPS)
    for number in range(1, augmentation.variants + 1):
        changes: dict[bool, list[tuple[Augmenter, Random]]] = {True: [], False: []}
        for place, augmenter in enumerate(augmenters):
            random = Random(derive_seed("augment", seed, pixels_sha256, number, place, str(augmenter.name)))
            if random.random() < augmenter.probability:
                changes[augmenter.name in _GEOMETRY].append((augmenter, random))
        yield changes[True], changes[False]


def _with_room(image: Image.Image, bucket: Size) -> Image.Image:
    share = _ROOM * max(bucket[0] / image.width, bucket[1] / image.height)
    if share >= 1:
        return image
    size = math.ceil(image.width * share), math.ceil(image.height * share)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _apply(changes: Sequence[tuple[Augmenter, Random]], image: Image.Image) -> Image.Image:
    if not changes:
        return image
    pixels: Pixels = np.asarray(image)
    for augmenter, random in changes:
        value = (
            0.0 if augmenter.low is None or augmenter.high is None else random.uniform(augmenter.low, augmenter.high)
        )
        pixels = _change(augmenter.name, value, random, pixels.shape)(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _change(name: AugmenterName, value: float, random: Random, shape: tuple[int, ...]) -> _Change:
    """One augmenter with its value; `shape` is of the pixels that it will be given."""
    import imgaug.augmenters as iaa  # 1.5 s to load, and only where augmentation is on

    if name is AugmenterName.JPEG:
        return lambda pixels: _jpeg(pixels, round(value))
    seed = random.getrandbits(31)
    if name in _GEOMETRY:
        augmenter = _geometry(name, value, random, shape[1] / shape[0], seed)
    else:
        augmenter = {
            AugmenterName.BRIGHTNESS: lambda: iaa.Multiply(value, seed=seed),
            AugmenterName.CONTRAST: lambda: iaa.LinearContrast(value, seed=seed),
            AugmenterName.SATURATION: lambda: iaa.MultiplySaturation(value, seed=seed),
            # imgaug counts a whole turn of the colour circle as 255.
            AugmenterName.HUE: lambda: iaa.AddToHue(round(value * 255 / 360), seed=seed),
            AugmenterName.GRAYSCALE: lambda: iaa.Grayscale(value, seed=seed),
            AugmenterName.GAUSSIAN_NOISE: lambda: iaa.AdditiveGaussianNoise(scale=value, per_channel=True, seed=seed),
            AugmenterName.GAUSSIAN_BLUR: lambda: iaa.GaussianBlur(value, seed=seed),
        }[name]()
    # Children without a seed of their own would draw from imgaug's global generator.
    sequence = iaa.Sequential([augmenter], seed=seed)
    return lambda pixels: sequence(image=pixels)


def _geometry(name: AugmenterName, value: float, random: Random, aspect: float, seed: int) -> object:
    """`aspect` is width over height."""
    import imgaug.augmenters as iaa

    def affine(zoom: float, **options: object) -> object:
        # Cubic; the mirrored rim is only ever seen by the interpolation, which looks two pixels beyond the edge.
        return iaa.Affine(scale=zoom, order=3, mode="reflect", seed=seed, **options)

    match name:
        case AugmenterName.FLIP_HORIZONTAL:
            return iaa.Fliplr(1.0, seed=seed)
        case AugmenterName.FLIP_VERTICAL:
            return iaa.Flipud(1.0, seed=seed)
        case AugmenterName.ROTATE:
            return affine(_zoom_of_rotation(value, aspect), rotate=value)
        case AugmenterName.SHEAR:
            return affine(1 + math.tan(math.radians(abs(value))) / aspect, shear={"x": value})
        case AugmenterName.TRANSLATE:
            y = random.choice((-1, 1)) * value
            return affine(1 + 2 * abs(value), translate_percent={"x": value, "y": y})
        case AugmenterName.PERSPECTIVE:
            return iaa.PerspectiveTransform(scale=value, mode="replicate", seed=seed)
        case AugmenterName.SCALE:
            rim = (1 - 1 / value) / 2
            return iaa.Crop(percent=(rim, rim, rim, rim), keep_size=False, seed=seed)
        case _:
            left, top = random.random() * value, random.random() * value
            return iaa.Crop(percent=(top, value - left, value - top, left), keep_size=False, seed=seed)


def _zoom_of_rotation(degrees: float, aspect: float) -> float:
    """How much a turned rectangle must grow to cover the upright one."""
    turn = math.radians(degrees)
    return abs(math.cos(turn)) + max(aspect, 1 / aspect) * abs(math.sin(turn))


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    """By Pillow: imgaug's own goes through a file, and through a call that imageio has given up."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as opened:
        return np.asarray(opened.convert("RGB"))
