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
from cv2.typing import MatLike
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
    may_be_same,
)

#: Side of the patch for guesses, px.
_PATCH_PX = 24
#: Keypoints of an image, and those that must agree on one alignment within so many px (RANSAC).
_KEYPOINTS, _MIN_INLIERS, _INLIER_PX = 300, 6, 2.5
#: Bits, of 256, by which two descriptors of one keypoint differ at most, and the ratio to the second best (Lowe 2004).
MAX_BITS, _MAX_RATIO = 64, 0.85
#: Keypoints that agree on one alignment beyond doubt: no other one is tried.
_SURE_INLIERS = 25
#: Correlation of two patches from which their layout is worth a try, and how many are tried; and of a mirrored patch
#: from which keypoints of the mirrored image are, which take as long as the rest of a comparison.
_MIN_LAYOUT_CORRELATION, _TRIED_LAYOUTS, _MIN_MIRRORED_CORRELATION = 0.75, 2, 0.4
#: Width that ORB leaves at the border, px.
_MARGIN_PX = 16
#: Gray levels by which pixels of a border differ at most.
_BORDER_LEVELS = 16
#: Largest enlargement of a copy, and ratio of the scales of both axes.
MAX_SCALE, _MAX_SQUASH = 3.3, 1.6
#: Share of the border of an image that is cropped away for a guess.
_INNER = 0.1
#: Difference up to which a second, finer alignment is tried; and by how much a refined alignment may change the share
#: that is in both images.
_NEARLY_SAME, _MAX_SHARE_CHANGE = 0.5, 0.06
#: Unit of the positions in an equation, px, and pixels of every other row and column that both must show.
_UNIT_PX, _MIN_SHOWN_PX = 64.0, 100
#: Change of the correlation up to which a refinement has converged.
_CONVERGED = 1e-3
#: Steps of a refinement; after the first ones it ends where the images correlate by less, and where the guess differed
#: by so much, by less than this: none of 165 refined copies did (0.8 and 0.988 at least), and most other images do.
_FIRST_STEPS, _STEPS = 3, 30
_MIN_REFINED, _DOUBTFUL_DIFFERENCE, _MIN_REFINED_IF_DOUBTFUL = 0.79, 0.7, 0.95
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
#: Loaded images in memory: 0.2 MB each.
_LOADED = 192

#: A 3x3 matrix that maps pixels of one image to those of another.
Transform = NDArray[np.float64]
#: Positions [N, 2] and descriptors [N, 32].
Keypoints = tuple[Float, NDArray[np.uint8]]
#: Left, top, right, bottom, px.
Box = tuple[int, int, int, int]


