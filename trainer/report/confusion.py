"""Confusion matrices as PNG: which classes are told apart, and what is taken for what."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from trainer.report.strangers import plain

#: Discord's dark theme, as in the charts.
_BACKGROUND, _EMPTY, _TEXT, _DIM = "#2b2d31", "#313338", "#f2f3f5", "#949ba4"
_RIGHT, _WRONG = "#3f94d6", "#d9663f"
#: Side of a cell with 2 and with 40 classes, inches; a cell must hold a count and a share.
_LARGEST_CELL, _SMALLEST_CELL = 1.15, 0.46
_LONGEST_NAME = 20

Counts = Sequence[Sequence[int]]


def draw_confusion(path: Path, *, title: str, class_names: Sequence[str], counts: Counts) -> Path:
    """True classes in rows, predicted ones in columns: pictures, and their share of the row.

    `counts[true][predicted]`, square. The accuracy stands in the title. Made for 2 to 40 classes.
    """
    side = len(class_names)
    cell = max(_SMALLEST_CELL, _LARGEST_CELL * min(1.0, 4 / side) ** 0.5)
    names = [_short(name) for name in class_names]
    longest = max(map(len, names))
    is_turned = longest * 0.085 > cell
    margin = 0.9 + 0.085 * longest
    size = (max(4.6, side * cell + margin + 0.3), side * cell + (margin if is_turned else 1.0) + 0.6)
    figure = Figure(figsize=size, dpi=110, facecolor=_BACKGROUND, layout="constrained")
    axes = figure.subplots()
    axes.imshow([[_colour(counts, row, column) for column in range(side)] for row in range(side)], aspect="equal")
    for row in range(side):
        for column in range(side):
            _write_cell(axes, counts, row, column, cell)
    _label(axes, names, is_turned=is_turned)
    # Names of classes are a stranger's words: `$` begins no formula in them.
    axes.set_title(_escaped(f"{title}\n{_accuracy(counts)}"), color=_TEXT, loc="left", fontsize=12, fontweight="bold")
    return _save(figure, path)


def right_of(counts: Counts) -> tuple[int, int]:
    """Pictures that were told rightly, of how many."""
    return sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))


def confusion_in_words(class_names: Sequence[str], counts: Counts) -> str:
    """The same as a sentence or two, with the commonest mistake."""
    right, total = right_of(counts)
    sentence = f"{right} of {total} pictures are told rightly ({_percent(right, total)})."
    mistakes = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not mistakes:
        return sentence
    count, true, predicted = max(mistakes, key=lambda mistake: (mistake[0], -mistake[1], -mistake[2]))
    return f"{sentence} Most often {class_names[true]} is taken for {class_names[predicted]} ({count})."


def _accuracy(counts: Counts) -> str:
    right, total = right_of(counts)
    return f"{_percent(right, total)} right ({right} of {total})"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _colour(counts: Counts, row: int, column: int) -> tuple[float, ...]:
    total = sum(counts[row])
    share = counts[row][column] / total if total else 0.0
    if not share:
        return to_rgb(_EMPTY)
    # The faintest shade must still be seen.
    strength = 0.18 + 0.82 * share
    target = to_rgb(_RIGHT if row == column else _WRONG)
    return tuple(low + (high - low) * strength for low, high in zip(to_rgb(_EMPTY), target, strict=True))


def _write_cell(axes: Axes, counts: Counts, row: int, column: int, cell: float) -> None:
    count, total = counts[row][column], sum(counts[row])
    large, small = 6 + 9 * (cell - 0.3), 5 + 6 * (cell - 0.3)
    if not count:
        if row == column:
            axes.text(column, row, "0" if total else "–", color=_DIM, fontsize=large, ha="center", va="center")
        return
    axes.text(column, row - 0.14, f"{count:,}", color=_TEXT, fontsize=large, ha="center", va="center")
    share = _percent(count, total)
    axes.text(column, row + 0.24, share, color=_TEXT, alpha=0.85, fontsize=small, ha="center", va="center")


def _label(axes: Axes, names: Sequence[str], *, is_turned: bool) -> None:
    places = range(len(names))
    size = 9 if len(names) > 12 else 10
    shown = [_escaped(name) for name in names]
    axes.set_yticks(places, shown, color=_TEXT, fontsize=size)
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_turned else {}
    axes.set_xticks(places, shown, color=_TEXT, fontsize=size, **turn)
    axes.set_xlabel("taken for", color=_DIM, fontsize=10)
    axes.set_ylabel("true class", color=_DIM, fontsize=10)
    axes.set_xticks([place - 0.5 for place in places], minor=True)
    axes.set_yticks([place - 0.5 for place in places], minor=True)
    axes.grid(which="minor", color=_BACKGROUND, linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    name = plain(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that share a training may draw the same at once: each into a file of its own.
    part = path.with_suffix(f".{os.getpid()}.part")
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes; that is no reason to do without the chart.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(part, format="png")
    part.replace(path)
    return path
