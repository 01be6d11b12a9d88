"""What is measured of one picture by itself: blur, exposure, contrast, text; and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.dataset.images.screenshots import MIN_FLAT_SHARE, NO_TEXT, Text, screenshot_finding, text_in
from trainer.protocol.report import Finding, FindingKind

#: Short side at which a picture is judged, px: what a model that trains at 512 px gets to see of it.
_JUDGED_PX = 512
#: Width of the second blur, px (Zhuo & Sim 2011), and the smallest gradient of an edge that counts: |dx| + |dy| of
#: Sobel, where a sharp step of 16 greys gives 64.
_REBLUR_SIGMA_PX, _MIN_GRADIENT = 1.0, 64
#: Pixels that are looked at for edges, at most: 12,000 tell the percentile as well as 24,000 at half the time.
_MAX_SAMPLES = 12_000
#: Fewer edges say nothing: skies, mist, flat colours.
_MIN_EDGES = 60
#: Blur of the sharpest tenth of the edges, px: of all, and of those that face the worst of four directions.
#: Clean photographs reach 0.8, smoothed drawings 0.9 (docs/dataset-checks.md).
_MAX_BLUR_PX, _MAX_DIRECTION_BLUR_PX = 1.0, 1.2
#: Gradient up to which a pixel is flat; JPEG leaves that much in an even area.
_FLAT_GRADIENT = 2
#: Grey levels, 0 to 255: tuned on 7,000 real pictures. One flat colour has a deviation below `_FLAT_DEVIATION`.
_BLANK_RANGE, _FLAT_DEVIATION = 3, 1.0
_DARK_P99, _PALE_P1, _PALE_RANGE, _DULL_RANGE = 40, 190, 64, 24
#: Above this flat share a pale picture is a drawing on white paper, and no overexposed photograph.
_PAPER_SHARE = 0.8

Grey = NDArray[np.uint8]
Gradient = NDArray[np.int16]
Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measures of one picture, for JSON; `findings_of` says what they mean."""

    #: Blur of the sharpest tenth of the edges, px (sigma) at 512 px; None where there are too few edges.
    blur_p10: float | None
    #: The same of the edges that face the worst of four directions: a moved camera blurs one of them.
    blur_worst_direction: float | None
    #: Edges that were measured.
    edges: int
    #: Percentiles and standard deviation of grey, 0 to 255.
    p1: int
    p99: int
    deviation: float
    #: Share of pixels that differ from no neighbour, 0 to 1.
    flat_share: float
    #: Lines of text, and the share of all marks that are in them, 0 to 1.
    text_lines: int
    text_share: float


@dataclass(frozen=True, kw_only=True)
class _Edges:
    """Blur of each edge, px, and the direction it faces: 0 to 3, in steps of 45°."""

    blur: NDArray[np.float32]
    direction: Places


def measure(pixels: NDArray[np.uint8]) -> Quality:
    """The measures of an upright RGB picture of any size, [H, W, 3].

    On one core 3 ms for a photograph of 512x768 px, 7 ms for one of 4 Mpx; flat pictures are searched for text: 5 ms
    for a drawing of 512x768 px, 25 ms for a full HD screen.
    """
    whole = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    grey = _reduced(whole)
    dx, dy = (np.asarray(gradient, dtype=np.int16) for gradient in cv2.spatialGradient(grey))
    strength = np.asarray(np.abs(dx) + np.abs(dy), dtype=np.int16)
    flat_share = int(np.count_nonzero(strength <= _FLAT_GRADIENT)) / strength.size
    text = text_in(whole) if flat_share >= MIN_FLAT_SHARE else NO_TEXT
    p1, p99, deviation = _exposure(grey)
    edges = _edges(grey, dx, dy, _strong(strength))
    return Quality(
        blur_p10=_blur(edges.blur),
        blur_worst_direction=_worst_direction(edges),
        edges=len(edges.blur),
        p1=p1,
        p99=p99,
        deviation=deviation,
        flat_share=round(flat_share, 3),
        text_lines=text.lines,
        text_share=round(text.share, 3),
    )


def findings_of(quality: Quality) -> list[Finding]:
    """What is worth a word; nothing of it drops a picture, for each has its exceptions."""
    text = Text(lines=quality.text_lines, share=quality.text_share)
    found = (_of_blur(quality), _of_exposure(quality), screenshot_finding(text))
    return [finding for finding in found if finding is not None]


def _of_blur(quality: Quality) -> Finding | None:
    overall, worst = quality.blur_p10, quality.blur_worst_direction
    if overall is not None and overall > _MAX_BLUR_PX:
        message = f"may be blurred: even its sharpest edges are {overall:.1f} px soft at {_JUDGED_PX} px"
        return _warning(FindingKind.BLUR, overall, _MAX_BLUR_PX, message)
    if worst is not None and worst > _MAX_DIRECTION_BLUR_PX:
        message = f"may be blurred by movement: edges across one direction are {worst:.1f} px soft at {_JUDGED_PX} px"
        return _warning(FindingKind.BLUR, worst, _MAX_DIRECTION_BLUR_PX, message)
    return None