class ComparedImage:
    """A thumbnail, and what is computed of it once for all comparisons."""

    def __init__(self, thumbnail: Image.Image) -> None:
        self._pixels = np.asarray(thumbnail.convert("RGB"))
        height, width = self._pixels.shape[:2]
        self._scale = COMPARED_PX / max(height, width)
        size = max(BLOCK_PX, round(width * self._scale)), max(BLOCK_PX, round(height * self._scale))
        self._small = np.asarray(cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        self.gray: Float = cv2.cvtColor(self._small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.flat_share = flat_share(self.gray)
        self.whole: Box = (0, 0, size[0], size[1])
        self.content: Box = content_box(self._small)

    @property
    def rgb(self) -> Float:
        """The pixels [H, W, 3]; not kept, as they take more memory than all else."""
        return self._small.astype(np.float32)

    @cached_property
    def patches(self) -> dict[Box, Float]:
        """The whole image, its content and its middle as small squares of mean 0 and length 1."""
        return {box: self._patch(box) for box in (self.whole, self.content, _inner(self.whole))}

    @cached_property
    def turned_patches(self) -> Float:
        """The patches in all turns as [patches, turns, D]."""
        turned = [[turn.applied(patch).ravel() for turn in _TURNS] for patch in self.patches.values()]
        return np.array(turned, dtype=np.float32)

    def _patch(self, box: Box) -> Float:
        left, top, right, bottom = box
        small = cv2.resize(self.gray[top:bottom, left:right], (_PATCH_PX, _PATCH_PX), interpolation=cv2.INTER_AREA)
        patch = np.asarray(small, dtype=np.float32)
        patch -= patch.mean()
        return patch / np.float32(max(float(np.linalg.norm(patch)), 1e-6))

    @cached_property
    def keypoints(self) -> Keypoints:
        """Positions in `gray` and descriptors [N, 32]."""
        return self._keypoints(is_mirrored=False)

    @cached_property
    def mirrored_keypoints(self) -> Keypoints:
        """The same of the mirrored image; descriptors tell a motif from its mirror image."""
        return self._keypoints(is_mirrored=True)

    def _keypoints(self, *, is_mirrored: bool) -> Keypoints:
        gray = np.asarray(cv2.cvtColor(self._pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        points, descriptors = detect_keypoints(np.ascontiguousarray(gray[:, ::-1]) if is_mirrored else gray, _KEYPOINTS)
        return points * np.float32(self._scale), descriptors


def detect_keypoints(gray: NDArray[np.uint8], most: int, levels: int = 6) -> Keypoints:
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
    least = _MIN_REFINED
    for blur_px in (0, 5, 3):
        if blur_px and transform is not None:
            transform = _refined(one, other, transform, blur_px, least)
        if transform is None or not _is_plausible(transform) or (shown := _shown(one, other, transform)) is None:
            return
        if (judged := _compare(one, other, transform, shown)) is None:
            return
        yield judged
        if judged.shows_too_little or (blur_px and judged.difference > _NEARLY_SAME):
            return
        least = _MIN_REFINED_IF_DOUBTFUL if judged.difference > _DOUBTFUL_DIFFERENCE else _MIN_REFINED


def _guesses(one: ComparedImage, other: ComparedImage) -> Iterator[Transform]:
    """Alignments that are worth a try, the likeliest first."""
    layouts = _layouts(one, other)
    upright, mirrored = (
        max((layout.correlation for layout in layouts if layout.turn.is_mirror is is_mirror), default=0.0)
        for is_mirror in (False, True)
    )
    inliers, guess = _matched(one.keypoints, other.keypoints)
    is_sure = inliers >= _SURE_INLIERS and upright >= mirrored
    if not is_sure and mirrored >= _MIN_MIRRORED_CORRELATION:
        more_inliers, mirrored_guess = _matched(one.keypoints, other.mirrored_keypoints)
        if mirrored_guess is not None and more_inliers > inliers:
            guess = np.array([[-1.0, 0, other.whole[2]], [0, 1, 0], [0, 0, 1]]) @ mirrored_guess
    if guess is not None:
        yield guess
    if not is_sure:
        likely = (layout for layout in layouts if layout.correlation >= _MIN_LAYOUT_CORRELATION)
        yield from (layout.transform for layout in itertools.islice(likely, _TRIED_LAYOUTS))


def _matched(one: Keypoints, other: Keypoints) -> tuple[int, Transform | None]:
    (from_points, from_bits), (to_points, to_bits) = one, other
    if min(len(from_bits), len(to_bits)) < _MIN_INLIERS:
        return 0, None
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(from_bits, to_bits, k=2)
    good = [a for a, b in pairs if a.distance <= MAX_BITS and a.distance < _MAX_RATIO * b.distance]
    if len(good) < _MIN_INLIERS:
        return 0, None
    start, end = from_points[[m.queryIdx for m in good]], to_points[[m.trainIdx for m in good]]
    affine, inliers = cv2.estimateAffine2D(start, end, None, cv2.RANSAC, _INLIER_PX, 500)
    if affine is None or int(inliers.sum()) < _MIN_INLIERS:
        return 0, None
    transform = np.vstack([affine, [0, 0, 1]])
    return (int(inliers.sum()), transform) if _is_plausible(transform) else (0, None)


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
    def is_mirror(self) -> bool:
        """Whether left and right are swapped, as no rotation does."""
        return (self.is_transposed + self.is_mirrored + self.is_flipped) % 2 == 1

    @property
    def matrix(self) -> Transform:
        """Maps the unit square to where the turned patch takes its pixels from."""
        across = np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]) if self.is_mirrored else np.eye(3)
        down = np.array([[1.0, 0, 0], [0, -1, 1], [0, 0, 1]]) if self.is_flipped else np.eye(3)
        swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]) if self.is_transposed else np.eye(3)
        return np.asarray(swap @ across @ down, dtype=np.float64)


