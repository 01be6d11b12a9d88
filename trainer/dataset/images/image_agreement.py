"""Judges two aligned images by the pixels that both show: whether one is an edited copy of the other.

Both are brought to the same brightness and contrast, and compared block by block. A photograph may be painted over in
part. A drawing may not, as icons of one template differ in little: there, one image must have all edges of the other.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Side of the blocks that are judged, and of the whole image at most, px.
BLOCK_PX, COMPARED_PX = 8, 128
#: Share of the content in which two frames of a burst differ at most, in which something moves.
MAX_DIFFERENCE = 0.55
#: The same for edited copies: photographs, and drawings.
_MAX_PHOTO_DIFFERENCE, _MAX_DRAWING_DIFFERENCE = 0.3, 0.01
#: The same of drawings that have all edges of each other, and of which one has more, painted over the other.
_MAX_UNSHARP_DIFFERENCE, _MAX_OVERLAID = 0.12, 0.7
#: Blocks that may differ in any drawing, where an edge of another sharpness does not fit; but no larger share.
_ALWAYS_ALLOWED, _MAX_ALWAYS_ALLOWED = 1, 0.04
#: Share of a drawing that both must show, of either one; a cropped copy is within its original.
_MIN_SHARED_DRAWING, _MIN_INSIDE = 0.55, 0.94
#: Share of an image that both must show: of one of them, and of the other.
MIN_SHARED, MIN_SHARED_OF_OTHER = 0.53, 0.16
#: Share of the flat areas of a drawing that may have another color, by so many levels; slope up to which they are flat.
_MAX_RECOLORED, _RECOLORED_LEVELS, _FLAT_SLOPE = 0.06, 6, 2.0
#: Difference up to which an alignment is right, and by how much a finer one changes the shares then, at most.
_ALIGNED, _MAX_SHIFT = 0.03, 0.03
#: Blocks that must agree, and correlation of the colors; and up to which they are other colors in any alignment.
_MIN_EQUAL, _MIN_COLORS, _OTHER_COLORS = 6, 0.75, 0.5
#: Largest difference of the channels of a gray image, and contrast of a gray copy relative to the original.
_GRAY_COLOR, _GRAY_GAIN = 8.0, 1.25
#: Flat shares and equal blocks between which a drawing turns into a photograph.
_FLAT_SHARES, _BLOCKS = (0.25, 0.4), (30, 70)
#: Samples of gray that can be fitted at least.
_MIN_FITTED = 16
#: A step of gray up to which neighbors are equal.
_FLAT_LEVELS = 2
#: Difference of a changed pixel relative to the contrast, and changed pixels of a block that differs.
_CHANGED, _CHANGED_PX = 0.3, 8
#: The same of a pixel that shows something else; relative to the range of levels, of one that is opaque; and how many
#: of these a drawing may have.
_OTHER, _OPAQUE, _MAX_PAINTED_OVER = 0.5, 0.58, 8
#: Slope of an edge, levels per px; the share of it that an overlay leaves; pixels, and share, for a block to lose it.
_EDGE_SLOPE, _KEPT_SLOPE, _LOST_PX, _LOST_SHARE = 3.0, 0.3, 5, 0.4
#: Share of the blocks with edges of which a copy with an overlay lacks them, and relative to those that it adds; these.
_MAX_LOST, _MAX_LOST_OF_ADDED, _MIN_ADDED = 0.04, 0.15, 0.04
#: Pixels of edges that shine through an overlay at least, and of its area; share of the width or height that it spans.
_MIN_CROSSED, _MIN_CROSSED_SHARE, _MIN_ACROSS = 30, 0.02, 0.4
#: Blocks next to the border, the place of signatures.
_RING = 2
#: Levels next to the darkest and lightest that may be clipped, and the least difference of these.
_CLIPPED_LEVELS, _MIN_RANGE = 4, 8
#: Pixels that tell brightness and contrast: 2,000 tell the same as all 16,000 in a fifth of the time. Levels by which a
#: pixel differs at most when fits are compared.
_SAMPLES, _MOST_GAP = 2_000, 30


class _Added(Enum):
    """What one of two aligned drawings has more than the other."""

    NOTHING = auto()
    OVERLAY = auto()
    MOTIF = auto()


class Agreement:
    """How well two aligned images of one size agree."""

    def __init__(
        self,
        levels: tuple[Float, Float, float],
        shown: Mask,
        *,
        is_gray: tuple[bool, bool],
        flat_share: float,
        shared: tuple[float, float],
    ) -> None:
        """Compare two images.

        Args:
            levels: Both as [H, W, 3] at the same brightness and contrast, and the gain that brought them there.
            shown: Pixels that both show.
            is_gray: Whether they had no color.
            flat_share: The lower `flat_share` of them.
            shared: Share of either image that both show, the smaller and the larger one.
        """
        self._shown, self._is_gray, self._flat_share, self._shared = shown, is_gray, flat_share, shared
        self._gain = levels[2]
        self._rgb = levels[:2]
        self._one, self._other = map(_gray, self._rgb)
        inside = shown.astype(np.uint8)
        spreads = [float(cv2.meanStdDev(gray, mask=inside)[1][0, 0]) for gray in (self._one, self._other)]
        self._contrast = max(6.0, (max(spreads[0], 1.0) * max(spreads[1], 1.0)) ** 0.5)
        self._is_equal, self._is_different = self._block_verdicts()
        self.equal, self.different = int(self._is_equal.sum()), int(self._is_different.sum())

    @property
    def difference(self) -> float:
        """Share of the content that differs, 0 to 1."""
        return self.different / max(1, self.equal + self.different)

    @property
    def _richness(self) -> float:
        """From 0, a drawing or little to compare, to 1, a photograph."""
        return min(_texture(self._flat_share), float(np.interp(self.equal, _BLOCKS, (0.0, 1.0))))

    @property
    def is_aligned(self) -> bool:
        """Whether the images agree in what both show."""
        return self.equal >= _BLOCKS[0] and self.difference <= _ALIGNED

    @property
    def is_settled(self) -> bool:
        """Whether aligned images show too little of each other, or other colors, which a finer alignment leaves so."""
        less, more = self._shared
        nearly = less + _MAX_SHIFT, more + _MAX_SHIFT
        return self.is_aligned and (not _share_enough(nearly, self._richness) or self._colors < _OTHER_COLORS)

    def is_same(self, *, are_consecutive: bool = False) -> bool:
        """Whether one image is an edited copy of the other, or another frame of one burst."""
        richness = self._richness
        if self.equal < _MIN_EQUAL or not _share_enough(self._shared, richness):
            return False
        is_gray_copy = self._is_gray[0] != self._is_gray[1]
        if is_gray_copy and not 1 / _GRAY_GAIN < self._gain < _GRAY_GAIN:
            return False
        content = self.equal + self.different
        most = MAX_DIFFERENCE if are_consecutive else _MAX_PHOTO_DIFFERENCE
        # What a drawing allows takes the longest to compute, and is needed for few pairs.
        if self.different > max(np.interp(richness, (0.0, 1.0), (_MAX_OVERLAID, most)) * content, _ALWAYS_ALLOWED):
            return False
        # One character on another ground, or drawn larger, is another image.
        if self._recolored > np.interp(richness, (0.0, 1.0), (_MAX_RECOLORED, 1.0)) or self._colors < _MIN_COLORS:
            return False
        return bool(self.different <= np.interp(richness, (0.0, 1.0), (self._allowed_in_drawing, most * content)))

    @cached_property
    def _color(self) -> tuple[Float, Float]:
        """The colors of both, [H, W, 2]."""
        one, other = map(_chroma, self._rgb)
        return one, other

    @cached_property
    def _recolored(self) -> float:
        """Share of the areas that are flat in both images that have another gray or color."""
        steepest: Float = np.zeros_like(self._one)
        for slope in (*_slopes(self._one), *_slopes(self._other)):
            np.maximum(steepest, np.abs(slope), out=steepest)
        flat = self._shown & (cv2.dilate(steepest, np.ones((3, 3), np.uint8)) < _FLAT_SLOPE)
        is_other = cv2.absdiff(self._one, self._other) > _RECOLORED_LEVELS
        is_other |= cv2.max(*cv2.split(cv2.absdiff(*self._color))) > _RECOLORED_LEVELS
        return float(is_other[flat].mean()) if flat.any() else 0.0

    @cached_property
    def _colors(self) -> float:
        """Correlation of the colors where they agree, -1 to 1; 1 if one of the images is gray."""
        if any(self._is_gray):
            return 1.0
        where = np.kron(self._is_equal, np.ones((BLOCK_PX, BLOCK_PX), dtype=np.bool_))
        height, width = where.shape
        one, other = (each[:height, :width][where] for each in self._color)
        return float(np.vdot(one, other)) / max(1e-6, float(np.linalg.norm(one) * np.linalg.norm(other)))

    @cached_property
    def _allowed_in_drawing(self) -> float:
        """Blocks in which two drawings may differ; below 0 if they are not the same in any case."""
        content = self.equal + self.different
        added = self._added_edges
        low, high = _levels(self._one[self._shown])
        if added is _Added.OVERLAY and self._painted_over(_OPAQUE * (high - low)) <= _MAX_PAINTED_OVER:
            return _MAX_OVERLAID * content
        if self._painted_over(_OTHER * self._contrast) > _MAX_PAINTED_OVER:
            return -1.0
        if added is _Added.NOTHING:
            return _MAX_UNSHARP_DIFFERENCE * content
        return max(_MAX_DRAWING_DIFFERENCE * content, min(_ALWAYS_ALLOWED, _MAX_ALWAYS_ALLOWED * content))

    def _painted_over(self, least: float) -> int:
        """Count the pixels that differ by so many levels, except near the border, the place of signatures."""
        margin = _RING * BLOCK_PX
        changed = _changed(self._one, self._other, self._shown, least, thickness_px=3)
        return int(np.count_nonzero(changed[margin:-margin, margin:-margin]))

    @cached_property
    def _added_edges(self) -> _Added:
        """What the edges tell that only one of two drawings has.

        A watermark adds edges, and those of the original shine through, or it is a signature near the border. Another
        motif also lacks some.
        """
        one, other = (_blurred(each) for each in (self._one, self._other))
        slopes = [np.stack(_slopes(each)) for each in (one, other)]
        along = (slopes[0] * slopes[1]).sum(axis=0)
        kept, is_lost, shares = [], [], []
        for each in slopes:
            strength = (each**2).sum(axis=0)
            edges = self._shown & (strength > max(_EDGE_SLOPE, 0.06 * self._contrast) ** 2)
            kept.append(edges & (along > _KEPT_SLOPE * strength))
            count, left = map(_block_counts, (edges, kept[-1]))
            is_lost.append(count - left >= np.maximum(_LOST_PX, _LOST_SHARE * count))
            shares.append(float(is_lost[-1].sum() / max(1, np.count_nonzero(count >= _LOST_PX))))
        if max(shares) == 0:
            return _Added.NOTHING
        plain, marked = (0, 1) if shares[0] <= shares[1] else (1, 0)
        if shares[plain] > min(_MAX_LOST, _MAX_LOST_OF_ADDED * shares[marked]):
            return _Added.MOTIF
        changed = _changed(one, other, self._shown, _CHANGED / 2 * self._contrast, thickness_px=2)
        covered = cv2.dilate(changed, np.ones((3, 3), np.uint8)) > 0
        crossed = np.count_nonzero(kept[plain] & covered)
        is_added = self._is_different | is_lost[marked]
        if not is_added[_RING:-_RING, _RING:-_RING].any():
            return _Added.OVERLAY
        shines_through = crossed >= max(_MIN_CROSSED, _MIN_CROSSED_SHARE * covered.sum())
        # An emblem is small, and a watermark runs across.
        runs_across = max(
            np.ptp(where) / size for where, size in zip(np.nonzero(is_added), is_added.shape, strict=True)
        )
        is_overlay = shines_through and shares[marked] >= _MIN_ADDED and runs_across >= _MIN_ACROSS
        return _Added.OVERLAY if is_overlay else _Added.MOTIF

    def _block_verdicts(self) -> tuple[Mask, Mask]:
        """Blocks with texture that are equal, and blocks that differ."""
        changed = _changed(self._one, self._other, self._shown, _CHANGED * self._contrast, thickness_px=3)
        mean, other_mean = _block_means(self._one), _block_means(self._other)
        spread, other_spread = (
            np.sqrt(np.maximum(_block_means(gray * gray) - of_blocks * of_blocks, 0.0))
            for gray, of_blocks in ((self._one, mean), (self._other, other_mean))
        )
        weaker, stronger = np.minimum(spread, other_spread), np.maximum(spread, other_spread)
        covariance = _block_means(self._one * self._other) - mean * other_mean
        correlation = covariance / np.maximum(1e-3, weaker * stronger)
        textured = max(3.0, 0.08 * self._contrast)
        is_off = (weaker > textured) | (stronger > 0.3 * self._contrast)
        whole = _block_means(self._shown) > 0.7
        is_different = whole & ((_block_counts(changed) >= _CHANGED_PX) | (is_off & (correlation < 0.5)))
        return whole & (stronger > textured) & ~is_different & (correlation > 0.8), is_different


def may_be_same(shared: tuple[float, float], flat_share: float) -> bool:
    """Whether two images that share so much of each other may be the same, if all of it agrees; see `Agreement`."""
    return _share_enough(shared, _texture(flat_share))


def _texture(flat_share: float) -> float:
    """From 0, a drawing, to 1, a photograph."""
    return float(np.interp(flat_share, _FLAT_SHARES, (1.0, 0.0)))


def _share_enough(shared: tuple[float, float], richness: float) -> bool:
    least = np.interp(richness, (0.0, 1.0), (_MIN_SHARED_DRAWING, MIN_SHARED_OF_OTHER))
    least_inside = np.interp(richness, (0.0, 1.0), (_MIN_INSIDE, MIN_SHARED))
    return bool(shared[0] >= least and shared[1] >= least_inside)


def agreement_of(
    one: Float, other: Float, shown: Mask, *, flat_share: float, shared: tuple[float, float]
) -> Agreement | None:
    """Compare two aligned images [H, W, 3]; None if they have nothing in common. For the others, see `Agreement`."""
    is_gray = _is_gray(one, shown), _is_gray(other, shown)
    if any(is_gray):
        one, other = (cv2.merge([_gray(each)] * 3).astype(np.float32, copy=False) for each in (one, other))
    if (levels := _same_levels(one, other, shown)) is None:
        return None
    return Agreement(levels, shown, is_gray=is_gray, flat_share=flat_share, shared=shared)


def flat_share(gray: Float) -> float:
    """Share of pixels that equal their neighbors, 0 to 1: low in photographs, high in drawings."""
    across, down = np.abs(np.diff(gray, axis=1))[:-1], np.abs(np.diff(gray, axis=0))[:, :-1]
    return float(((across + down) <= _FLAT_LEVELS).mean())


def _same_levels(one: Float, other: Float, shown: Mask) -> tuple[Float, Float, float] | None:
    """Bring both [H, W, 3] to the brightness and contrast of the higher contrast; and the gain that does it.

    None if they are unlike. Clipped pixels are left out of the fit if that explains more; and levels that only one
    image has left are clipped in both.
    """
    inside = np.flatnonzero(shown)
    inside = inside[:: max(1, len(inside) // _SAMPLES)]
    samples, other_samples = (np.ascontiguousarray(each.reshape(-1, 3)[inside]) for each in (one, other))
    gray, other_gray = (_gray(each[:, None]).ravel() for each in (samples, other_samples))
    exposed = _is_exposed(samples) & _is_exposed(other_samples)
    fits = [_linear_fit(gray, other_gray)]
    if not exposed.all():
        fits.append(_linear_fit(gray[exposed], other_gray[exposed]))
    possible = [fit for fit in fits if fit is not None]
    if not possible:
        return None
    gain, offset = min(possible, key=lambda fit: _dissimilarity(gray, other_gray, *fit))
    lows, highs = zip(*map(_levels, _leveled(samples, other_samples, gain, offset)), strict=True)
    if min(highs) - max(lows) < _MIN_RANGE:
        return None
    leveled = _leveled(one, other, gain, offset)
    first, second = (np.clip(each, max(lows), min(highs), dtype=np.float32) for each in leveled)
    return first, second, gain


def _leveled(one: Float, other: Float, gain: float, offset: float) -> tuple[Float, Float]:
    """Raise the lower contrast: `gain` and `offset` turn `other` into `one`."""
    return (one, other * gain + offset) if gain >= 1 else ((one - offset) / gain, other)


def _dissimilarity(gray: Float, other_gray: Float, gain: float, offset: float) -> float:
    """The mean difference of gray levels at the lower contrast, where neither is clipped."""
    first, second = _leveled(gray, other_gray, gain, offset)
    low, high = max(first.min(), second.min()), min(first.max(), second.max())
    gap = np.abs(np.clip(first, low, high) - np.clip(second, low, high))
    return float(np.minimum(gap, _MOST_GAP).mean()) / max(gain, 1 / gain)


def _levels(samples: Float) -> tuple[float, float]:
    """The darkest and the lightest level, apart from a few pixels."""
    # `np.percentile` takes five times as long.
    ordered = np.sort(samples, axis=None)
    return float(ordered[len(ordered) // 100]), float(ordered[-1 - len(ordered) // 100])


def _is_exposed(samples: Float) -> Mask:
    """Samples [N, 3] that are surely not clipped: an image that was made paler later is clipped below white."""
    low, high = _levels(samples)
    red, green, blue = samples.T
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    return np.asarray((least > low + _CLIPPED_LEVELS) & (most < high - _CLIPPED_LEVELS))


def _linear_fit(one: Float, other: Float) -> tuple[float, float] | None:
    """Gain and offset that turn gray levels into others; pixels that fit worst, such as an overlay, are left out."""
    used: Mask = np.ones(len(one), dtype=np.bool_)
    gain, offset = 1.0, 0.0
    for _ in range(4):
        first, second = one[used], other[used]
        if len(second) < _MIN_FITTED:
            return None
        mean, other_mean = float(first.mean()), float(second.mean())
        first, second = first - mean, second - other_mean
        spread = float(second @ second) / len(second)
        if spread < 1:
            return None
        gain = float(first @ second) / len(second) / spread
        offset = mean - gain * other_mean
        gap = np.abs(one - gain * other - offset)
        before, used = used, gap <= max(8.0, 2 * float(np.partition(gap, len(gap) // 2)[len(gap) // 2]))
        if np.array_equal(used, before):
            break
    return (gain, offset) if 0.2 < gain < 5 else None


def _changed(one: Float, other: Float, shown: Mask, least: float, thickness_px: int) -> NDArray[np.uint8]:
    """Pixels that differ by more than half a pixel of misalignment explains, without thinner lines."""
    slope = cv2.dilate(cv2.magnitude(*_slopes(other)), np.ones((3, 3), np.uint8))
    is_changed = (cv2.absdiff(one, other) - 0.7 * slope > least) & shown
    brush = np.ones((thickness_px, thickness_px), np.uint8)
    return np.asarray(cv2.morphologyEx(is_changed.astype(np.uint8), cv2.MORPH_OPEN, brush), dtype=np.uint8)


def _blurred(gray: Float) -> Float:
    return np.asarray(cv2.GaussianBlur(gray, (0, 0), 0.8), dtype=np.float32)


def _slopes(gray: Float) -> list[NDArray[Any]]:
    """The gradient of a gray image in levels per px: horizontal, vertical."""
    return [cv2.Sobel(gray, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0)]


def _gray(rgb: Float) -> Float:
    """Y of [H, W, 3] (ITU-R BT.601)."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.float32)


def _chroma(rgb: Float) -> Float:
    """Cr and Cb, [H, W, 2] (ITU-R BT.601)."""
    _luma, *chroma = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    return np.asarray(cv2.merge(chroma), dtype=np.float32) - np.float32(0.5)


def _is_gray(pixels: Float, shown: Mask) -> bool:
    """Whether [H, W, 3] has no color there, apart from a few pixels."""
    red, green, blue = cv2.split(pixels)
    least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    return bool(np.count_nonzero((most - least > _GRAY_COLOR) & shown) <= 0.01 * np.count_nonzero(shown))


def _block_means(values: NDArray[Any]) -> Float:
    """Means of the whole blocks of [H, W]."""
    rows, columns = values.shape[0] // BLOCK_PX, values.shape[1] // BLOCK_PX
    whole = values[: rows * BLOCK_PX, : columns * BLOCK_PX].astype(np.float32, copy=False)
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _block_counts(where: NDArray[Any]) -> Float:
    """Pixels of each block where a mask is set."""
    return np.asarray(np.rint(_block_means(where) * np.float32(BLOCK_PX**2)), dtype=np.float32)
