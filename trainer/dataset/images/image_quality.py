"""Measures single images (blur, exposure, contrast, lines of text) and warns of what is unusual.

Nothing found here drops an image: each finding has its exceptions. Rates: docs/dataset-checks.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import Finding, FindingKind
from trainer.protocol.text import _, percent

#: Short side at which an image is judged, px: what a model that trains at 512 px sees of it.
_JUDGED_PX = 512
#: Width of the second blur, px (Zhuo & Sim 2011): five binomial weights, in half the time of a Gaussian of 1.0, act
#: like one of 1.025 where the limits below are. And the smallest gradient of an edge, |dx| + |dy| of Sobel, where a
#: sharp step of 16 gray levels gives 64.
_REBLUR_SIGMA_PX, _REBLUR_WEIGHTS, _MIN_GRADIENT = 1.025, 5, 64
#: Most edge pixels that are measured: 12,000 give the same percentile as 24,000 in half the time.
_MAX_SAMPLES = 12_000
#: Bands of so many rows, half or a quarter of all. Blur is measured in half of the rows, where these have so many edge
#: pixels; the rows of a band at each seam that its neighbors disturb: the second blur reaches 2 px, Sobel one.
_BAND_PX, _HALF_EVERY_PX, _QUARTER_EVERY_PX, _MIN_BAND_SAMPLES, _SEAM_PX = 32, 64, 128, 5_000, 3
#: With fewer edges (skies, mist, flat colors) blur is not judged.
_MIN_EDGES = 60
#: Blur of the sharpest tenth of the edges, px: of all edges, and of those in the worst of four directions.
#: Clean photographs reach 0.8, smoothed drawings 0.9.
_MAX_BLUR_PX, _MAX_DIRECTION_BLUR_PX = 1.0, 1.2
#: Where the angles around a direction end, 22.5° from it.
_TAN_22_5 = np.float32(2**0.5 - 1)
#: Gradient up to which a pixel is flat; JPEG leaves that much in an even area.
_FLAT_GRADIENT = 2
#: Gray levels, 0 to 255, tuned on 7,000 real images. One flat color has a deviation below `_FLAT_DEVIATION`.
_BLANK_RANGE, _FLAT_DEVIATION = 3, 1.0
_DARK_P99, _PALE_P1, _PALE_RANGE, _DULL_RANGE = 40, 190, 64, 24
#: Above this flat share a pale image is a drawing on white paper and no overexposed photograph.
_PAPER_SHARE = 0.8

#: Flat share below which text is not searched for: photographs end here and cost nothing more.
_MIN_FLAT_SHARE = 0.35
#: Lines of text, and share of all marks in them, from which an image is mostly text; with few lines nearly everything
#: must be text, or it is a poster.
_MIN_LINES, _MIN_TEXT_SHARE = 5, 0.45
_FEW_LINES, _FEW_LINES_SHARE = 10, 0.85
#: The same in a quarter of the rows, where the whole image is worth a search: 500 pages, file managers and screens
#: have 5 lines and 0.57 at least.
_MIN_GLANCED_LINES, _MIN_GLANCED_SHARE = 2, 0.35
#: Short side at which text is searched for, px: at 512 px the letters of one screenshot in five are too small.
_TEXT_PX = 768
#: Smallest step of gray at the edge of a mark.
_MIN_CONTRAST = 36
#: Gap between words that is closed, and lengths from which a straight line is a rule or border and no letter, px.
_WORD_GAP_PX, _RULE_ACROSS_PX, _RULE_DOWN_PX = 7, 120, 60
#: Height of a line of text, px, and its length in heights.
_MIN_HEIGHT_PX, _MAX_HEIGHT_PX, _MIN_LENGTH = 4, 48, 2.2
#: Strokes per pixel of length and height, and share of its area that is marked.
_STROKES, _FILL = (0.8, 6.0), (0.2, 0.85)
#: Autocorrelation along a line: rows of windows, dots and waves reach 0.95, text 0.7.
_MAX_REPETITION, _LINES_SAMPLED = 0.85, 40
#: Share of lines that are aligned with two others on the left or at the bottom: labels on a map are not.
_MIN_ALIGNED, _ALIGNED_PX = 0.35, 2

Gray = NDArray[np.uint8]
Gradient = NDArray[np.int16]
#: Indices into a flattened image.
Positions = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measures of one image, stored as JSON; `quality_findings` interprets them."""

    #: Blur of the sharpest tenth of the edges, px (sigma) at 512 px; None with too few edges.
    blur_p10: float | None
    #: The same for the edges in the worst of four directions: a moved camera blurs one of them.
    blur_worst_direction: float | None
    #: Edges that were measured.
    edges: int
    #: Percentiles and standard deviation of gray, 0 to 255.
    p1: int
    p99: int
    deviation: float
    #: Share of pixels that equal their neighbors, 0 to 1.
    flat_share: float
    #: Lines of text, and the share of all marks in them, 0 to 1; both are 0 where it is too little for a warning.
    text_lines: int = 0
    text_share: float = 0.0


