"""Aligns two images and compares them: whether one is an edited copy of the other (cropped, framed, turned, marked).

An alignment is guessed from matched keypoints or from the layout, refined on the pixels, and judged by the pixels that
both images show. Images of one template, which agree in the frame and differ in the motif, fail there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Share of the content in which two frames of a burst differ at most, in which something moves.
MAX_DIFFERENCE = 0.55
#: The same for edited copies: photographs, and drawings.
_MAX_PHOTO_DIFFERENCE, _MAX_DRAWING_DIFFERENCE = 0.3, 0.02
#: Blocks that may differ in any drawing, where an edge of another sharpness does not fit; but no larger share.
_ALWAYS_ALLOWED, _MAX_ALWAYS_ALLOWED = 1, 0.04

#: Longest side at which two images are compared, of the blocks that are judged, and of the patch for guesses, px.
_COMPARED_PX, _BLOCK_PX, _PATCH_PX = 128, 8, 24
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
#: Share of an image that both must show: of one of them, and of the other.
_MIN_SHARED, _MIN_SHARED_OF_OTHER = 0.5, 0.15
#: The same of drawings; and the share of their flat areas that may have another color, by so many levels.
_MIN_SHARED_DRAWING, _MAX_RECOLORED, _RECOLORED_LEVELS = 0.55, 0.06, 6
#: Of one of the drawings both must show as much: a cropped copy is within its original.
_MIN_INSIDE = 0.88
#: Slope up to which a pixel is flat, levels per px.
_FLAT_SLOPE = 2.0
#: Share of the border of an image that is cropped away for a guess.
_INNER = 0.1
#: Blocks that must agree, and correlation of the colors.
_MIN_EQUAL, _MIN_COLORS = 6, 0.75
#: Contrast of a gray copy relative to the original.
_GRAY_GAIN = 1.25
#: Flat shares and equal blocks between which a drawing turns into a photograph.
_FLAT_SHARES, _BLOCKS = (0.25, 0.4), (30, 70)
#: Difference of a changed pixel relative to the contrast, and changed pixels of a block that differs.
_CHANGED, _CHANGED_PX = 0.3, 8
#: Mean strength of the colors of a gray image.
_GRAY_COLOR = 3.0
#: A step of gray up to which neighbors are equal.
_FLAT_LEVELS = 2
#: Gray level from which a pixel may be overexposed.
_WHITE = 250
#: Difference up to which a second, finer alignment is tried.
_NEARLY_SAME = 0.5
#: Loaded images in memory: 0.3 MB each.
_LOADED = 128

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
#: A 3x3 matrix that maps pixels of one image to those of another.
Transform = NDArray[np.float64]
#: Left, top, right, bottom, px.
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well two aligned images agree, in blocks of 8x8 px that both show."""

    #: Blocks with texture that agree, and those that show something else.
    equal: int
    different: int
    #: Correlation of the colors where they agree, -1 to 1; 1 if one of the images is gray.
    colors: float
    #: Whether just one of the images is gray; and the contrast of one relative to the other.
    is_gray_copy: bool
    gain: float
    #: Share of pixels that equal their neighbors, 0 to 1: low in photographs, high in drawings.
    flat_share: float
    #: Share of the flat areas that have another color, 0 to 1.
    recolored: float
    #: Share of either image that both show, the smaller and the larger one.
    shared: tuple[float, float]

    @property
    def difference(self) -> float:
        """Share of the content that differs, 0 to 1."""
        return self.different / max(1, self.equal + self.different)

    def is_same(self, *, are_consecutive: bool = False) -> bool:
        """Whether one image is an edited copy of the other, or another frame of one burst.

        In a photograph, whose texture agrees nowhere by chance, more may be painted over than in a drawing: icons of
        one template differ in little.
        """
        texture = float(np.interp(self.flat_share, _FLAT_SHARES, (1.0, 0.0)))
        richness = min(texture, float(np.interp(self.equal, _BLOCKS, (0.0, 1.0))))
        # One character on another ground, or drawn larger, is another image.
        if self.recolored > np.interp(richness, (0.0, 1.0), (_MAX_RECOLORED, 1.0)):
            return False
        least = np.interp(richness, (0.0, 1.0), (_MIN_SHARED_DRAWING, _MIN_SHARED_OF_OTHER))
        least_inside = np.interp(richness, (0.0, 1.0), (_MIN_INSIDE, _MIN_SHARED))
        if self.shared[0] < least or self.shared[1] < least_inside:
            return False
        most = MAX_DIFFERENCE if are_consecutive else _MAX_PHOTO_DIFFERENCE
        limit = float(np.interp(richness, (0.0, 1.0), (_MAX_DRAWING_DIFFERENCE, most)))
        content = self.equal + self.different
        allowed = max(limit * content, min(_ALWAYS_ALLOWED, _MAX_ALWAYS_ALLOWED * content))
        has_same_levels = not self.is_gray_copy or 1 / _GRAY_GAIN < self.gain < _GRAY_GAIN
        has_same_colors = self.colors >= _MIN_COLORS and has_same_levels
        return self.equal >= _MIN_EQUAL and has_same_colors and self.different <= allowed


