"""Draws all learning-rate schedules of the trainer for docs/optimizers.md.

python -m bench.schedules [docs/images/schedules.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from trainer.protocol.settings import Arguments
from trainer.protocol.training_settings import OptimizerKind, ScheduleKind
from trainer.training.optimizers import make_optimizer
from trainer.training.schedules import make_schedule

STEPS, WARMUP_STEPS = 1000, 100
#: Arguments of schedules whose default looks like another schedule.
ARGUMENTS: dict[ScheduleKind, Arguments] = {
    ScheduleKind.COSINE_WITH_RESTARTS: {"num_cycles": 3},
    ScheduleKind.POLYNOMIAL: {"power": 2.0},
}
COLUMNS, ROWS = 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/images/schedules.png"))
    _draw().savefig(parser.parse_args().path, dpi=110)


def _draw() -> Figure:
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(ROWS, COLUMNS, sharex=True, sharey=True).flat
    # The kinds go first: otherwise zip would consume one cell too many.
    for kind, axes in zip(ScheduleKind, cells, strict=False):
        axes.axvspan(0, WARMUP_STEPS, color="#f0f0f0", lw=0)
        axes.plot(range(STEPS), _factors(kind), color="#1f5fa8", lw=2)
        arguments = ", ".join(f"{name} = {value}" for name, value in ARGUMENTS.get(kind, {}).items())
        axes.set_title(f"{kind} ({arguments})" if arguments else kind.value, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in cells:
        axes.axis("off")
    figure.supxlabel(f"optimizer step ({STEPS}, the first {WARMUP_STEPS} of them warm-up)", fontsize=10)
    figure.supylabel("share of the learning rate", fontsize=10)
    return figure


def _factors(kind: ScheduleKind) -> list[float]:
    """Return the learning rate at each step, as a share of the highest."""
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}
    optimizer = make_optimizer(OptimizerKind.SGD, [group], weight_decay=0.0, arguments={})
    schedule = make_schedule(kind, optimizer, steps=STEPS, warmup_steps=WARMUP_STEPS, arguments=ARGUMENTS.get(kind, {}))
    factors: list[float] = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


if __name__ == "__main__":
    main()