def measure_quality(pixels: NDArray[np.uint8]) -> Quality:
    """Measure an upright RGB image of any size, [H, W, 3].

    On one core: 2 ms for a photograph of 512x768 px, 6 ms for one of 4 Mpx. Flat images may be searched for text: 4 ms
    for a drawing of 512x768 px, 15 ms for a full HD screen.
    """
    scale = min(1.0, _JUDGED_PX / min(pixels.shape[:2]))
    bands = _bands(pixels, scale, _HALF_EVERY_PX)
    edges = None if bands is None else _edges(bands, _BAND_PX)
    if edges is None or len(edges.positions) < _MIN_BAND_SAMPLES:
        gray = reduced(_gray(pixels), scale)
        edges = _edges(gray, len(gray))
    may_be_text = edges.flat_share >= _MIN_FLAT_SHARE and _may_be_text(pixels)
    lines, text_share = find_text(_gray(pixels)) if may_be_text else (0, 0.0)
    p1, p99, deviation = _exposure(edges.gray)
    blur, direction = _edge_blur(edges)
    by_direction = [_blur_p10(blur[direction == each]) for each in range(4)]
    return Quality(
        blur_p10=_blur_p10(blur),
        blur_worst_direction=max((width for width in by_direction if width is not None), default=None),
        edges=len(blur),
        p1=p1,
        p99=p99,
        deviation=deviation,
        flat_share=round(edges.flat_share, 3),
        text_lines=lines,
        text_share=round(text_share, 3),
    )


def _gray(pixels: NDArray[np.uint8]) -> Gray:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def quality_findings(quality: Quality) -> list[Finding]:
    """The warnings that follow from the measures, at most one of each group: blur, exposure, text."""
    found = (_blur_finding(quality), _exposure_finding(quality), _screenshot_finding(quality))
    return [finding for finding in found if finding is not None]


def _blur_finding(quality: Quality) -> Finding | None:
    overall, worst = quality.blur_p10, quality.blur_worst_direction
    if overall is not None and overall > _MAX_BLUR_PX:
        return _warning(FindingKind.BLUR, overall, _MAX_BLUR_PX, _("even its sharpest edges are soft"))
    if worst is not None and worst > _MAX_DIRECTION_BLUR_PX:
        text = _("its edges are soft in one direction, as if the camera had moved")
        return _warning(FindingKind.BLUR, worst, _MAX_DIRECTION_BLUR_PX, text)
    return None


def _exposure_finding(quality: Quality) -> Finding | None:
    """The range goes first, since a thin drawing on white has hardly any deviation."""
    spread = quality.p99 - quality.p1
    if spread < _BLANK_RANGE:
        is_flat = quality.deviation < _FLAT_DEVIATION
        text = _("one flat color: there is nothing to learn, drop it") if is_flat else _("nearly all one flat color")
        return _warning(FindingKind.BLANK, spread, _BLANK_RANGE, text)
    if quality.p99 < _DARK_P99:
        text = _("even its brightest parts have only {share} of full brightness", share=percent(quality.p99 / 255))
        return _warning(FindingKind.TOO_DARK, quality.p99, _DARK_P99, text)
    if quality.p1 > _PALE_P1 and spread < _PALE_RANGE and quality.flat_share < _PAPER_SHARE:
        text = _("even its darkest parts have {share} of full brightness", share=percent(quality.p1 / 255))
        return _warning(FindingKind.WASHED_OUT, spread, _PALE_RANGE, text)
    if spread < _DULL_RANGE:
        text = _("hardly any contrast: its brightness varies by only {share}", share=percent(spread / 255))
        return _warning(FindingKind.WASHED_OUT, spread, _DULL_RANGE, text)
    return None


