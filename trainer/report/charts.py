"""Loss charts as PNG, for the channel and the job folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

#: Discord's dark theme, so that a chart sits in the channel as if drawn there; readable on white paper too.
_BACKGROUND, _PANEL, _TEXT, _GRID = "#2b2d31", "#2b2d31", "#dbdee1", "#3f4147"
_TRAIN, _VALIDATION, _BEST = "#8e9297", "#5bb5f5", "#f0b232"


def draw_loss_chart(
    path: Path,
    *,
    title: str,
    epochs: Sequence[int],
    train_losses: Sequence[float],
    ratios: Sequence[float],
    best_epoch: int,
    total_epochs: int,
) -> Path:
    """Validation loss as a share of the base model's (top) and the plain training loss (bottom), by epoch.

    The base model itself is the point at epoch 0 of the upper curve, 100 %.
    """
    figure = Figure(figsize=(7.2, 4.6), dpi=110, facecolor=_BACKGROUND, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.plot([0, *epochs], [1.0, *ratios], color=_VALIDATION, marker="o", markersize=4, linewidth=2)
    upper.axhline(1.0, color=_TEXT, linewidth=1, linestyle=":", alpha=0.6)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if max(ratios) - min(ratios) > 0.05 else 1))
    upper.set_ylabel("validation loss,\nshare of the base's")
    upper.set_title(title, color=_TEXT, loc="left", fontsize=12, fontweight="bold")
    if best_epoch in epochs:
        best = ratios[list(epochs).index(best_epoch)]
        upper.plot([best_epoch], [best], marker="*", markersize=14, color=_BEST, linestyle="none")
        upper.annotate(
            f"best {best:.1%}", (best_epoch, best), textcoords="offset points", xytext=(8, 9), color=_BEST, fontsize=9
        )
    lower.plot(epochs, train_losses, color=_TRAIN, marker="o", markersize=3, linewidth=1.6)
    lower.set_ylabel("training loss")
    lower.set_xlabel("epoch")
    lower.set_xlim(-0.3, max(total_epochs, 1) + 0.3)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        _dress(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def _dress(axes: object) -> None:
    axes.set_facecolor(_PANEL)  # type: ignore[attr-defined]
    axes.grid(color=_GRID, linewidth=0.8)  # type: ignore[attr-defined]
    axes.tick_params(colors=_TEXT, labelsize=9)  # type: ignore[attr-defined]
    axes.yaxis.label.set_color(_TEXT)  # type: ignore[attr-defined]
    axes.xaxis.label.set_color(_TEXT)  # type: ignore[attr-defined]
    for name, spine in axes.spines.items():  # type: ignore[attr-defined]
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(_GRID)
