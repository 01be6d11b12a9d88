"""Loss charts as PNG, for the channel and the job folder."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

#: Discord's dark theme, so that a chart sits in the channel as if drawn there; readable on white paper too.
_BACKGROUND, _PANEL, _TEXT, _GRID = "#2b2d31", "#2b2d31", "#dbdee1", "#3f4147"
_TRAIN, _VALIDATION, _PROBES, _BEST, _STOP = "#8e9297", "#5bb5f5", "#c58af9", "#f0b232", "#f47b67"
#: Small multiples: more would be too small to read on a phone.
_MOST_PANELS, _PANELS_A_ROW = 12, 4


def draw_loss_chart(
    path: Path,
    *,
    title: str,
    epochs: Sequence[int],
    train_losses: Sequence[float],
    ratios: Sequence[float],
    best_epoch: int,
    total_epochs: int,
    intervals: Sequence[tuple[float, float] | None] = (),
    train_ratios: Sequence[float | None] = (),
    between: Sequence[tuple[float, float]] = (),
    stages: Sequence[tuple[int, str]] = (),
    stopped_at: int | None = None,
) -> Path:
    """Validation loss as a share of the base model's (top) and the plain training loss (bottom), by epoch.

    The base model itself is the point at epoch 0 of the upper curve, 100 %. For each epoch there may be the `intervals`
    of its ratio (low, high), and the ratio of the training pictures. `between` are validations within an epoch (epochs
    done as a float, ratio), `stages` the first epoch of each stage and its name.
    """
    figure = Figure(figsize=(7.2, 5.0), dpi=110, facecolor=_BACKGROUND, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    figure.suptitle(title, color=_TEXT, x=0.012, ha="left", fontsize=12, fontweight="bold")
    _draw_ratios(upper, epochs, ratios, intervals, train_ratios, between)
    _mark_best(upper, epochs, ratios, best_epoch)
    curves = [*ratios, *(ratio for _, ratio in between), *(ratio for ratio in train_ratios if ratio is not None)]
    _frame_ratios(upper, curves, [one for one in intervals if one])
    lower.plot(epochs, train_losses, color=_TRAIN, marker="o", markersize=3, linewidth=1.6)
    lower.set_ylabel("training loss")
    lower.set_xlabel("epoch")
    lower.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        _dress(axes)
        _mark_stages(axes, stages if len(stages) > 1 else (), total_epochs, is_named=axes is upper)
        if stopped_at is not None:
            axes.axvline(stopped_at, color=_STOP, linewidth=1.4, linestyle="--", label="stopped early")
    _legend(figure, upper)
    return _save(figure, path)


def draw_bands_chart(
    path: Path,
    *,
    title: str,
    bands: Sequence[tuple[int, int]],
    epochs: Sequence[int],
    ratios: Sequence[Sequence[float]],
    best_epoch: int,
    total_epochs: int,
) -> Path:
    """The ratio to the base model in each band of timesteps, a small chart each, all on one scale.

    `bands` are first and last timesteps, `ratios` one row for each epoch with a ratio for each band. More than 12 bands
    are drawn as 12 groups of neighbours.
    """
    groups = _neighbours(len(bands))
    columns = min(_PANELS_A_ROW, len(groups))
    rows = ceil(len(groups) / columns)
    figure = Figure(figsize=(7.2, 0.6 + 1.9 * rows), dpi=110, facecolor=_BACKGROUND, layout="constrained")
    figure.suptitle(title, color=_TEXT, x=0.012, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, group in zip(panels, groups, strict=False):
        curve = [fmean(row[band] for band in group) for row in ratios]
        panel.axhline(1.0, color=_TEXT, linewidth=1, linestyle=":", alpha=0.6)
        panel.plot([0, *epochs], [1.0, *curve], color=_VALIDATION, linewidth=2)
        if best_epoch in epochs:
            best = curve[list(epochs).index(best_epoch)]
            panel.plot([best_epoch], [best], marker="*", markersize=11, color=_BEST, linestyle="none")
        panel.set_title(
            f"{_band_name(bands[group[0]][0], bands[group[-1]][1])}: {curve[-1]:.0%}" if curve else "",
            color=_TEXT,
            fontsize=9.5,
        )
        panel.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        _dress(panel)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    figure.supxlabel(
        "epoch · share of the base model's loss, by timesteps (high: noise, low: detail)", color=_TEXT, fontsize=10
    )
    return _save(figure, path)


def _draw_ratios(
    axes: Axes,
    epochs: Sequence[int],
    ratios: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    train_ratios: Sequence[float | None],
    between: Sequence[tuple[float, float]],
) -> None:
    """The curves of the upper chart; where a value is None, a curve has a gap."""
    axes.axhline(1.0, color=_TEXT, linewidth=1, linestyle=":", alpha=0.6)
    nan = float("nan")
    if any(intervals):
        lows = [one[0] if one else nan for one in intervals]
        highs = [one[1] if one else nan for one in intervals]
        axes.fill_between(
            [0, *epochs], [1.0, *lows], [1.0, *highs], color=_VALIDATION, alpha=0.18, linewidth=0, label="95 % interval"
        )
    if any(ratio is not None for ratio in train_ratios):
        probes = [nan if ratio is None else ratio for ratio in train_ratios]
        axes.plot([0, *epochs], [1.0, *probes], color=_PROBES, linewidth=1.8, label="training pictures")
    if between:
        xs, ys = zip(*between, strict=True)
        axes.plot(xs, ys, color=_VALIDATION, marker="o", markersize=2.2, linestyle="none", alpha=0.75)
    label = "validation pictures"
    axes.plot([0, *epochs], [1.0, *ratios], color=_VALIDATION, marker="o", markersize=4, linewidth=2, label=label)
    axes.set_ylabel("loss, share of the base's")


def _mark_best(axes: Axes, epochs: Sequence[int], ratios: Sequence[float], best_epoch: int) -> None:
    """A star, named in the legend: beside the star its words would lie on the curves."""
    if best_epoch not in epochs:
        return
    best = ratios[list(epochs).index(best_epoch)]
    label = f"best: {best:.1%}, epoch {best_epoch}"
    axes.plot([best_epoch], [best], marker="*", markersize=15, color=_BEST, linestyle="none", zorder=5, label=label)


def _frame_ratios(axes: Axes, curves: Sequence[float], intervals: Sequence[tuple[float, float]]) -> None:
    """Limits that show the curves well; intervals much wider than those are cut."""
    low, high = min([1.0, *curves]), max([1.0, *curves])
    room = max(high - low, 0.05)
    axes.set_ylim(
        max(min([low, *(one[0] for one in intervals)]), low - room) - 0.1 * room,
        min(max([high, *(one[1] for one in intervals)]), high + room) + 0.15 * room,
    )
    decimals = 0 if high - low > 0.05 else 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.{decimals}%}"))


def _mark_stages(axes: Axes, stages: Sequence[tuple[int, str]], total_epochs: int, *, is_named: bool) -> None:
    """A line before the first epoch of each stage, and the stage's name above its epochs."""
    for place, (first_epoch, name) in enumerate(stages):
        begins = first_epoch - 1
        if place:
            axes.axvline(begins, color=_TEXT, linewidth=1, alpha=0.45)
        if is_named:
            ends = stages[place + 1][0] - 1 if place + 1 < len(stages) else total_epochs
            # About 100 letters fit over all epochs.
            room = max(1, int(100 * (ends - begins) / max(total_epochs, 1)))
            shown = name if len(name) <= room else name[: room - 1] + "…"
            middle = (begins + ends) / 2
            axes.annotate(
                shown,
                (middle, 1.0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(0, 3),
                ha="center",
                color=_TEXT,
                fontsize=8.5,
                alpha=0.9,
            )


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", ncols=3, frameon=False, labelcolor=_TEXT, fontsize=10
    )


def _neighbours(bands: int) -> list[range]:
    """All bands in at most 12 groups of neighbours, as even as can be."""
    groups = min(bands, _MOST_PANELS)
    return [range(place * bands // groups, (place + 1) * bands // groups) for place in range(groups)]


def _band_name(first: int, last: int) -> str:
    return f"{first}–{last}"


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def _dress(axes: Axes) -> None:
    axes.set_facecolor(_PANEL)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_TEXT, labelsize=10)
    axes.yaxis.label.set_color(_TEXT)
    axes.xaxis.label.set_color(_TEXT)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(_GRID)
