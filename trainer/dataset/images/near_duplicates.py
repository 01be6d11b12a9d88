"""Finds exact and near duplicates: candidate pairs by perceptual hashes, confirmed by comparing thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from trainer.console import Progress, ignore_progress

#: How bytes are written as JSON.
BYTES_AS_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
#: Largest `image_distance` of two near duplicates, of 255. Tuned on 7,000 real images (precision 0.99).
MAX_DISTANCE = 26.0

_DCT_SIDE, _HASH_SIDE = 32, 8
#: Standard deviation of gray below which an image is blank and its hashes are noise.
_BLANK_DEVIATION = 4.0
#: Limits for candidates, measured on 7,000 real images with planted duplicates (recall 0.98 after `image_distance`).
_MAX_PHASH_BITS, _MAX_DHASH_BITS, _MIN_CORRELATION = 12, 6, 0.9
_BLOCK_ROWS = 64
#: Side at which two thumbnails are compared, and of the blocks whose mean difference counts, px.
_COMPARED_PX, _BLOCK_PX = 64, 6
#: Border that an alignment may fill with pixels from outside, px.
_BORDER_PX = 4

#: Distance of two images, the second mirrored or not; None if they are no near duplicates.
PairDistance = Callable[[int, int, bool], float | None]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHashes:
    """Perceptual hashes of one image, 64 bits each, and a blurred 16x16 gray thumbnail."""

    __pydantic_config__: ClassVar[ConfigDict] = BYTES_AS_BASE64
    #: Signs of the low DCT coefficients (pHash; Zauner 2010).
    phash: int
    #: pHash of the mirrored image.
    mirrored_phash: int
    #: Signs of the horizontal gradient (dHash).
    dhash: int
    #: 256 bytes, row by row.
    blurred: bytes
    is_blank: bool


class UnionFind:
    """Disjoint sets of the items 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two items."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def find(self, item: int) -> int:
        """The lowest item of the set that holds `item`."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item


def image_hashes(thumbnail: Image.Image) -> ImageHashes:
    """Compute the hashes of an upright RGB thumbnail."""
    gray = thumbnail.convert("L")
    small = np.asarray(gray.resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.BOX), dtype=np.float64)
    low = (_DCT @ small @ _DCT.T)[:_HASH_SIDE, :_HASH_SIDE]
    # Mirroring an image flips the sign of its odd horizontal frequencies and changes nothing else.
    mirrored = low * np.where(np.arange(_HASH_SIDE) % 2, -1.0, 1.0)
    steps = np.asarray(gray.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    blurred = gray.resize((16, 16), Image.Resampling.BOX)
    return ImageHashes(
        phash=_bits(low > np.median(low)),
        mirrored_phash=_bits(mirrored > np.median(mirrored)),
        dhash=_bits(steps[:, 1:] > steps[:, :-1]),
        blurred=blurred.tobytes(),
        is_blank=float(np.asarray(gray, dtype=np.float64).std()) < _BLANK_DEVIATION,
    )


def exact_copies(pixels: Sequence[str], captioned: Sequence[bool]) -> dict[int, int]:
    """Map the index of each exact copy to the index of the image that is kept.

    Images are copies if their upright pixels are equal. The first one with a caption is kept, else the first.

    Args:
        pixels: Pixel hash of each image.
        captioned: Whether each image has a caption.
    """
    by_pixels: dict[str, list[int]] = {}
    for index, digest in enumerate(pixels):
        by_pixels.setdefault(digest, []).append(index)
    kept = {digest: next((i for i in same if captioned[i]), same[0]) for digest, same in by_pixels.items()}
    return {index: kept[digest] for index, digest in enumerate(pixels) if index != kept[digest]}


def near_pairs(
    hashes: Mapping[int, ImageHashes], distance: PairDistance, progress: Progress = ignore_progress
) -> Iterator[tuple[int, int, float]]:
    """Yield each pair of near duplicates with its distance.

    Args:
        hashes: By image number.
        distance: Confirms a candidate pair.
        progress: Called with the phase "comparing".
    """
    for one, other in candidates(hashes, progress):
        for mirrored in (False, True):
            if (measured := distance(one, other, mirrored)) is not None:
                yield one, other, measured
                break


def candidates(hashes: Mapping[int, ImageHashes], progress: Progress = ignore_progress) -> Iterator[tuple[int, int]]:
    """Yield pairs of images with similar hashes; blank images, whose hashes are noise, are skipped.

    Compares every pair, in blocks of rows: 1.4 s and 10 MB for 20,000 images.
    """
    numbers = [number for number, hashed in hashes.items() if not hashed.is_blank]
    phash, mirrored, dhash = (
        np.array([getattr(hashes[number], name) for number in numbers], dtype=np.uint64)
        for name in ("phash", "mirrored_phash", "dhash")
    )
    for start in range(0, len(numbers), _BLOCK_ROWS):
        rows, later = slice(start, start + _BLOCK_ROWS), slice(start, None)
        upright = _near(phash[rows], phash[later], _MAX_PHASH_BITS) | _near(dhash[rows], dhash[later], _MAX_DHASH_BITS)
        flipped = _near(phash[rows], mirrored[later], _MAX_PHASH_BITS)
        for row, column in np.argwhere(np.triu(upright | flipped, k=1)):
            one, other = numbers[start + row], numbers[start + column]
            first, second = (_normalized(hashes[number].blurred) for number in (one, other))
            if (upright[row, column] and np.vdot(first, second) >= _MIN_CORRELATION) or (
                flipped[row, column] and np.vdot(first, second[:, ::-1]) >= _MIN_CORRELATION
            ):
                yield one, other
        progress("comparing", min(start + _BLOCK_ROWS, len(numbers)), len(numbers))


def thumbnail_distance(one: Path, other: Path, mirrored: bool) -> float | None:
    """The `image_distance` of two thumbnails, or None if it is too large for near duplicates."""
    distance = image_distance(one, other, mirrored=mirrored)
    return distance if distance <= MAX_DISTANCE else None


def image_distance(one: Path, other: Path, *, mirrored: bool = False) -> float:
    """Measure how much two thumbnails differ at most: the mean difference of their worst 6x6 block, 0 to 255.

    Measured as they are and after an alignment; the smaller value counts. This tells re-encoded, resized and cropped
    copies from images that only look alike.
    """
    first, second = _load(one), _load(other)
    if mirrored:
        second = np.ascontiguousarray(second[:, ::-1])
    unaligned = _worst_block(first, second)
    return unaligned if unaligned <= MAX_DISTANCE else min(unaligned, _aligned_distance(first, second))


def _load(path: Path) -> Pixels:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((_COMPARED_PX, _COMPARED_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _worst_block(first: Pixels, second: Pixels) -> float:
    """Largest mean difference of a block: the mean of all pixels hides a changed detail, the maximum is noise."""
    gap = np.abs(first - second).max(axis=2)
    sums = np.pad(gap.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    n = _BLOCK_PX
    return float((sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]).max() / n**2)


def _aligned_distance(first: Pixels, second: Pixels) -> float:
    """The worst block after an affine alignment (ECC; Evangelidis & Psarakis 2008) and one gain for brightness."""
    import cv2  # 0.15 s to load, and only candidates need it

    def gray(pixels: Pixels) -> Pixels:
        return np.asarray(cv2.cvtColor(pixels / 255, cv2.COLOR_RGB2GRAY), dtype=np.float32)

    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    everywhere = np.ones((_COMPARED_PX, _COMPARED_PX), dtype=np.uint8)
    try:
        _, warp = cv2.findTransformECC(gray(first), gray(second), start, cv2.MOTION_AFFINE, until, everywhere, 5)
    except cv2.error:  # no convergence: the images differ
        return float("inf")
    if np.abs(warp[:, :2] - np.eye(2)).max() > 0.25:
        return float("inf")  # scaled or sheared by a quarter: more than a slight crop
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(second, warp, (_COMPARED_PX, _COMPARED_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = (slice(_BORDER_PX, -_BORDER_PX), slice(_BORDER_PX, -_BORDER_PX))
    target, warped = first[inner], np.asarray(warped, dtype=np.float32)[inner]
    gain = float((target * warped).sum() / max(float((warped * warped).sum()), 1e-6))
    return _worst_block(target, np.clip(warped * gain, 0, 255))


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags.ravel()).tobytes(), "big")


def _dct_matrix(side: int) -> NDArray[np.float64]:
    k, n = np.mgrid[:side, :side]
    matrix = np.cos(np.pi * (2 * n + 1) * k / (2 * side)) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, dtype=np.float64)


_DCT = _dct_matrix(_DCT_SIDE)


def _near(rows: NDArray[np.uint64], columns: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    """Whether the Hamming distance of each pair is at most `bits`."""
    return np.asarray(np.bitwise_count(rows[:, None] ^ columns[None, :]) <= bits)


def _normalized(blurred: bytes) -> NDArray[np.float32]:
    values = np.frombuffer(blurred, dtype=np.uint8).astype(np.float32).reshape(16, 16)
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)