_TURNS = [_Turn(*flags) for flags in itertools.product((False, True), repeat=3)]


@dataclass(frozen=True)
class _Layout:
    """An alignment of a part of one image with a turned part of the other, and how similar these are."""

    correlation: float
    part: Box
    other_part: Box
    turn: _Turn

    @property
    def transform(self) -> Transform:
        return _unit(self.other_part) @ self.turn.matrix @ np.linalg.inv(_unit(self.part))


def _layouts(one: ComparedImage, other: ComparedImage) -> list[_Layout]:
    """Alignments of the whole images, of what is within their borders, and of their middles; the most similar first."""
    patches = np.array([patch.ravel() for patch in one.patches.values()], dtype=np.float32)
    correlations = np.einsum("pd,qtd->pqt", patches, other.turned_patches, optimize=True)
    middle, other_middle = _inner(one.whole), _inner(other.whole)
    found = [
        _Layout(float(correlations[row, column, index]), part, other_part, turn)
        for row, part in enumerate(one.patches)
        for column, other_part in enumerate(other.patches)
        # The middle of one image may be all that the other one shows.
        if part != middle or other_part == other.whole
        if other_part != other_middle or part == one.whole
        for index, turn in enumerate(_TURNS)
        if correlations[row, column, index] >= _MIN_MIRRORED_CORRELATION
    ]
    return sorted(found, key=lambda layout: -layout.correlation)


def _inner(box: Box) -> Box:
    across, down = round(box[2] * _INNER), round(box[3] * _INNER)
    return across, down, box[2] - across, box[3] - down


def _unit(box: Box) -> Transform:
    left, top, right, bottom = box
    return np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]], dtype=np.float64)


def _is_plausible(transform: Transform) -> bool:
    larger, smaller = np.linalg.svd(transform[:2, :2], compute_uv=False)
    return bool(smaller > 1 / MAX_SCALE and larger < MAX_SCALE and larger < _MAX_SQUASH * smaller)


def _refined(
    one: ComparedImage, other: ComparedImage, guess: Transform, blur_px: int, least: float
) -> Transform | None:
    """Maximize the correlation of the pixels, whatever their contrast; None if it is or stays below `least`.

    By Gauss-Newton steps, as ECC (Evangelidis & Psarakis 2008), on every other pixel of every other row: blurred as
    they are, the others tell nothing more. 1 ms; OpenCV's `findTransformECC` took 10 to the same answers.
    """
    levels, blurred = (
        np.asarray(cv2.GaussianBlur(image.gray, (blur_px, blur_px), 0), dtype=np.float32) for image in (one, other)
    )
    slopes = [cv2.Sobel(blurred, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=0.5) for dx in (1, 0)]
    moved = cv2.merge([blurred, *slopes, np.ones_like(blurred)])
    transform, last = guess.copy(), 0.0
    for step in range(_STEPS):
        found = _gauss_newton_step(levels, moved, transform)
        if found is None or (step == _FIRST_STEPS and found[0] < least):
            return None
        correlation, change = found
        if abs(correlation - last) < _CONVERGED:
            return transform if correlation >= least else None
        transform[:2] += change
        last = correlation
    return transform if last >= least else None


