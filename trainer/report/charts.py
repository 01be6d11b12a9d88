"""Loss charts as PNG: of one training by epoch, of its noise levels, and of all runs of a study.

A channel shows a chart 550 px wide on a desktop and 285 px wide on a phone; the letters have 11 px there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Protocol

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trainer.exchange.files import atomic_write
from trainer.protocol.events import EpochEnded
from trainer.protocol.text import _, by_level, gain
from trainer.report.gallery import BACKGROUND, drawn
from trainer.report.study_page import MeanCurve, RunCurve


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colors of a chart, each at least 3:1 against the background, and text at least 4.5:1."""

    background: str
    text: str
    grid: str
    validation: str
    training: str
    #: Of another hue than the line that runs through it.
    interval: str
    best: str
    stop: str
    #: Of the runs of a study, distinct in lightness too, for color-blind readers; all further runs are gray.
    runs: tuple[str, ...]
    further_runs: str


#: Discord's dark theme, so that a chart blends into the channel.
DARK = Theme(
    background=BACKGROUND,
    text="#f2f3f5",
    grid="#3f4147",
    validation="#5bb5f5",
    training="#c58af9",
    interval="#9a9da3",
    best="#f0b232",
    stop="#f47b67",
    runs=("#5bb5f5", "#f58d5b", "#7ddc9a", "#e583b4", "#b9a3ff", "#e3dd7a", "#4fc4bb", "#d9a08a"),
    further_runs="#8e9297",
)
#: The light theme of the pages.
LIGHT = Theme(
    background="#ffffff",
    text="#17191d",
    grid="#dfe2e8",
    validation="#0f6cb4",
    training="#7b3fc9",
    interval="#7d838c",
    best="#a86800",
    stop="#c23b22",
    runs=("#0f6cb4", "#b84a12", "#1f7a3d", "#b0306f", "#6247c2", "#7d7400", "#0b7a72", "#8a4b32"),
    further_runs="#70757e",
)
#: Inches and points at `_DPI`: 900 px, of which a phone shows a third.
_WIDTH, _HEIGHT, _DPI = 3.6, 3.3, 250
LETTERS, TITLE_LETTERS = 10.1, 12
#: Fonts with Chinese characters, if one of them is installed.
_CJK_FAMILIES = ("Noto Sans CJK SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")
#: Letters of a title and of a line of the legend.
_TITLE_ROOM, _LEGEND_ROOM = 29, 34
#: Runs that the legend of a study names.
_NAMED_RUNS = 9


class ChartPoint(Protocol):
    """One epoch of a loss chart."""

    @property
    def epoch(self) -> int: ...
    @property
    def ratio(self) -> float:
        """Validation loss over the base model's."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `ratio`."""

    @property
    def train_ratio(self) -> float | None:
        """The ratio on the training images; None if it was not measured."""


@drawn
def draw_loss_chart(
    path: Path,
    points: Sequence[ChartPoint],
    *,
    best_epoch: int,
    total_epochs: int,
    between: Sequence[tuple[float, float]] = (),
    stages: Sequence[tuple[int, str]] = (),
    stopped_at: int | None = None,
    theme: Theme = DARK,
) -> Path:
    """Draw the validation loss as a share of the base model's, by epoch; the base model is epoch 0, at 100 %.

    Args:
        points: One for each epoch.
        best_epoch: Marked with a star, unless it is 0.
        total_epochs: The planned length.
        between: Validations within an epoch: epochs done as a float, and the ratio.
        stages: The first epoch of each stage and its name.
        stopped_at: The epoch of an early stop.
    """
    figure = new_figure(_HEIGHT, theme)
    axes = figure.subplots()
    _draw_ratios(axes, points, between, theme)
    _label_end(axes, points, total_epochs, theme)
    _mark_best(axes, points, best_epoch, theme)
    _frame_ratios(axes, points, between)
    axes.set_xlabel(_("epoch"), fontsize=LETTERS)
    axes.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    style_axes(axes, theme)
    _mark_stages(axes, stages if len(stages) > 1 else (), total_epochs, theme)
    if stopped_at is not None:
        axes.axvline(stopped_at, color=theme.stop, linewidth=1.4, linestyle="--", label=_("stopped early"), zorder=1)
    _set_title(figure, _("How well it learns"), _("Loss, % of the base model: lower is better"), theme)
    _add_legend(figure, axes, theme, columns=2)
    return save_figure(figure, path)


