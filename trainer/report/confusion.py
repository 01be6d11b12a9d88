"""Confusion matrices as PNG, and their description in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from trainer.protocol.text import _, ngettext, percent, sanitize
from trainer.report.charts import LETTERS, TITLE_LETTERS, new_figure, plain, save_figure
from trainer.report.gallery import BACKGROUND, drawn

_EMPTY, _TEXT, _DIM = "#313338", "#f2f3f5", "#949ba4"
_RIGHT, _WRONG = "#3f94d6", "#d9663f"
#: A phone shows 900 px on 285: letters of 10 points are 11 px there. So many classes leave room for a share in each
#: cell, for a count, and for nothing but its color.
_WITH_SHARES, _WITH_COUNTS = 4, 8
#: Height of a row, inches, in these three cases.
_ROW_HEIGHTS = (0.56, 0.34, 0.2)
_LONGEST_NAME = 14
#: Classes whose numbers fit below the columns.
_NUMBERED_COLUMNS = 7

ConfusionMatrix = Sequence[Sequence[int]]


@drawn
def draw_confusion(path: Path, *, title: str, class_names: Sequence[str], counts: ConfusionMatrix) -> Path:
    """Draw the true classes in rows and the predicted ones in columns, to be read on a phone.

    Few classes have a count and its share of the row in each cell, more a count, and many only its color; the share
    of correct answers stands beside each row.

    Args:
        path: PNG.
        title: The accuracy is added in a second line.
        class_names: 2 to 40.
        counts: Square: `counts[true][predicted]`.
    """
    side = len(class_names)
    row_height = _ROW_HEIGHTS[(side > _WITH_SHARES) + (side > _WITH_COUNTS)]
    figure = new_figure(side * row_height + 1.15)
    axes = figure.subplots()
    axes.imshow([[_color(counts, row, column) for column in range(side)] for row in range(side)], aspect="auto")
    if side <= _WITH_COUNTS:
        for row in range(side):
            for column in range(side):
                _write_cell(axes, counts, row, column, has_share=side <= _WITH_SHARES)
    _label(axes, [_short(name) for name in class_names], counts)
    # Class names come from users: `$` must not begin a formula.
    heading = plain(f"{title}\n{_accuracy(counts)}")
    figure.suptitle(heading, color=_TEXT, x=0.03, ha="left", fontsize=TITLE_LETTERS, fontweight="bold")
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
    return percent(part / whole) if whole else "–"


def _color(counts: ConfusionMatrix, row: int, column: int) -> tuple[float, ...]:
    total = sum(counts[row])
    share = counts[row][column] / total if total else 0.0
    if not share:
        return to_rgb(_EMPTY)
    # The faintest shade must still be seen.
    strength = 0.18 + 0.82 * share
    target = to_rgb(_RIGHT if row == column else _WRONG)
    return tuple(low + (high - low) * strength for low, high in zip(to_rgb(_EMPTY), target, strict=True))


def _write_cell(axes: Axes, counts: ConfusionMatrix, row: int, column: int, *, has_share: bool) -> None:
    count, total = counts[row][column], sum(counts[row])
    style: dict[str, Any] = {"fontsize": LETTERS, "ha": "center", "va": "center"}
    if not count:
        if row == column:
            axes.text(column, row, "0" if total else "–", color=_DIM, **style)
        return
    text = f"{count:,}\n{_percent(count, total)}" if has_share else f"{count:,}"
    axes.text(column, row, text, color=_TEXT, linespacing=1.1, **style)


def _label(axes: Axes, names: Sequence[str], counts: ConfusionMatrix) -> None:
    side = len(names)
    indexes = range(side)
    is_short = side <= _WITH_SHARES and max(map(len, names)) <= 24 // side
    # Where names do not fit below the columns, rows and columns have numbers.
    rows = [plain(name if is_short else f"{name} · {index + 1}") for index, name in enumerate(names)]
    axes.set_yticks(indexes, rows, color=_TEXT, fontsize=LETTERS)
    step = -(-side // _NUMBERED_COLUMNS)
    columns = [plain(names[index]) if is_short else str(index + 1) for index in indexes]
    axes.set_xticks(indexes[::step], columns[::step], color=_TEXT, fontsize=LETTERS)
    axes.set_xlabel(_("taken for"), color=_DIM, fontsize=LETTERS)
    axes.set_ylabel(_("true class"), color=_DIM, fontsize=LETTERS)
    if side > _WITH_SHARES:
        for row, line in enumerate(counts):
            share = _percent(line[row], sum(line))
            axes.text(side - 0.4, row, share, color=_DIM, fontsize=LETTERS, ha="left", va="center")
    axes.set_xticks([index - 0.5 for index in indexes], minor=True)
    axes.set_yticks([index - 0.5 for index in indexes], minor=True)
    axes.grid(which="minor", color=BACKGROUND, linewidth=2 if side <= _WITH_COUNTS else 1)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    name = sanitize(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