def _gauss_newton_step(levels: Float, moved: MatLike, transform: Transform) -> tuple[float, Transform] | None:
    """The correlation of two images in an alignment, and the change [2, 3] of the alignment that raises it most.

    None if too few pixels are in both, or they are unlike.

    Args:
        levels: Gray of the one, [H, W].
        moved: Of the other, gray, its slopes across and down, and ones, [H, W, 4].
        transform: Maps pixels of the one to those of the other.
    """
    levels = levels[::2, ::2]
    halved = (transform @ np.diag([2.0, 2.0, 1.0]))[:2]
    gray, across, down, inside = cv2.warpAffine(moved, halved, levels.shape[::-1], flags=_WARP).reshape(-1, 4).T
    is_shown = inside > 0.99
    x, y = _grid(levels.shape)
    columns = np.stack([across * x, across * y, across, down * x, down * y, down, gray, np.ones_like(gray)]) * is_shown
    wanted = levels.ravel() * is_shown
    squares, products = (columns @ columns.T).astype(np.float64), (columns @ wanted).astype(np.float64)
    count, total, other_total = squares[7, 7], products[7], squares[6, 7]
    if count < _MIN_SHOWN_PX:
        return None
    power, other_power = float(wanted @ wanted) - total**2 / count, squares[6, 6] - other_total**2 / count
    covariance = products[6] - other_total * total / count
    if min(power, other_power, covariance) <= 0:
        return None
    try:
        # Contrast and brightness are fitted with the movement.
        fitted = np.linalg.solve(squares, products)
    except np.linalg.LinAlgError:
        return None
    if fitted[6] <= 0:
        return None
    change = fitted[:6].reshape(2, 3) / fitted[6] / (_UNIT_PX, _UNIT_PX, 1)
    return float(covariance / (power * other_power) ** 0.5), change


@lru_cache
def _grid(shape: tuple[int, int]) -> tuple[Float, Float]:
    """Across and down of every other pixel, in units that keep the numbers of an equation near each other."""
    down, across = np.mgrid[: shape[0], : shape[1]].reshape(2, -1).astype(np.float32) * np.float32(2 / _UNIT_PX)
    return across, down


@dataclass(frozen=True)
class _Shown:
    """What two aligned images have in common."""

    #: Pixels of the one that are in the other.
    pixels: Mask
    #: Share of either image that is in the other, the smaller and the larger one.
    shared: tuple[float, float]


def _shown(one: ComparedImage, other: ComparedImage, transform: Transform) -> _Shown | None:
    """What both images show; None if it is too little for any copy."""
    everything = np.full(other.gray.shape, 255, np.uint8)
    inside = cv2.warpAffine(everything, transform[:2], one.gray.shape[::-1], flags=_WARP) > 252
    enlarged = abs(float(np.linalg.det(transform[:2, :2])))
    of_one, of_other = float(inside.mean()), float(inside.sum()) * enlarged / other.gray.size
    less, more = sorted((of_one, of_other))
    if more < MIN_SHARED or less < MIN_SHARED_OF_OTHER:
        return None
    refined = less + _MAX_SHARE_CHANGE, more + _MAX_SHARE_CHANGE
    if not may_be_same(refined, min(one.flat_share, other.flat_share)):
        return None
    return _Shown(np.asarray(inside), (less, more))


def _compare(one: ComparedImage, other: ComparedImage, transform: Transform, shown: _Shown) -> Agreement | None:
    """Compare the pixels that both images show."""
    # What is at the border is mixed with what is beyond.
    inner: Mask = cv2.erode(shown.pixels.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(np.bool_)
    warped = np.asarray(cv2.warpAffine(other.rgb, transform[:2], one.gray.shape[::-1], flags=_WARP), dtype=np.float32)
    return agreement_of(one.rgb, warped, inner, flat_share=min(one.flat_share, other.flat_share), shared=shown.shared)