@drawn
def draw_levels_chart(path: Path, ended: Sequence[EpochEnded], *, total_epochs: int, theme: Theme = DARK) -> Path:
    """Draw the ratio to the base model for layout, shapes and detail, from left to right, all on one scale.

    Args:
        ended: Of at least three bands of timesteps each.
    """
    levels = by_level(range(len(ended[0].validation.bands)))
    figure = new_figure(_HEIGHT, theme)
    panels = figure.subplots(1, len(levels), sharex=True, sharey=True)
    # As the headline: of the best epoch, and not of the last.
    best = next((each.epoch for each in ended if each.epoch == ended[-1].best_epoch), ended[-1].epoch)
    for panel, (name, bands) in zip(panels, levels.items(), strict=True):
        curve = {0: 1.0} | {each.epoch: fmean(each.validation.bands[i].ratio for i in bands) for each in ended}
        panel.axhline(1.0, color=theme.text, linewidth=1, linestyle=":", alpha=0.6)
        panel.plot(list(curve), list(curve.values()), color=theme.validation, linewidth=2)
        panel.plot([best], [curve[best]], marker="*", markersize=11, color=theme.best, linestyle="none", zorder=5)
        panel.set_title(f"{name}\n{gain(curve[best])}", color=theme.text, fontsize=LETTERS)
        panel.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
        panel.yaxis.set_major_formatter(FuncFormatter(_percent_label))
        style_axes(panel, theme)
    _set_title(figure, _("Where it learned"), _("Loss, % of the base model, by epoch"), theme)
    return save_figure(figure, path)


@drawn
def draw_study_chart(
    path: Path, *, title: str, curves: Sequence[RunCurve], mean: MeanCurve | None = None, theme: Theme = DARK
) -> Path:
    """Draw the curves of all runs by epoch, named below the plot in their order; epoch 0 is the base model, 100 %."""
    figure = new_figure(2.9 + 0.19 * min(len(curves) + 2 * (mean is not None), _NAMED_RUNS + 1), theme)
    axes = figure.subplots()
    axes.axhline(1.0, color=theme.text, linewidth=1, linestyle=":", alpha=0.6)
    colors = iter(theme.runs)
    for curve in curves:
        color = theme.best if curve.is_first else next(colors, theme.further_runs)
        _draw_run(axes, curve, color, is_thin=mean is not None)
    if mean is not None:
        epochs = range(len(mean.ratios) + 1)
        axes.plot(epochs, [1.0, *mean.ratios], color=theme.text, linewidth=3, label=_("mean"), zorder=5)
        axes.axvline(mean.epoch, color=theme.best, linewidth=1.5, linestyle="--", label=mean.label, zorder=1)
    axes.set_xlabel(_("epoch"), fontsize=LETTERS)
    _frame_runs(axes, curves)
    style_axes(axes, theme)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _set_title(figure, title, _("Loss, % of the base model: lower is better"), theme)
    _add_legend(figure, axes, theme, columns=1, most=_NAMED_RUNS)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, creating its folder; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, warnings.catch_warnings():
        # Characters that no font has are drawn as boxes, which is better than no chart.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(partial, format="png")
    return path


def style_axes(axes: Axes, theme: Theme = DARK) -> None:
    """Apply the colors of the charts."""
    axes.set_facecolor(theme.background)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.tick_params(colors=theme.text, labelsize=LETTERS)
    axes.yaxis.label.set_color(theme.text)
    axes.xaxis.label.set_color(theme.text)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(theme.grid)