class ComparedImage:
    """A thumbnail, and what is computed of it once for all comparisons."""

    def __init__(self, thumbnail: Image.Image) -> None:
        self._pixels = np.asarray(thumbnail.convert("RGB"))
        height, width = self._pixels.shape[:2]
        self._scale = _COMPARED_PX / max(height, width)
        size = max(_BLOCK_PX, round(width * self._scale)), max(_BLOCK_PX, round(height * self._scale))
        small = np.asarray(cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        #: a and b of CIELAB.
        self.ab: Float = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)[..., 1:].astype(np.float32) - np.float32(128)
        self.gray: Float = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.flat_share = _flat_share(self.gray)
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
            or (rows[-1] - rows[0] < _BLOCK_PX)
            or (columns[-1] - columns[0] < _BLOCK_PX)
        ):
            break
        if (len(inner), inner.shape[1]) == (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1):
            break
        left, right = left + int(columns[0]), left + int(columns[-1]) + 1
        top, bottom = top + int(rows[0]), top + int(rows[-1]) + 1
    return left, top, right, bottom


def _flat_share(gray: Float) -> float:
    across, down = np.abs(np.diff(gray, axis=1))[:-1], np.abs(np.diff(gray, axis=0))[:, :-1]
    return float(((across + down) <= _FLAT_LEVELS).mean())


def _has_content(pixels: NDArray[np.uint8], axis: int) -> NDArray[np.int64]:
    """Indices of the rows (axis 1) or columns (axis 0) that have more than one color."""
    most, least = (cv2.reduce(pixels, axis, kind).reshape(-1, 3) for kind in (cv2.REDUCE_MAX, cv2.REDUCE_MIN))
    return np.flatnonzero(cv2.subtract(most, least).max(axis=1) > _BORDER_LEVELS)


class ThumbnailComparer:
    """Compares thumbnails by the number of their image; the last ones that were loaded stay in memory."""

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self._paths = paths
        # One cache each: another comparer's files may have the same paths.
        self._loaded = lru_cache(maxsize=_LOADED)(self._load)

    def difference(self, one: int, other: int, *, are_consecutive: bool = False) -> float | None:
        """Share of the content in which two images differ, 0 to 1; None if they do not show the same.

        Args:
            one: Number of an image.
            other: Number of the other one.
            are_consecutive: Whether they may be frames of a burst.
        """
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
    shared: Mask = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0).astype(np.bool_)
    enlarged = abs(float(np.linalg.det(transform[:2, :2])))
    of_one, of_other = float(shared.mean()), float(shared.sum()) * enlarged / other.gray.size
    if max(of_one, of_other) < _MIN_SHARED or min(of_one, of_other) < _MIN_SHARED_OF_OTHER:
        return None
    warped = np.asarray(cv2.warpAffine(other.gray, matrix, (width, height), flags=flags), dtype=np.float32)
    if (levels := _same_levels(one.gray, warped, shared)) is None:
        return None
    first, second, gain = levels
    is_equal, is_different = _block_verdicts(first, second, shared)
    colors = np.asarray(cv2.warpAffine(other.ab, matrix, (width, height), flags=flags), dtype=np.float32)
    where = np.kron(is_equal, np.ones((_BLOCK_PX, _BLOCK_PX), dtype=np.bool_))
    height, width = where.shape
    is_gray = [_color_strength(each[:height, :width][where]) < _GRAY_COLOR for each in (one.ab, colors)]
    # Colors become stronger with the contrast.
    gap = one.ab - gain * colors if gain >= 1 else one.ab / gain - colors
    return Agreement(
        equal=int(np.count_nonzero(is_equal)),
        different=int(np.count_nonzero(is_different)),
        colors=1.0 if any(is_gray) else _correlation(one.ab[:height, :width][where], colors[:height, :width][where]),
        is_gray_copy=is_gray[0] != is_gray[1],
        gain=gain,
        flat_share=min(one.flat_share, other.flat_share),
        recolored=_recolored_share(first, second, None if any(is_gray) else gap, shared),
        shared=(min(of_one, of_other), max(of_one, of_other)),
    )


