"""Aligns two images that may show the same: one cropped, framed, turned, marked.

An alignment is guessed from matched keypoints or from the layout, refined on the pixels, and judged by the pixels that
both images show (`image_agreement`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.dataset.images.image_agreement import (
    BLOCK_PX,
    COMPARED_PX,
    MIN_SHARED,
    MIN_SHARED_OF_OTHER,
    Agreement,
    Float,
    Mask,
    agreement_of,
    flat_share,
)

#: Side of the patch for guesses, px.
_PATCH_PX = 24
#: Keypoints of an image, and those that must agree on one alignment within so many px (RANSAC).
_KEYPOINTS, _MIN_INLIERS, _INLIER_PX = 300, 6, 2.5
#: Bits, of 256, by which two descriptors of one keypoint differ at most, and the ratio to the second best (Lowe 2004).
_MAX_BITS, _MAX_RATIO = 64, 0.85
#: Correlation of two patches from which their layout is worth a try, and how many are tried.
_MIN_LAYOUT_CORRELATION, _TRIED_LAYOUTS = 0.75, 2
#: Width that ORB leaves at the border, px.
_MARGIN_PX = 16
#: Gray levels by which pixels of a border differ at most.
_BORDER_LEVELS = 16
#: Largest enlargement, and ratio of the scales of both axes.
_MAX_SCALE, _MAX_SQUASH = 3.3, 1.6
#: Share of the border of an image that is cropped away for a guess.
_INNER = 0.1
#: Difference up to which a second, finer alignment is tried.
_NEARLY_SAME = 0.5
#: Loaded images in memory: 0.3 MB each.
_LOADED = 128

#: A 3x3 matrix that maps pixels of one image to those of another.
Transform = NDArray[np.float64]
#: Left, top, right, bottom, px.
Box = tuple[int, int, int, int]


class ComparedImage:
    """A thumbnail, and what is computed of it once for all comparisons."""

    def __init__(self, thumbnail: Image.Image) -> None:
        self._pixels = np.asarray(thumbnail.convert("RGB"))
        height, width = self._pixels.shape[:2]
        self._scale = COMPARED_PX / max(height, width)
        size = max(BLOCK_PX, round(width * self._scale)), max(BLOCK_PX, round(height * self._scale))
        small = np.asarray(cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        self.rgb: Float = small.astype(np.float32)
        self.gray: Float = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.flat_share = flat_share(self.gray)
        self.whole: Box = (0, 0, size[0], size[1])
        self.content: Box = content_box(small)

    @cached_property
    def keypoints(self) -> tuple[Float, NDArray[np.uint8]]:
        """Positions in `gray` and descriptors [N, 32]."""
        return self._keypoints(is_mirrored=False)

    @cached_property
    def mirrored_keypoints(self) -> tuple[Float, NDArray[np.uint8]]:
        """The same of the mirrored image; descriptors tell a motif from its mirror image."""
        return self._keypoints(is_mirrored=True)

    def _keypoints(self, *, is_mirrored: bool) -> tuple[Float, NDArray[np.uint8]]:
        gray = np.asarray(cv2.cvtColor(self._pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        points, descriptors = detect_keypoints(np.ascontiguousarray(gray[:, ::-1]) if is_mirrored else gray, _KEYPOINTS)
        return points * np.float32(self._scale), descriptors


def detect_keypoints(gray: NDArray[np.uint8], most: int, levels: int = 6) -> tuple[Float, NDArray[np.uint8]]:
    """The strongest keypoints of [H, W]: positions and descriptors (ORB; Rublee et al. 2011)."""
    orb = _orb(most, levels)
    margin = (_MARGIN_PX,) * 4
    found, descriptors = orb.detectAndCompute(cv2.copyMakeBorder(gray, *margin, cv2.BORDER_REPLICATE), None)  # type: ignore[call-overload]
    points = cv2.KeyPoint.convert(found)
    if descriptors is None or not len(points):
        return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8)
    return np.asarray(points, dtype=np.float32) - _MARGIN_PX, np.asarray(descriptors, dtype=np.uint8)


@lru_cache
def _orb(most: int, levels: int) -> cv2.ORB:
    return cv2.ORB.create(
        nfeatures=most, scaleFactor=1.25, nlevels=levels, edgeThreshold=_MARGIN_PX, patchSize=31, fastThreshold=7
    )


def content_box(pixels: NDArray[np.uint8]) -> Box:
    """The box of [H, W, 3] within borders of one color, of up to three colors in turn."""
    left, top, right, bottom = 0, 0, pixels.shape[1], pixels.shape[0]
    for _ in range(3):
        inner = np.ascontiguousarray(pixels[top:bottom, left:right])
        rows, columns = _has_content(inner, axis=1), _has_content(inner, axis=0)
        if (
            len(rows) < 2
            or len(columns) < 2
            or (rows[-1] - rows[0] < BLOCK_PX)
            or (columns[-1] - columns[0] < BLOCK_PX)
        ):
            break
        if (len(inner), inner.shape[1]) == (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1):
            break
        left, right = left + int(columns[0]), left + int(columns[-1]) + 1
        top, bottom = top + int(rows[0]), top + int(rows[-1]) + 1
    return left, top, right, bottom


def _has_content(pixels: NDArray[np.uint8], axis: int) -> NDArray[np.int64]:
    """Indices of the rows (axis 1) or columns (axis 0) that have more than one color."""
    # Along the first axis, whole rows at a time, it takes a third of the time of `cv2.reduce`.
    lines = pixels if axis == 0 else np.asarray(cv2.transpose(pixels), dtype=np.uint8)
    spread = lines.max(axis=0) - lines.min(axis=0)
    return np.flatnonzero(spread.max(axis=1) > _BORDER_LEVELS)


class ThumbnailComparer:
    """Compares thumbnails by the number of their image; the last ones that were loaded stay in memory."""

    def __init__(self, paths: Mapping[int, Path], consecutive: Collection[tuple[int, int]] = ()) -> None:
        """Compare these files.

        Args:
            paths: The thumbnails by number.
            consecutive: Pairs that may be frames of a burst.
        """
        self._paths = paths
        self._consecutive = frozenset(consecutive)
        # One cache each: another comparer's files may have the same paths.
        self._loaded = lru_cache(maxsize=_LOADED)(self._load)

    def __reduce__(self) -> tuple[type[ThumbnailComparer], tuple[Mapping[int, Path], Collection[tuple[int, int]]]]:
        """A process that compares gets the paths, and loads its own images."""
        return ThumbnailComparer, (self._paths, self._consecutive)

    def difference(self, one: int, other: int) -> float | None:
        """Share of the content in which two images differ, 0 to 1; None if they do not show the same.

        Args:
            one: Number of an image.
            other: Number of the other one.
        """
        are_consecutive = (one, other) in self._consecutive or (other, one) in self._consecutive
        found = agreement(self._loaded(one), self._loaded(other), are_consecutive=are_consecutive)
        return None if found is None else found.difference

    def _load(self, number: int) -> ComparedImage:
        with Image.open(self._paths[number]) as image:
            return ComparedImage(image)


def agreement(one: ComparedImage, other: ComparedImage, *, are_consecutive: bool = False) -> Agreement | None:
    """How well two images agree in the first alignment that makes them the same; None if there is no such alignment."""
    found = (judged for guess in _guesses(one, other) for judged in _judged(one, other, guess))
    return next((judged for judged in found if judged.is_same(are_consecutive=are_consecutive)), None)


def _judged(one: ComparedImage, other: ComparedImage, guess: Transform) -> Iterator[Agreement]:
    """Judge a guess as it is, which an overlay does not disturb, then refined on blurred and on sharper pixels."""
    transform: Transform | None = guess
    for blur_px in (0, 5, 3):
        if blur_px and transform is not None:
            transform = _refined(one, other, transform, blur_px)
        if transform is None or not _is_plausible(transform) or (judged := _compare(one, other, transform)) is None:
            return
        yield judged
        if blur_px and judged.difference > _NEARLY_SAME:
            return


def _guesses(one: ComparedImage, other: ComparedImage) -> Iterator[Transform]:
    if (guess := _keypoint_guess(one, other)) is not None:
        yield guess
    yield from _layout_guesses(one, other)


def _keypoint_guess(one: ComparedImage, other: ComparedImage) -> Transform | None:
    """The alignment on which most keypoints agree, mirrored or not."""
    mirror = np.array([[-1.0, 0, other.whole[2]], [0, 1, 0], [0, 0, 1]])
    best: tuple[int, Transform] | None = None
    for keypoints, turned in ((other.keypoints, np.eye(3)), (other.mirrored_keypoints, mirror)):
        inliers, transform = _matched(one.keypoints, keypoints)
        if transform is not None and (best is None or inliers > best[0]):
            best = inliers, turned @ transform
    return None if best is None else best[1]


def _matched(
    one: tuple[Float, NDArray[np.uint8]], other: tuple[Float, NDArray[np.uint8]]
) -> tuple[int, Transform | None]:
    (from_points, from_bits), (to_points, to_bits) = one, other
    if min(len(from_bits), len(to_bits)) < _MIN_INLIERS:
        return 0, None
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(from_bits, to_bits, k=2)
    good = [a for a, b in pairs if a.distance <= _MAX_BITS and a.distance < _MAX_RATIO * b.distance]
    if len(good) < _MIN_INLIERS:
        return 0, None
    start, end = from_points[[m.queryIdx for m in good]], to_points[[m.trainIdx for m in good]]
    affine, inliers = cv2.estimateAffine2D(start, end, None, cv2.RANSAC, _INLIER_PX, 500)
    if affine is None or int(inliers.sum()) < _MIN_INLIERS:
        return 0, None
    return int(inliers.sum()), np.vstack([affine, [0, 0, 1]])


def _layout_guesses(one: ComparedImage, other: ComparedImage) -> list[Transform]:
    """Alignments of the whole images, of what is within their borders, and of their middles, turned in eight ways."""
    boxes = list(itertools.product({one.whole, one.content}, {other.whole, other.content}))
    boxes += [(one.whole, _inner(other.whole)), (_inner(one.whole), other.whole)]
    found: list[tuple[float, Transform]] = []
    for from_box, to_box in boxes:
        patch, target = _patch(one, from_box), _patch(other, to_box)
        for turn in _TURNS:
            correlation = float(np.vdot(patch, turn.applied(target)))
            if correlation >= _MIN_LAYOUT_CORRELATION:
                found.append((correlation, _unit(to_box) @ turn.matrix @ np.linalg.inv(_unit(from_box))))
    found.sort(key=lambda each: -each[0])
    return [transform for _correlation, transform in found[:_TRIED_LAYOUTS]]


@dataclass(frozen=True)
class _Turn:
    """One of the eight ways to turn and mirror a square."""

    is_transposed: bool
    is_mirrored: bool
    is_flipped: bool

    def applied(self, patch: Float) -> Float:
        """The turned patch."""
        patch = patch.T if self.is_transposed else patch
        patch = patch[:, ::-1] if self.is_mirrored else patch
        return patch[::-1] if self.is_flipped else patch

    @property
    def matrix(self) -> Transform:
        """Maps the unit square to where the turned patch takes its pixels from."""
        across = np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]) if self.is_mirrored else np.eye(3)
        down = np.array([[1.0, 0, 0], [0, -1, 1], [0, 0, 1]]) if self.is_flipped else np.eye(3)
        swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]) if self.is_transposed else np.eye(3)
        return np.asarray(swap @ across @ down, dtype=np.float64)


_TURNS = [_Turn(*flags) for flags in itertools.product((False, True), repeat=3)]


def _inner(box: Box) -> Box:
    across, down = round(box[2] * _INNER), round(box[3] * _INNER)
    return across, down, box[2] - across, box[3] - down


def _patch(image: ComparedImage, box: Box) -> Float:
    """A box of an image as a small square of mean 0 and length 1."""
    left, top, right, bottom = box
    small = cv2.resize(image.gray[top:bottom, left:right], (_PATCH_PX, _PATCH_PX), interpolation=cv2.INTER_AREA)
    patch = np.asarray(small, dtype=np.float32)
    patch -= patch.mean()
    return patch / np.float32(max(float(np.linalg.norm(patch)), 1e-6))


def _unit(box: Box) -> Transform:
    left, top, right, bottom = box
    return np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]], dtype=np.float64)


def _is_plausible(transform: Transform) -> bool:
    larger, smaller = np.linalg.svd(transform[:2, :2], compute_uv=False)
    return bool(smaller > 1 / _MAX_SCALE and larger < _MAX_SCALE and larger < _MAX_SQUASH * smaller)


def _refined(one: ComparedImage, other: ComparedImage, guess: Transform, blur_px: int) -> Transform | None:
    """Maximize the correlation of the pixels, whatever their contrast (ECC; Evangelidis & Psarakis 2008)."""
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
    start = guess[:2].astype(np.float32)
    everywhere = np.ones(other.gray.shape, dtype=np.uint8)
    try:
        _, warp = cv2.findTransformECC(one.gray, other.gray, start, cv2.MOTION_AFFINE, until, everywhere, blur_px)
    except cv2.error:  # no convergence
        return None
    return np.vstack([warp, [0, 0, 1]]).astype(np.float64)


def _compare(one: ComparedImage, other: ComparedImage, transform: Transform) -> Agreement | None:
    """Compare the pixels that both images show."""
    height, width = one.gray.shape
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = transform[:2].astype(np.float32)
    inside = cv2.warpAffine(np.ones(other.gray.shape, np.float32), matrix, (width, height), flags=flags) > 0.99
    enlarged = abs(float(np.linalg.det(transform[:2, :2])))
    of_one, of_other = float(inside.mean()), float(inside.sum()) * enlarged / other.gray.size
    if max(of_one, of_other) < MIN_SHARED or min(of_one, of_other) < MIN_SHARED_OF_OTHER:
        return None
    # What is at the border is mixed with what is beyond.
    shown: Mask = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(np.bool_)
    warped = np.asarray(cv2.warpAffine(other.rgb, matrix, (width, height), flags=flags), dtype=np.float32)
    return agreement_of(
        one.rgb,
        warped,
        shown,
        flat_share=min(one.flat_share, other.flat_share),
        shared=(min(of_one, of_other), max(of_one, of_other)),
    )