def plain(text: str) -> str:
    """Return text in which `$` begins no formula: names come from users."""
    return text.replace("$", r"\$")


def new_figure(height: float, theme: Theme = DARK) -> Figure:
    """Return a figure of the width of a chart, with the fonts that names of users need."""
    rcParams["font.family"] = _families()
    padding = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06, wspace=0.03)
    return Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=theme.background, layout=padding)


@cache
def _families() -> list[str]:
    # matplotlib remembers the fonts of its first start, and never looks for those that are installed later.
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in {*font_manager.findSystemFonts()} - known:
        # A file that is damaged or of bitmaps.
        with suppress(OSError, RuntimeError, ValueError):
            font_manager.fontManager.addfont(path)
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _CJK_FAMILIES if name in installed)]


def _set_title(figure: Figure, title: str, note: str, theme: Theme) -> None:
    """Write a title and a line below it inside the padding, at the left."""
    width, height = figure.get_size_inches()
    figure.text(
        0.1 / width,
        1 - 0.1 / height,
        plain(_shortened(title, _TITLE_ROOM)),
        color=theme.text,
        fontsize=TITLE_LETTERS,
        fontweight="bold",
        va="top",
    )
    figure.text(0.1 / width, 1 - 0.31 / height, note, color=theme.text, fontsize=LETTERS, va="top")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 1 - 0.5 / height))


def _add_legend(figure: Figure, axes: Axes, theme: Theme, *, columns: int, most: int | None = None) -> None:
    """Name the curves below the plot, the most important first."""
    handles, labels = axes.get_legend_handles_labels()
    if most is not None and len(labels) > most + 1:
        rest = len(labels) - most
        handles, labels = handles[: most + 1], [*labels[:most], _("and {n} more", n=rest)]
    figure.legend(
        handles,
        [plain(_shortened(label, _LEGEND_ROOM)) for label in labels],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        labelcolor=theme.text,
        fontsize=LETTERS,
        handlelength=1.4,
        columnspacing=1.0,
        labelspacing=0.3,
    )


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _percent_label(share: float, _position: int) -> str:
    return f"{round(100 * share, 2):g}"


def _draw_ratios(
    axes: Axes, points: Sequence[ChartPoint], between: Sequence[tuple[float, float]], theme: Theme
) -> None:
    """Draw the curves, the validation images first in the legend; a curve has a gap where a value is None."""
    nan = float("nan")
    epochs = [0, *(point.epoch for point in points)]
    axes.axhline(1.0, color=theme.text, linewidth=1, linestyle=":", alpha=0.6)
    curve, label = [1.0, *(point.ratio for point in points)], _("validation images")
    axes.plot(epochs, curve, color=theme.validation, marker="o", markersize=3.5, linewidth=2.4, label=label, zorder=4)
    if any(point.train_ratio is not None for point in points):
        ratios = [nan if point.train_ratio is None else point.train_ratio for point in points]
        label = _("training images")
        axes.plot(epochs, [1.0, *ratios], color=theme.training, linewidth=1.8, label=label, zorder=3)
    if any(point.interval for point in points):
        lows, highs = zip(*(point.interval or (nan, nan) for point in points), strict=True)
        label = _("likely range (95 %)")
        axes.fill_between(
            epochs, [1.0, *lows], [1.0, *highs], color=theme.interval, alpha=0.22, linewidth=0, label=label, zorder=2
        )
    if between:
        xs, ys = zip(*between, strict=True)
        axes.plot(xs, ys, color=theme.validation, marker="o", markersize=2.2, linestyle="none", alpha=0.75, zorder=4)


