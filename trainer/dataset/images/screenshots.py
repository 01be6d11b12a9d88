"""Is a picture mostly text, or a capture of a screen? Lines of small, even marks on exactly flat paper."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.protocol.report import Finding, FindingKind

#: Share of flat pixels below which nobody need look for text: photographs end here, and pay nothing more.
MIN_FLAT_SHARE = 0.35
#: Lines of text, and share of all marks that are in them, from which on a picture is mostly text; of few lines, nearly
#: everything must be text, or it is a poster.
_MIN_LINES, _MIN_TEXT_SHARE = 5, 0.45
_FEW_LINES, _FEW_LINES_SHARE = 10, 0.85
#: Short side at which text is looked for at most, px: at 512 px one screenshot in five has letters too small to find.
_MAX_SHORT_PX = 768
#: Smallest step of grey at a mark's edge.
_MIN_CONTRAST = 36
#: Gap between words that is bridged; lengths from which a straight line is a rule or a border, and no letter; px.
_WORD_GAP_PX, _RULE_ACROSS_PX, _RULE_DOWN_PX = 7, 120, 60
#: Height of a line of text, px, and its length in heights.
_MIN_HEIGHT_PX, _MAX_HEIGHT_PX, _MIN_LENGTH = 4, 48, 2.2
#: Strokes that a row of it meets on a stretch as long as the line is high, and the share of its area that is marked.
_STROKES, _FILL = (0.8, 6.0), (0.2, 0.85)
#: Likeness of a line to itself some way on (autocorrelation): rows of windows, dots and waves reach 0.95, text 0.7.
_MAX_REPETITION, _LINES_TRIED = 0.85, 40
#: Share of lines that begin or stand level with two others, px: labels on a map and hatching do not.
_MIN_ALIGNED, _LEVEL_PX = 0.35, 2

Grey = NDArray[np.uint8]
#: Left, top, width, height, area, px: the columns of `cv2.CC_STAT_*`.
Boxes = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Text:
    """What was found of text in a picture."""

    lines: int
    #: Share of all marks that are in those lines, 0 to 1.
    share: float


NO_TEXT = Text(lines=0, share=0.0)


def text_in(grey: Grey) -> Text:
    """Lines of upright text in a grey picture [H, W]; costs by its marks, 2 ms for a drawing to 20 ms for a screen."""
    marks = _marks(_reduced(grey))
    total = int(np.count_nonzero(marks))
    if total == 0:
        return NO_TEXT
    words = cv2.morphologyEx(marks, cv2.MORPH_CLOSE, np.ones((1, _WORD_GAP_PX), np.uint8))
    # Every other column is enough to find the boxes, at half the time.
    _, _, boxes, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(words[:, ::2]), connectivity=8)
    doubled = np.asarray(boxes[1:], dtype=np.int32) * np.array([2, 1, 2, 1, 2], dtype=np.int32)
    lines, inside = _lines(marks, doubled)
    share = min(1.0, float(inside.sum()) / total)
    is_candidate = len(lines) >= _MIN_LINES and share >= _MIN_TEXT_SHARE
    if is_candidate and (_is_pattern(marks, lines) or _aligned_share(lines) < _MIN_ALIGNED):
        return NO_TEXT
    return Text(lines=len(lines), share=share)


def screenshot_finding(text: Text) -> Finding | None:
    """A warning, if a picture with so much text is mostly text."""
    threshold = _MIN_TEXT_SHARE if text.lines >= _FEW_LINES else _FEW_LINES_SHARE
    if text.lines < _MIN_LINES or text.share < threshold:
        return None
    message = f"looks like a screenshot or a page: {text.lines} lines of text hold {text.share:.0%} of what is drawn"
    return Finding(
        kind=FindingKind.SCREENSHOT,
        measure=text.share,
        threshold=threshold,
        action="kept",
        message=f"{message}; a model would learn to draw letters",
    )


def _reduced(grey: Grey) -> Grey:
    scale = _MAX_SHORT_PX / min(grey.shape)
    if scale >= 1:
        return grey
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _marks(grey: Grey) -> Grey:
    """1 where something is drawn; window borders and the rules of a table are not."""
    # A 2x2 window: the usual 3x3 one fills the gaps between letters, and words become bars.
    steps = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    marks = np.asarray(cv2.threshold(steps, _MIN_CONTRAST, 1, cv2.THRESH_BINARY)[1], dtype=np.uint8)
    down = cv2.morphologyEx(marks, cv2.MORPH_OPEN, np.ones((_RULE_DOWN_PX, 1), np.uint8))
    marks &= ~np.asarray(down, dtype=np.uint8)
    _erase_rules_across(marks)
    return marks


def _erase_rules_across(marks: Grey) -> None:
    """Set long runs of marks in a row to 0: what an opening does, in a tenth of its time."""
    padded = np.pad(marks, ((0, 0), (0, 1))).ravel()
    ends = np.flatnonzero(np.diff(padded, prepend=np.uint8(0)))
    runs = ends.reshape(-1, 2)
    for start, stop in runs[runs[:, 1] - runs[:, 0] >= _RULE_ACROSS_PX]:
        row, column = divmod(int(start), marks.shape[1] + 1)
        marks[row, column : column + int(stop - start)] = 0


def _lines(marks: Grey, boxes: Boxes) -> tuple[Boxes, NDArray[np.int64]]:
    """Those of the boxes that hold a line of text, and the marks within each."""
    width, height = boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]
    boxes = boxes[(height >= _MIN_HEIGHT_PX) & (height <= _MAX_HEIGHT_PX) & (width >= _MIN_LENGTH * height)]
    if len(boxes) < _MIN_LINES:
        return boxes[:0], np.zeros(0, dtype=np.int64)
    width, height = boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]
    starts = np.zeros_like(marks)
    starts[:, 1:] = marks[:, 1:] & ~marks[:, :-1]
    inside = _sums(marks, boxes)
    strokes, fill = _sums(starts, boxes) / width, inside / (width * height)
    is_text = (strokes > _STROKES[0]) & (strokes < _STROKES[1]) & (fill > _FILL[0]) & (fill < _FILL[1])
    return boxes[is_text], inside[is_text]


def _is_pattern(marks: Grey, lines: Boxes) -> bool:
    """Whether most lines repeat themselves, as no text does."""
    tried = lines[:: -(-len(lines) // _LINES_TRIED)]
    strips = (marks[top : top + height, left : left + width] for left, top, width, height, _ in tried)
    return float(np.median([_repetition(strip) for strip in strips])) > _MAX_REPETITION


def _repetition(strip: Grey) -> float:
    """Highest autocorrelation of the marks along a line beyond the width of one stroke."""
    profile = strip.sum(axis=0).astype(np.float64)
    profile -= profile.mean()
    length = len(profile)
    likeness = np.correlate(profile, profile, "full")[length - 1 :] / np.arange(length, 0, -1)
    if likeness[0] <= 0:
        return 1.0
    # At the longest shifts too little is left to compare.
    likeness = likeness[: max(4, int(length * 0.6))] / likeness[0]
    beyond = np.flatnonzero(likeness < 0)
    return float(likeness[beyond[0] :].max()) if len(beyond) else 0.0


def _aligned_share(lines: Boxes) -> float:
    left, bottom = lines[:, cv2.CC_STAT_LEFT], lines[:, cv2.CC_STAT_TOP] + lines[:, cv2.CC_STAT_HEIGHT]
    return float(np.mean(_has_two_level(left) | _has_two_level(bottom)))


def _has_two_level(edges: NDArray[np.int32]) -> NDArray[np.bool_]:
    ordered = np.sort(edges)
    below = np.searchsorted(ordered, edges - _LEVEL_PX, "left")
    return np.asarray(np.searchsorted(ordered, edges + _LEVEL_PX, "right") - below >= 3)


def _sums(mask: Grey, boxes: Boxes) -> NDArray[np.int64]:
    """Sum of a mask over each box."""
    table = np.asarray(cv2.integral(mask), dtype=np.int64)
    left, top = boxes[:, cv2.CC_STAT_LEFT], boxes[:, cv2.CC_STAT_TOP]
    # Boxes were found on every other column, and may reach one past the rim.
    right = np.minimum(left + boxes[:, cv2.CC_STAT_WIDTH], mask.shape[1])
    bottom = top + boxes[:, cv2.CC_STAT_HEIGHT]
    return np.asarray(table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left])