def _screenshot_finding(quality: Quality) -> Finding | None:
    threshold = _MIN_TEXT_SHARE if quality.text_lines >= _FEW_LINES else _FEW_LINES_SHARE
    if quality.text_lines < _MIN_LINES or quality.text_share < threshold:
        return None
    text = _("looks like a screenshot or a page of text: {n} lines of text", n=quality.text_lines)
    return _warning(FindingKind.SCREENSHOT, quality.text_share, threshold, text)


def _warning(kind: FindingKind, measured: float, threshold: float, message: str) -> Finding:
    return Finding(kind=kind, measure=measured, threshold=threshold, action="kept", message=message)


def reduced(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Scale gray or RGB pixels down, never up: halves by averaging, the rest bilinear.

    Averaging by any other factor takes three to six times as long.
    """
    if share >= 1:
        return pixels
    height, width = pixels.shape[:2]
    return _reduced_to(pixels, (max(1, round(width * share)), max(1, round(height * share))))


def _reduced_to(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    while pixels.shape[1] >= 2 * size[0] and pixels.shape[0] >= 2 * size[1]:
        rows, columns = pixels.shape[0] // 2, pixels.shape[1] // 2
        halved = cv2.resize(pixels[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
        pixels = np.asarray(halved, dtype=np.uint8)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _exposure(gray: Gray) -> tuple[int, int, float]:
    """First and last percentile, and the standard deviation."""
    # Every seventh row has the same percentiles, to one level; every eighth would be in phase with the blocks of JPEG.
    sampled = np.ascontiguousarray(gray[::7])
    shares = cv2.calcHist([sampled], [0], None, [256], [0, 256]).ravel().astype(np.float64).cumsum() / sampled.size
    deviation = float(cv2.meanStdDev(gray)[1][0, 0])
    return int(np.searchsorted(shares, 0.01)), int(np.searchsorted(shares, 0.99)), round(deviation, 2)


@dataclass(frozen=True, kw_only=True)
class _Edges:
    """The gradient of an image, and where it is strong."""

    gray: Gray
    dx: Gradient
    dy: Gradient
    positions: Positions
    #: Share of pixels that equal their neighbors, 0 to 1.
    flat_share: float


def _bands(pixels: NDArray[np.uint8], scale: float, every_px: int) -> Gray | None:
    """Evenly spaced bands of rows in gray, one below the other; None if the image is too low for two of them.

    Args:
        pixels: RGB.
        scale: By which it is scaled down.
        every_px: From one band to the next, then.
    """
    height, width = pixels.shape[:2]
    band, every = round(_BAND_PX / scale), round(every_px / scale)
    count = (height - band) // every + 1
    if count < 2:
        return None
    top = (height - band - (count - 1) * every) // 2
    rows = np.concatenate([pixels[start : start + band] for start in range(top, height, every)][:count])
    return _reduced_to(_gray(rows), (max(1, round(width * scale)), count * _BAND_PX))


def _edges(gray: Gray, band_px: int) -> _Edges:
    """Find the edges of an image that consists of bands, away from its borders and from the seams of the bands."""
    dx, dy = _gradient(gray)
    strength = np.abs(dx) + np.abs(dy)
    margin = _SEAM_PX if band_px < len(gray) else 2
    inner = strength.reshape(-1, band_px, gray.shape[1])[:, margin:-margin]
    flat = int(np.count_nonzero(inner <= _FLAT_GRADIENT)) / max(1, inner.size)
    is_strong = strength > _MIN_GRADIENT
    is_strong[:, :2] = is_strong[:, -2:] = False
    bands = is_strong.reshape(-1, band_px, gray.shape[1])
    bands[:, :margin] = bands[:, -margin:] = False
    found = np.flatnonzero(is_strong)
    positions = found[:: max(1, -(-len(found) // _MAX_SAMPLES))]
    return _Edges(gray=gray, dx=dx, dy=dy, positions=positions, flat_share=flat)


def _gradient(gray: Gray) -> tuple[Gradient, Gradient]:
    """Sobel's responses across and down."""
    dx, dy = cv2.spatialGradient(gray)
    return np.asarray(dx, dtype=np.int16), np.asarray(dy, dtype=np.int16)


def _edge_blur(edges: _Edges) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Blur (px) and direction (0 to 3, in steps of 45°) at the ridges of the gradient.

    sigma / sqrt(ratio² - 1) with the ratio of the gradient before and after a second blur (Zhuo & Sim 2011, eq. 5): it
    softens a sharp edge much and a soft one little.
    """
    dx, dy, positions, columns = edges.dx, edges.dy, edges.positions, edges.gray.shape[1]
    across, down = dx.ravel()[positions].astype(np.float32), dy.ravel()[positions].astype(np.float32)
    square = across * across + down * down
    direction = _directions(across, down)
    step = np.array([1, columns + 1, columns, columns - 1])[direction]
    is_ridge = (square >= _squared(dx, dy, positions + step)) & (square > _squared(dx, dy, positions - step))
    ridges = np.flatnonzero(is_ridge)
    positions, square, direction = positions[ridges], square[ridges], direction[ridges]
    softened = np.asarray(cv2.GaussianBlur(edges.gray, (_REBLUR_WEIGHTS, _REBLUR_WEIGHTS), 0), dtype=np.uint8)
    ratio = square / np.maximum(_squared(*_gradient(softened), positions), 1.0)
    # At a ratio of 1 the edge is too soft to measure; 10 px stands for it.
    blur = _REBLUR_SIGMA_PX / np.sqrt(np.maximum(ratio - 1.0, (_REBLUR_SIGMA_PX / 10) ** 2))
    return blur.astype(np.float32), direction


def _directions(across: NDArray[np.float32], down: NDArray[np.float32]) -> NDArray[np.int64]:
    """Angles in steps of 45°, 0 to 3: opposite ones are the same. In a sixth of the time of `arctan2`."""
    level, upright = np.abs(across), np.abs(down)
    is_diagonal = (upright > _TAN_22_5 * level) & (level > _TAN_22_5 * upright)
    is_falling = (across > 0) != (down > 0)
    return np.where(is_diagonal, 1 + 2 * is_falling, 2 * (upright > level)).astype(np.int64)


def _squared(dx: Gradient, dy: Gradient, positions: Positions) -> NDArray[np.float32]:
    across, down = dx.ravel()[positions].astype(np.float32), dy.ravel()[positions].astype(np.float32)
    return across * across + down * down


def _blur_p10(blur: NDArray[np.float32]) -> float | None:
    if len(blur) < _MIN_EDGES:
        return None
    # `np.percentile` takes ten times as long.
    rank = len(blur) // 10
    return round(float(np.partition(blur, rank)[rank]), 3)


def _may_be_text(pixels: NDArray[np.uint8]) -> bool:
    """Whether a quarter of the rows looks like text."""
    gray = _bands(pixels, min(1.0, _TEXT_PX / min(pixels.shape[:2])), _QUARTER_EVERY_PX)
    if gray is None:
        return True
    marks = _steps(gray)
    # Lines end at the seams; and no upright line is as long as a band is high.
    marks.reshape(-1, _BAND_PX, marks.shape[1])[:, 0] = 0
    marks = _without_rules(marks, _RULE_ACROSS_PX, is_upright=False)
    boxes, inside = _line_boxes(marks)
    return len(boxes) >= _MIN_GLANCED_LINES and inside.sum() >= _MIN_GLANCED_SHARE * np.count_nonzero(marks)


def find_text(gray: Gray) -> tuple[int, float]:
    """Count the lines of upright text in [H, W], and measure the share of all marks in them.

    Text is lines of small, even marks on flat paper that do not repeat themselves and are aligned with each other.
    2 ms for a drawing to 20 ms for a screen.
    """
    marks = _marks(reduced(gray, _TEXT_PX / min(gray.shape)))
    boxes, inside = _line_boxes(marks)
    all_marks = max(1, int(np.count_nonzero(marks)))
    # Too little for a warning: this spares most drawings the rest, which takes a third of the time.
    if len(boxes) < _MIN_LINES or inside.sum() < _MIN_TEXT_SHARE * all_marks:
        return 0, 0.0
    starts = np.zeros_like(marks)
    starts[:, 1:] = marks[:, 1:] & ~marks[:, :-1]
    strokes = _box_sums(starts, boxes) / boxes[:, 2]
    is_text = (strokes > _STROKES[0]) & (strokes < _STROKES[1])
    lines, share = boxes[is_text], float(inside[is_text].sum()) / all_marks
    if len(lines) >= _MIN_LINES and share >= _MIN_TEXT_SHARE and (_is_pattern(marks, lines) or not _is_aligned(lines)):
        return 0, 0.0
    return len(lines), min(1.0, share)


def _line_boxes(marks: Gray) -> tuple[Positions, NDArray[np.int64]]:
    """Boxes (left, top, width, height) that may be lines of text by their shape and filling, and the marks in each."""
    words = cv2.morphologyEx(marks, cv2.MORPH_CLOSE, np.ones((1, _WORD_GAP_PX), np.uint8))
    # Every other column is enough to find the boxes, in half the time.
    halved = np.ascontiguousarray(words[:, ::2])
    # OpenCV's default takes twice as long.
    found = cv2.connectedComponentsWithStatsWithAlgorithm(halved, 8, cv2.CV_32S, cv2.CCL_BBDT)[2]
    boxes = np.asarray(found[1:, :4], dtype=np.int64) * (2, 1, 2, 1)
    width, height = boxes[:, 2], boxes[:, 3]
    boxes = boxes[(height >= _MIN_HEIGHT_PX) & (height <= _MAX_HEIGHT_PX) & (width >= _MIN_LENGTH * height)]
    inside = _box_sums(marks, boxes)
    fill = inside / (boxes[:, 2] * boxes[:, 3])
    is_filled = (fill > _FILL[0]) & (fill < _FILL[1])
    return boxes[is_filled], inside[is_filled]


def _marks(gray: Gray) -> Gray:
    """1 where something is drawn, but for straight lines such as window borders and the rules of a table."""
    return _without_rules(
        _without_rules(_steps(gray), _RULE_DOWN_PX, is_upright=True), _RULE_ACROSS_PX, is_upright=False
    )


def _steps(gray: Gray) -> Gray:
    """1 at the edges of what is drawn."""
    # A 2x2 window: the usual 3x3 one fills the gaps between letters and turns words into bars.
    steps = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    return np.asarray(cv2.threshold(steps, _MIN_CONTRAST, 1, cv2.THRESH_BINARY)[1], dtype=np.uint8)


def _without_rules(marks: Gray, length_px: int, *, is_upright: bool) -> Gray:
    """Clear straight lines of this length, upright ones or level ones; at the border, of half of it."""
    # A line shows in five of these rows (or columns) in a row: most images have none, and few columns (or rows) do.
    every = length_px // 7
    sampled = np.ascontiguousarray(marks[::every] if is_upright else marks[:, ::every])
    five, whole = ((5, 1), (length_px, 1)) if is_upright else ((1, 5), (1, length_px))
    indices = np.flatnonzero(cv2.erode(sampled, np.ones(five, np.uint8)).any(axis=0 if is_upright else 1))
    if len(indices):
        where = (slice(None), indices) if is_upright else (indices, slice(None))
        found = np.ascontiguousarray(marks[where])
        lines = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones(whole, np.uint8))
        marks = marks.copy()
        marks[where] = found & ~np.asarray(lines, dtype=np.uint8)
    return marks


def _box_sums(mask: Gray, boxes: Positions) -> NDArray[np.int64]:
    """Sum of a mask over each box (left, top, width, height)."""
    table = cv2.integral(mask)
    left, top, width, height = boxes.T
    # Boxes were found on every other column and may reach one column beyond the border.
    right, bottom = np.minimum(left + width, mask.shape[1]), top + height
    sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return np.asarray(sums, dtype=np.int64)


def _is_pattern(marks: Gray, lines: Positions) -> bool:
    """Whether most lines repeat themselves, which text does not."""
    sampled = lines[:: -(-len(lines) // _LINES_SAMPLED)]
    strips = (marks[top : top + height, left : left + width] for left, top, width, height in sampled)
    return float(np.median([_repetition(strip) for strip in strips])) > _MAX_REPETITION


def _repetition(strip: Gray) -> float:
    """Highest autocorrelation of the marks along a line beyond the width of one stroke."""
    profile = strip.sum(axis=0).astype(np.float64)
    profile -= profile.mean()
    length = len(profile)
    correlation = np.correlate(profile, profile, "full")[length - 1 :] / np.arange(length, 0, -1)
    if correlation[0] <= 0:
        return 1.0
    # The longest shifts leave too little to compare.
    correlation = correlation[: max(4, int(length * 0.6))] / correlation[0]
    beyond = np.flatnonzero(correlation < 0)
    return float(correlation[beyond[0] :].max()) if len(beyond) else 0.0


def _is_aligned(lines: Positions) -> bool:
    """Whether enough lines have the left or bottom edge of two others."""
    left, top, _width, height = lines.T
    aligned = np.zeros(len(lines), dtype=np.bool_)
    for edges in (left, top + height):
        ordered = np.sort(edges)
        below = np.searchsorted(ordered, edges - _ALIGNED_PX, "left")
        aligned |= np.searchsorted(ordered, edges + _ALIGNED_PX, "right") - below >= 3
    return float(aligned.mean()) >= _MIN_ALIGNED