def _label_end(axes: Axes, points: Sequence[ChartPoint], total_epochs: int, theme: Theme) -> None:
    """Write the last value of the validation images beside the end of the curve, or above it where there is no room."""
    if not points or not isfinite(points[-1].ratio):
        return
    is_beside = points[-1].epoch <= 0.8 * total_epochs
    axes.annotate(
        _("{n} %", n=f"{100 * points[-1].ratio:.0f}"),
        (points[-1].epoch, points[-1].ratio),
        xytext=(7, -3.5) if is_beside else (4, 9),
        textcoords="offset points",
        color=theme.validation,
        fontsize=LETTERS,
        fontweight="bold",
        ha="left" if is_beside else "right",
        zorder=6,
    )


def _mark_best(axes: Axes, points: Sequence[ChartPoint], best_epoch: int, theme: Theme) -> None:
    """Draw a star, named in the legend: text beside the star would lie on the curves."""
    best = next((point for point in points if point.epoch == best_epoch), None)
    if best is not None:
        label = _("best: epoch {epoch}", epoch=best_epoch)
        axes.plot(
            [best_epoch],
            [best.ratio],
            marker="*",
            markersize=13,
            color=theme.best,
            markeredgecolor=theme.background,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=5,
            label=label,
        )


def _frame_ratios(axes: Axes, points: Sequence[ChartPoint], between: Sequence[tuple[float, float]]) -> None:
    """Set limits that show the curves well; much wider intervals are cut."""
    values = [1.0, *(point.ratio for point in points), *(ratio for _epoch, ratio in between)]
    values += [point.train_ratio for point in points if point.train_ratio is not None]
    values = [value for value in values if isfinite(value)]
    intervals = [point.interval for point in points if point.interval]
    low, high = min(values), max(values)
    margin = 0.6 * max(high - low, 0.05)
    axes.set_ylim(
        max(min([low, *(interval[0] for interval in intervals)]), low - margin) - 0.1 * margin,
        min(max([high, *(interval[1] for interval in intervals)]), high + margin) + 0.25 * margin,
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_label))


def _mark_stages(axes: Axes, stages: Sequence[tuple[int, str]], total_epochs: int, theme: Theme) -> None:
    """Draw a line before the first epoch of each stage, and the stage's name above its epochs."""
    for index, (first_epoch, name) in enumerate(stages):
        begins = first_epoch - 1
        if index:
            axes.axvline(begins, color=theme.text, linewidth=1, alpha=0.45)
        ends = stages[index + 1][0] - 1 if index + 1 < len(stages) else total_epochs
        # About 34 letters fit over all epochs.
        room = max(1, int(34 * (ends - begins) / max(total_epochs, 1)))
        axes.annotate(
            plain(_shortened(name, room)),
            ((begins + ends) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(0, 3),
            ha="center",
            color=theme.text,
            fontsize=LETTERS,
        )


def _draw_run(axes: Axes, curve: RunCurve, color: str, *, is_thin: bool) -> None:
    axes.plot(
        range(len(curve.ratios) + 1),
        [1.0, *curve.ratios],
        color=color,
        linewidth=1.4 if is_thin else 3 if curve.is_first else 1.8,
        alpha=0.75 if curve.is_ended else 1,
        label=curve.name,
        zorder=4 if curve.is_first else 2,
    )
    if not curve.ratios:
        return
    if curve.is_ended:
        axes.plot(len(curve.ratios), curve.ratios[-1], color=color, marker="x", markersize=8, markeredgewidth=2)
    else:
        best = curve.ratios[curve.best_epoch - 1]
        size = 13 if curve.is_first else 8
        axes.plot(curve.best_epoch, best, color=color, marker="*", markersize=size, linestyle="none", zorder=6)


def _frame_runs(axes: Axes, curves: Sequence[RunCurve]) -> None:
    """Set limits so that a run that diverged does not flatten all others."""
    values = sorted(ratio for curve in curves for ratio in curve.ratios)
    if values:
        low, high = values[0], min(values[-1], max(1.0, 1 + 1.5 * (1 - values[0])))
        high = max(high, 1.0)
        margin = 0.05 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_label))
