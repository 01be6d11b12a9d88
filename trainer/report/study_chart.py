"""The chart of a study: the validation curves of all its runs in one picture (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

#: As in `charts.py`: Discord's dark theme, readable on white paper too.
_BACKGROUND, _TEXT, _GRID, _FAINT, _BEST = "#2b2d31", "#dbdee1", "#3f4147", "#6d7178", "#f0b232"
#: Told apart by lightness too, for those who see few colours; more runs than these are drawn alike.
_COLOURS = ("#5bb5f5", "#f58d5b", "#7ddc9a", "#e583b4", "#b9a3ff", "#e3dd7a", "#4fc4bb", "#d9a08a")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run."""

    name: str
    #: Validation loss over the base model's after each epoch, from epoch 1.
    ratios: tuple[float, ...]
    best_epoch: int
    #: Drawn in front and in gold: the winner.
    is_first: bool = False
    #: Ended by the study: a cross stands where.
    is_ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of all curves, as far as all of them go."""

    ratios: tuple[float, ...]
    #: Epoch that a vertical line marks, and what it says.
    epoch: int
    label: str


def draw_study_chart(path: Path, *, title: str, curves: Sequence[Curve], mean: Mean | None = None) -> Path:
    """All curves by epoch, named beside the plot in the order given; epoch 0 is the base model, 100 %."""
    figure = Figure(
        figsize=(10.8, 5), dpi=110, facecolor=_BACKGROUND, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    axes = figure.subplots()
    axes.axhline(1.0, color=_TEXT, linewidth=1, linestyle=":", alpha=0.6)
    coloured = iter(_COLOURS)
    for curve in curves:
        _draw_curve(axes, curve, _BEST if curve.is_first else next(coloured, _FAINT), is_thin=mean is not None)
    if mean is not None:
        epochs = range(len(mean.ratios) + 1)
        axes.plot(epochs, [1.0, *mean.ratios], color=_TEXT, linewidth=3, label="mean", zorder=5)
        axes.axvline(mean.epoch, color=_BEST, linewidth=1.5, linestyle="--", label=mean.label, zorder=1)
    axes.set_title(title, color=_TEXT, loc="left", fontsize=12, fontweight="bold")
    axes.set_ylabel("validation loss, share of the base's")
    axes.set_xlabel("epoch")
    _frame(axes, curves)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, labelcolor=_TEXT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def _draw_curve(axes: Axes, curve: Curve, colour: str, *, is_thin: bool) -> None:
    width = 1.4 if is_thin else 3 if curve.is_first else 1.8
    axes.plot(
        range(len(curve.ratios) + 1),
        [1.0, *curve.ratios],
        color=colour,
        linewidth=width,
        alpha=0.75 if curve.is_ended else 1,
        label=curve.name,
        zorder=4 if curve.is_first else 2,
    )
    if not curve.ratios:
        return
    if curve.is_ended:
        axes.plot(len(curve.ratios), curve.ratios[-1], color=colour, marker="x", markersize=8, markeredgewidth=2)
    else:
        best = curve.ratios[curve.best_epoch - 1]
        axes.plot(curve.best_epoch, best, color=colour, marker="*", markersize=13, linestyle="none", zorder=6)


def _frame(axes: Axes, curves: Sequence[Curve]) -> None:
    """Axes, grid and text in the chart's colours; a run that diverged does not flatten all others."""
    values = sorted(ratio for curve in curves for ratio in curve.ratios)
    if values:
        low, high = values[0], min(values[-1], max(1.0, 1 + 1.5 * (1 - values[0])))
        high = max(high, 1.0)
        margin = 0.05 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g} %")
    axes.set_facecolor(_BACKGROUND)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_TEXT, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_TEXT)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(_GRID)
