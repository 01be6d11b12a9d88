"""Confusion matrices as PNG, and their description in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from trainer.protocol.text import _, ngettext
from trainer.report.charts import plain, save_figure
from trainer.report.gallery import BACKGROUND, drawn
from trainer.report.templating import sanitize

_EMPTY, _TEXT, _DIM = "#313338", "#f2f3f5", "#949ba4"
_RIGHT, _WRONG = "#3f94d6", "#d9663f"
#: Side of a cell with 2 and with 40 classes, inches; a cell holds a count and a share.
_LARGEST_CELL, _SMALLEST_CELL = 1.15, 0.46
_LONGEST_NAME = 20

ConfusionMatrix = Sequence[Sequence[int]]


@drawn
def draw_confusion(path: Path, *, title: str, class_names: Sequence[str], counts: ConfusionMatrix) -> Path:
    """Draw the true classes in rows and the predicted ones in columns; each cell has a count and its share of the row.

    Args:
        path: PNG.
        title: The accuracy is added in a second line.
        class_names: 2 to 40.
        counts: Square: `counts[true][predicted]`.
    """
    side = len(class_names)
    cell = max(_SMALLEST_CELL, _LARGEST_CELL * min(1.0, 4 / side) ** 0.5)
    names = [_short(name) for name in class_names]
    longest = max(map(len, names))
    is_turned = longest * 0.085 > cell
    margin = 0.9 + 0.085 * longest
    size = (max(4.6, side * cell + margin + 0.3), side * cell + (margin if is_turned else 1.0) + 0.6)
    figure = Figure(figsize=size, dpi=110, facecolor=BACKGROUND, layout="constrained")
    axes = figure.subplots()
    axes.imshow([[_color(counts, row, column) for column in range(side)] for row in range(side)], aspect="equal")
    for row in range(side):
        for column in range(side):
            _write_cell(axes, counts, row, column, cell)
    _label(axes, names, is_turned=is_turned)
    # Class names come from users: `$` must not begin a formula.
    axes.set_title(plain(f"{title}\n{_accuracy(counts)}"), color=_TEXT, loc="left", fontsize=12, fontweight="bold")
    return save_figure(figure, path)


def correct_of(counts: ConfusionMatrix) -> tuple[int, int]:
    """Return the number of correct predictions, and of all."""
    return sum(row[index] for index, row in enumerate(counts)), sum(map(sum, counts))


def describe_confusion(class_names: Sequence[str], counts: ConfusionMatrix) -> str:
    """Describe the accuracy and the most frequent mistake in a sentence or two."""
    correct, total = correct_of(counts)
    sentence = _(
        "{correct} of {images} are classified correctly ({share}).",
        correct=correct,
        images=ngettext("{n} image", "{n} images", total),
        share=_percent(correct, total),
    )
    mistakes = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not mistakes:
        return sentence
    count, true, predicted = max(mistakes, key=lambda mistake: (mistake[0], -mistake[1], -mistake[2]))
    mistake = _(
        "The most frequent mistake: {true} is taken for {predicted} ({n}).",
        true=class_names[true],
        predicted=class_names[predicted],
        n=count,
    )
    return f"{sentence} {mistake}"


def _accuracy(counts: ConfusionMatrix) -> str:
    correct, total = correct_of(counts)
    return _("{share} correct ({n} of {total})", share=_percent(correct, total), n=correct, total=total)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _color(counts: ConfusionMatrix, row: int, column: int) -> tuple[float, ...]:
    total = sum(counts[row])
    share = counts[row][column] / total if total else 0.0
    if not share:
        return to_rgb(_EMPTY)
    # The faintest shade must still be seen.
    strength = 0.18 + 0.82 * share
    target = to_rgb(_RIGHT if row == column else _WRONG)
    return tuple(low + (high - low) * strength for low, high in zip(to_rgb(_EMPTY), target, strict=True))


def _write_cell(axes: Axes, counts: ConfusionMatrix, row: int, column: int, cell: float) -> None:
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
    indexes = range(len(names))
    size = 9 if len(names) > 12 else 10
    shown = [plain(name) for name in names]
    axes.set_yticks(indexes, shown, color=_TEXT, fontsize=size)
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_turned else {}
    axes.set_xticks(indexes, shown, color=_TEXT, fontsize=size, **turn)
    axes.set_xlabel(_("taken for"), color=_DIM, fontsize=10)
    axes.set_ylabel(_("true class"), color=_DIM, fontsize=10)
    axes.set_xticks([index - 0.5 for index in indexes], minor=True)
    axes.set_yticks([index - 0.5 for index in indexes], minor=True)
    axes.grid(which="minor", color=BACKGROUND, linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    name = sanitize(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
