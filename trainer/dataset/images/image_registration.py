"""Aligns two images that may show the same: one cropped, framed, turned, marked.

An alignment is guessed from common keypoints or from the layout, refined on the pixels, and judged by the pixels that
both images show (`image_agreement`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

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
#: Keypoints that agree on an alignment which is not by chance, nor that of a pattern which repeats.
_SURE_KEYPOINTS = 12
#: Correlation of two patches from which their layout is worth a try, and how many are tried.
_MIN_LAYOUT_CORRELATION, _TRIED_LAYOUTS = 0.75, 2
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
#: Left, top, right, bottom, px.
Box = tuple[int, int, int, int]


class KeypointGuess(NamedTuple):
    """An alignment by keypoints that two images share."""

    #: Between the images at `COMPARED_PX`.
    transform: Transform
    #: Keypoints that agree on it.
    agreeing: int


class CandidatePair(NamedTuple):
    """The numbers of two images that may show the same."""

    one: int
    other: int
    #: How the one is moved to the other; None if their keypoints do not tell.
    guess: KeypointGuess | None = None


class ComparedImage:
    """A thumbnail, and what is computed of it once for all comparisons."""

    def __init__(self, thumbnail: Image.Image) -> None:
        pixels = np.asarray(thumbnail.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = COMPARED_PX / max(height, width)
        size = max(BLOCK_PX, round(width * scale)), max(BLOCK_PX, round(height * scale))
        self._small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
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

    def difference(self, pair: CandidatePair) -> float | None:
        """Share of the content in which two images differ, 0 to 1; None if they do not show the same."""
        one, other, guess = pair
        are_consecutive = (one, other) in self._consecutive or (other, one) in self._consecutive
        found = agreement(self._loaded(one), self._loaded(other), guess, are_consecutive=are_consecutive)
        return None if found is None else found.difference

    def _load(self, number: int) -> ComparedImage:
        with Image.open(self._paths[number]) as image:
            return ComparedImage(image)


def agreement(
    one: ComparedImage, other: ComparedImage, guess: KeypointGuess | None = None, *, are_consecutive: bool = False
) -> Agreement | None:
    """How well two images agree in the first alignment that makes them the same; None if there is no such alignment."""
    for transform, is_sure in _guesses(one, other, guess):
        is_aligned = False
        for judged in _judged(one, other, transform):
            if judged.is_same(are_consecutive=are_consecutive):
                return judged
            is_aligned = judged.is_aligned
        if is_aligned and is_sure:
            return None
    return None


def _judged(one: ComparedImage, other: ComparedImage, guess: Transform) -> Iterator[Agreement]:
    """Judge a guess as it is, which an overlay does not disturb, then refined on blurred and on sharper pixels."""
    transform: Transform | None = guess
    least = _MIN_REFINED
    for blur_px in (0, 5, 3):
        if blur_px and transform is not None:
            transform = _refined(one, other, transform, blur_px, least)
        if transform is None or not is_plausible(transform) or (shown := _shown(one, other, transform)) is None:
            return
        if (judged := _compare(one, other, transform, shown)) is None:
            return
        yield judged
        if judged.is_settled or (blur_px and judged.difference > _NEARLY_SAME):
            return
        least = _MIN_REFINED_IF_DOUBTFUL if judged.difference > _DOUBTFUL_DIFFERENCE else _MIN_REFINED


def _guesses(one: ComparedImage, other: ComparedImage, guess: KeypointGuess | None) -> Iterator[tuple[Transform, bool]]:
    """Alignments that are worth a try, the likeliest first; and whether each is the right one if the images agree."""
    if guess is not None:
        yield guess.transform, guess.agreeing >= _SURE_KEYPOINTS
    yield from ((layout.transform, True) for layout in itertools.islice(_layouts(one, other), _TRIED_LAYOUTS))


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
        if correlations[row, column, index] >= _MIN_LAYOUT_CORRELATION
    ]
    return sorted(found, key=lambda layout: -layout.correlation)


def _inner(box: Box) -> Box:
    across, down = round(box[2] * _INNER), round(box[3] * _INNER)
    return across, down, box[2] - across, box[3] - down


def _unit(box: Box) -> Transform:
    left, top, right, bottom = box
    return np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]], dtype=np.float64)


def is_plausible(transform: Transform, most_squash: float = _MAX_SQUASH) -> bool:
    """Whether an alignment scales and squeezes no more than a copy may."""
    larger, smaller = np.linalg.svd(transform[:2, :2], compute_uv=False)
    return bool(smaller > 1 / MAX_SCALE and larger < MAX_SCALE and larger < most_squash * smaller)


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