def _recolored_share(one: Float, other: Float, colors: Float | None, shared: Mask) -> float:
    """Share of the pixels that are flat in both images and differ in gray or color, of those that are flat in both."""
    slopes = [cv2.Sobel(gray, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for gray in (one, other) for dx in (1, 0)]
    flat = shared & (cv2.dilate(np.abs(slopes).max(axis=0), np.ones((3, 3), np.uint8)) < _FLAT_SLOPE)
    is_other = np.abs(one - other) > _RECOLORED_LEVELS
    if colors is not None:
        is_other |= np.abs(colors).max(axis=2) > _RECOLORED_LEVELS
    return float(is_other[flat].mean()) if flat.any() else 0.0


def _same_levels(one: Float, other: Float, shared: Mask) -> tuple[Float, Float, float] | None:
    """Bring both to the same brightness and contrast, the higher; and the gain that does it. None if they are unlike.

    Pixels that fit worst, such as an overlay, and overexposed ones are left out of the fit.
    """
    exposed = shared & (one < _WHITE) & (other < _WHITE)
    if np.count_nonzero(exposed) < _BLOCK_PX**2:
        exposed = shared
    used, gain, offset = exposed, 1.0, 0.0
    for _ in range(4):
        first, second = one[used], other[used]
        spread = float(second.var()) if len(second) >= _BLOCK_PX**2 else 0.0
        if spread < 1:
            return None
        gain = float(((first - first.mean()) * (second - second.mean())).mean()) / spread
        offset = float(first.mean()) - gain * float(second.mean())
        gap = np.abs(one - gain * other - offset)
        used = exposed & (gap <= max(8.0, 2 * float(np.median(gap[exposed]))))
    if not 0.2 < gain < 5:
        return None
    if gain >= 1:
        return one, np.clip(gain * other + offset, 0, 255), gain
    return np.clip((one - offset) / gain, 0, 255), other, gain


def _block_verdicts(one: Float, other: Float, shared: Mask) -> tuple[Mask, Mask]:
    """Blocks with texture that are equal, and blocks that differ."""
    contrast = max(6.0, (max(float(one[shared].std()), 1.0) * max(float(other[shared].std()), 1.0)) ** 0.5)
    # Half a pixel of misalignment explains this much of a difference.
    across, down = (cv2.Sobel(other, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    slope = cv2.dilate(np.hypot(across, down), np.ones((3, 3), np.uint8))
    gap = np.maximum(0, np.abs(one - other) - 0.7 * slope)
    # What is left at an edge of a pixel or two is no change.
    changed = (gap > _CHANGED * contrast) & shared
    changed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    first, second = (each - each.mean(axis=(1, 3), keepdims=True) for each in (_blocks(one), _blocks(other)))
    weaker, stronger = np.sort([np.sqrt((each**2).mean(axis=(1, 3))) for each in (first, second)], axis=0)
    correlation = (first * second).mean(axis=(1, 3)) / np.maximum(1e-3, weaker * stronger)
    textured = max(3.0, 0.08 * contrast)
    is_off = (weaker > textured) | (stronger > 0.3 * contrast)
    whole = _blocks(shared.astype(np.float32)).mean(axis=(1, 3)) > 0.7
    is_different = whole & ((_blocks(changed).sum(axis=(1, 3)) >= _CHANGED_PX) | (is_off & (correlation < 0.5)))
    return whole & (stronger > textured) & ~is_different & (correlation > 0.8), is_different


def _blocks(values: NDArray[Any]) -> NDArray[Any]:
    """[H, W] as [rows, 8, columns, 8]."""
    n = _BLOCK_PX
    rows, columns = values.shape[0] // n, values.shape[1] // n
    return values[: rows * n, : columns * n].reshape(rows, n, columns, n)


def _color_strength(ab: Float) -> float:
    return float(np.hypot(ab[:, 0], ab[:, 1]).mean()) if len(ab) else 0.0


def _correlation(one: Float, other: Float) -> float:
    return float(np.vdot(one, other)) / max(1e-6, float(np.linalg.norm(one) * np.linalg.norm(other)))
