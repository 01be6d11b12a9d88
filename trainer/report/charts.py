"""Loss charts as PNG: of one training by epoch, of its bands of timesteps, and of all runs of a study."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trainer.exchange.files import atomic_write
from trainer.protocol.events import EpochEnded
from trainer.protocol.text import _, level_change, verdict
from trainer.report.study_page import MeanCurve, RunCurve

#: Discord's dark theme, so that a chart blends into the channel; readable on white paper too.
BACKGROUND, TEXT, GRID = "#2b2d31", "#dbdee1", "#3f4147"
_TRAIN, _VALIDATION, _TRAIN_IMAGES, _BEST, _STOP = "#8e9297", "#5bb5f5", "#c58af9", "#f0b232", "#f47b67"
#: For the runs of a study, distinct in lightness too, for color-blind readers; all further runs are gray.
_RUNS = ("#5bb5f5", "#f58d5b", "#7ddc9a", "#e583b4", "#b9a3ff", "#e3dd7a", "#4fc4bb", "#d9a08a")
_FURTHER_RUNS = "#6d7178"
#: Small multiples: more of them would be too small to read on a phone.
_MAX_PANELS, _PANELS_PER_ROW = 12, 4


class ChartPoint(Protocol):
    """One epoch of a loss chart."""

    @property
    def epoch(self) -> int: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def ratio(self) -> float:
        """Validation loss over the base model's."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `ratio`."""

    @property
    def train_ratio(self) -> float | None:
        """The ratio on the training images; None if it was not measured."""


def draw_loss_chart(
    path: Path,
    points: Sequence[ChartPoint],
    *,
    title: str,
    best_epoch: int,
    total_epochs: int,
    between: Sequence[tuple[float, float]] = (),
    stages: Sequence[tuple[int, str]] = (),
    stopped_at: int | None = None,
) -> Path:
    """Draw the validation loss as a share of the base model's (top) and the training loss (bottom), by epoch.

    The base model itself is the point at epoch 0 of the upper curve, 100 %.

    Args:
        points: One for each epoch.
        best_epoch: Marked with a star, unless it is 0.
        total_epochs: The planned length.
        between: Validations within an epoch: epochs done as a float, and the ratio.
        stages: The first epoch of each stage and its name.
        stopped_at: The epoch of an early stop.
    """
    figure = Figure(figsize=(7.2, 5.0), dpi=110, facecolor=BACKGROUND, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    figure.suptitle(title, color=TEXT, x=0.012, ha="left", fontsize=12, fontweight="bold")
    _draw_ratios(upper, points, between)
    _mark_best(upper, points, best_epoch)
    _frame_ratios(upper, points, between)
    lower.plot(
        [point.epoch for point in points],
        [point.train_loss for point in points],
        color=_TRAIN,
        marker="o",
        markersize=3,
        linewidth=1.6,
    )
    lower.set_ylabel(_("training loss"))
    lower.set_xlabel(_("epoch"))
    lower.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        style_axes(axes)
        _mark_stages(axes, stages if len(stages) > 1 else (), total_epochs, is_named=axes is upper)
        if stopped_at is not None:
            axes.axvline(stopped_at, color=_STOP, linewidth=1.4, linestyle="--", label=_("stopped early"))
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", ncols=3, frameon=False, labelcolor=TEXT, fontsize=10
    )
    return save_figure(figure, path)


def draw_bands_chart(path: Path, ended: Sequence[EpochEnded], *, title: str, total_epochs: int) -> Path:
    """Draw the ratio to the base model in each band of timesteps, a small chart each, all on one scale.

    More than 12 bands are drawn as 12 groups of neighbors.
    """
    bands = ended[0].validation.bands
    groups = _group_neighbors(len(bands))
    columns = min(_PANELS_PER_ROW, len(groups))
    rows = ceil(len(groups) / columns)
    figure = Figure(figsize=(7.2, 0.6 + 1.9 * rows), dpi=110, facecolor=BACKGROUND, layout="constrained")
    figure.suptitle(title, color=TEXT, x=0.012, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, group in zip(panels, groups, strict=False):
        curve = {0: 1.0} | {each.epoch: fmean(each.validation.bands[i].ratio for i in group) for each in ended}
        panel.axhline(1.0, color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
        panel.plot(list(curve), list(curve.values()), color=_VALIDATION, linewidth=2)
        # As the headline: of the best epoch, and not of the last.
        best = next((each.epoch for each in ended if each.epoch == ended[-1].best_epoch), ended[-1].epoch)
        panel.plot([best], [curve[best]], marker="*", markersize=11, color=_BEST, linestyle="none")
        steps = f"{bands[group[0]].first_timestep}–{bands[group[-1]].last_timestep}"
        panel.set_title(level_change(f"{steps}:", curve[best]), color=TEXT, fontsize=9.5)
        panel.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda share, position: f"{share:.0%}"))
        style_axes(panel)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    label = _("epoch · share of the base model's loss, by timesteps (high: noise, low: detail)")
    figure.supxlabel(label, color=TEXT, fontsize=10)
    return save_figure(figure, path)