def _of_exposure(quality: Quality) -> Finding | None:
    """One finding at most; the range goes first, since a thin drawing on white has hardly any deviation."""
    spread = quality.p99 - quality.p1
    if spread < _BLANK_RANGE:
        is_flat = quality.deviation < _FLAT_DEVIATION
        message = (
            "one flat colour: there is nothing in it to learn, drop it" if is_flat else "nearly all one flat colour"
        )
        return _warning(FindingKind.BLANK, spread, _BLANK_RANGE, message)
    if quality.p99 < _DARK_P99:
        message = f"very dark: its brightest parts reach {quality.p99} of 255"
        return _warning(FindingKind.TOO_DARK, quality.p99, _DARK_P99, message)
    if quality.p1 > _PALE_P1 and spread < _PALE_RANGE and quality.flat_share < _PAPER_SHARE:
        message = f"washed out: all of it is brighter than {quality.p1} of 255"
        return _warning(FindingKind.WASHED_OUT, spread, _PALE_RANGE, message)
    if spread < _DULL_RANGE:
        message = f"hardly any contrast: its darkest and brightest parts are {spread} of 255 apart"
        return _warning(FindingKind.WASHED_OUT, spread, _DULL_RANGE, message)
    return None


def _warning(kind: FindingKind, measured: float, threshold: float, message: str) -> Finding:
    return Finding(kind=kind, measure=measured, threshold=threshold, action="kept", message=message)


def _reduced(grey: Grey) -> Grey:
    """Brought to the size at which it is judged, never enlarged: whole steps by averaging, the rest between pixels.

    Averaging by a fraction alone would cost half as much as all that is measured.
    """
    scale = _JUDGED_PX / min(grey.shape)
    if scale >= 1:
        return grey
    rows, columns = grey.shape
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    whole = int(1 / scale)
    if whole > 1:
        grey = np.ascontiguousarray(grey[: rows // whole * whole, : columns // whole * whole])
        halved = (columns // whole, rows // whole)
        grey = np.asarray(cv2.resize(grey, halved, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _exposure(grey: Grey) -> tuple[int, int, float]:
    """First and last percentile, and the standard deviation."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares, levels = counts.cumsum() / grey.size, np.arange(256)
    mean = float(counts @ levels) / grey.size
    deviation = (float(counts @ (levels - mean) ** 2) / grey.size) ** 0.5
    return int(np.searchsorted(shares, 0.01)), int(np.searchsorted(shares, 0.99)), round(deviation, 2)


def _strong(strength: Gradient) -> Places:
    """Where the gradient is strong, in a flattened picture; evenly thinned out, two pixels off the rim."""
    inner = np.zeros(strength.shape, dtype=np.bool_)
    inner[2:-2, 2:-2] = strength[2:-2, 2:-2] > _MIN_GRADIENT
    places = np.flatnonzero(inner)
    return places[:: max(1, -(-len(places) // _MAX_SAMPLES))]


def _edges(grey: Grey, dx: Gradient, dy: Gradient, places: Places) -> _Edges:
    """The ridges of the gradient among `places`, and their blur: sigma / sqrt(ratio² - 1) (Zhuo & Sim 2011, eq. 5).

    The ratio is that of the gradient before and after a second blur, which softens a sharp edge much and a soft one
    little. Only these places are computed: the whole picture would take three times as long.
    """
    columns = grey.shape[1]
    square = _squared(dx, dy, places)
    angles = np.arctan2(dy.ravel()[places], dx.ravel()[places], dtype=np.float32)
    direction = np.rint(angles * np.float32(4 / np.pi)).astype(np.int64) % 4
    step = np.array([1, columns + 1, columns, columns - 1])[direction]
    is_ridge = (square >= _squared(dx, dy, places + step)) & (square > _squared(dx, dy, places - step))
    places, square, direction = places[is_ridge], square[is_ridge], direction[is_ridge]
    softened = np.asarray(cv2.GaussianBlur(grey, (0, 0), _REBLUR_SIGMA_PX), dtype=np.uint8)
    ratio = square / np.maximum(_squared(*_sobel_at(softened, places), np.arange(len(places))), 1.0)
    # A ratio of 1 is an edge too soft to tell; 10 px stands for it.
    blur = _REBLUR_SIGMA_PX / np.sqrt(np.maximum(ratio - 1.0, (_REBLUR_SIGMA_PX / 10) ** 2))
    return _Edges(blur=blur.astype(np.float32), direction=direction)


def _squared(dx: Gradient, dy: Gradient, places: Places) -> NDArray[np.float32]:
    across, down = dx.ravel()[places].astype(np.float32), dy.ravel()[places].astype(np.float32)
    return across * across + down * down


def _sobel_at(grey: Grey, places: Places) -> tuple[Gradient, Gradient]:
    """Both Sobel responses at some places of the flattened picture."""
    flat, row = grey.ravel().astype(np.int16), grey.shape[1]
    nw, north, ne = (flat[places - row + side] for side in (-1, 0, 1))
    west, east = flat[places - 1], flat[places + 1]
    sw, south, se = (flat[places + row + side] for side in (-1, 0, 1))
    return ne + 2 * east + se - nw - 2 * west - sw, sw + 2 * south + se - nw - 2 * north - ne


def _blur(blur: NDArray[np.float32]) -> float | None:
    return round(float(np.percentile(blur, 10)), 3) if len(blur) >= _MIN_EDGES else None


def _worst_direction(edges: _Edges) -> float | None:
    each = [_blur(edges.blur[edges.direction == direction]) for direction in range(4)]
    return max((blur for blur in each if blur is not None), default=None)