def draw_study_chart(path: Path, *, title: str, curves: Sequence[RunCurve], mean: MeanCurve | None = None) -> Path:
    """Draw the curves of all runs by epoch, named beside the plot in their order; epoch 0 is the base model, 100 %."""
    figure = Figure(
        figsize=(10.8, 5), dpi=110, facecolor=BACKGROUND, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    axes = figure.subplots()
    axes.axhline(1.0, color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
    colors = iter(_RUNS)
    for curve in curves:
        _draw_run(axes, curve, _BEST if curve.is_first else next(colors, _FURTHER_RUNS), is_thin=mean is not None)
    if mean is not None:
        epochs = range(len(mean.ratios) + 1)
        axes.plot(epochs, [1.0, *mean.ratios], color=TEXT, linewidth=3, label=_("mean"), zorder=5)
        axes.axvline(mean.epoch, color=_BEST, linewidth=1.5, linestyle="--", label=mean.label, zorder=1)
    axes.set_title(title, color=TEXT, loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel(_("validation loss, share of the base's"))
    axes.set_xlabel(_("epoch"))
    _frame_runs(axes, curves)
    style_axes(axes, label_size=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, labelcolor=TEXT, fontsize=9)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, creating its folder; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
    return path


def style_axes(axes: Axes, *, label_size: float = 10) -> None:
    """Apply the colors of the charts."""
    axes.set_facecolor(BACKGROUND)
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(colors=TEXT, labelsize=label_size)
    axes.yaxis.label.set_color(TEXT)
    axes.xaxis.label.set_color(TEXT)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(GRID)


def _draw_ratios(axes: Axes, points: Sequence[ChartPoint], between: Sequence[tuple[float, float]]) -> None:
    """Draw the curves of the upper chart; a curve has a gap where a value is None."""
    nan = float("nan")
    epochs = [0, *(point.epoch for point in points)]
    axes.axhline(1.0, color=TEXT, linewidth=1, linestyle=":", alpha=0.6)
    if any(point.interval for point in points):
        lows, highs = zip(*(point.interval or (nan, nan) for point in points), strict=True)
        label = _("95 % interval")
        axes.fill_between(epochs, [1.0, *lows], [1.0, *highs], color=_VALIDATION, alpha=0.18, linewidth=0, label=label)
    if any(point.train_ratio is not None for point in points):
        ratios = [nan if point.train_ratio is None else point.train_ratio for point in points]
        axes.plot(epochs, [1.0, *ratios], color=_TRAIN_IMAGES, linewidth=1.8, label=_("training images"))
    if between:
        xs, ys = zip(*between, strict=True)
        axes.plot(xs, ys, color=_VALIDATION, marker="o", markersize=2.2, linestyle="none", alpha=0.75)
    curve, label = [1.0, *(point.ratio for point in points)], _("validation images")
    axes.plot(epochs, curve, color=_VALIDATION, marker="o", markersize=4, linewidth=2, label=label)
    axes.set_ylabel(_("loss, share of the base's"))


def _mark_best(axes: Axes, points: Sequence[ChartPoint], best_epoch: int) -> None:
    """Draw a star, named in the legend: text beside the star would lie on the curves."""
    best = next((point for point in points if point.epoch == best_epoch), None)
    if best is not None:
        label = _("epoch {epoch}: {verdict}", epoch=best_epoch, verdict=verdict(best.ratio))
        axes.plot(
            [best_epoch], [best.ratio], marker="*", markersize=15, color=_BEST, linestyle="none", zorder=5, label=label
        )


def _frame_ratios(axes: Axes, points: Sequence[ChartPoint], between: Sequence[tuple[float, float]]) -> None:
    """Set limits that show the curves well; much wider intervals are cut."""
    values = [1.0, *(point.ratio for point in points), *(ratio for _epoch, ratio in between)]
    values += [point.train_ratio for point in points if point.train_ratio is not None]
    intervals = [point.interval for point in points if point.interval]
    low, high = min(values), max(values)
    margin = max(high - low, 0.05)
    axes.set_ylim(
        max(min([low, *(interval[0] for interval in intervals)]), low - margin) - 0.1 * margin,
        min(max([high, *(interval[1] for interval in intervals)]), high + margin) + 0.15 * margin,
    )
    decimals = 0 if high - low > 0.05 else 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, position: f"{share:.{decimals}%}"))


def _mark_stages(axes: Axes, stages: Sequence[tuple[int, str]], total_epochs: int, *, is_named: bool) -> None:
    """Draw a line before the first epoch of each stage, and the stage's name above its epochs."""
    for index, (first_epoch, name) in enumerate(stages):
        begins = first_epoch - 1
        if index:
            axes.axvline(begins, color=TEXT, linewidth=1, alpha=0.45)
        if is_named:
            ends = stages[index + 1][0] - 1 if index + 1 < len(stages) else total_epochs
            # About 100 letters fit over all epochs.
            room = max(1, int(100 * (ends - begins) / max(total_epochs, 1)))
            axes.annotate(
                name if len(name) <= room else name[: room - 1] + "…",
                ((begins + ends) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(0, 3),
                ha="center",
                color=TEXT,
                fontsize=8.5,
                alpha=0.9,
            )


def _group_neighbors(bands: int) -> list[range]:
    """Split all bands into at most 12 groups of neighbors of nearly the same size."""
    groups = min(bands, _MAX_PANELS)
    return [range(index * bands // groups, (index + 1) * bands // groups) for index in range(groups)]


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
        axes.plot(curve.best_epoch, best, color=color, marker="*", markersize=13, linestyle="none", zorder=6)


def _frame_runs(axes: Axes, curves: Sequence[RunCurve]) -> None:
    """Set limits so that a run that diverged does not flatten all others."""
    values = sorted(ratio for curve in curves for ratio in curve.ratios)
    if values:
        low, high = values[0], min(values[-1], max(1.0, 1 + 1.5 * (1 - values[0])))
        high = max(high, 1.0)
        margin = 0.05 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_formatter(lambda value, position: f"{round(100 * value, 2):g} %")
