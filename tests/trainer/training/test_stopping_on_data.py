"""Early stopping on a real training: it stops near the minimum if the model overfits, and not while it improves.

A small network learns a wave from noisy points. It is validated on 100 held-out points; the truth is its loss on 2,000
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from trainer.protocol.settings import EarlyStopping, Validation
from trainer.tasks.task import FrozenLoss
from trainer.training.early_stopping import StopMemory, StopReason
from trainer.training.validation import Triple, freeze_triples, measure_losses, merge_shards, summarize_losses

pytestmark = pytest.mark.slow

NOISE, STEPS = 0.5, 20


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """The true loss after each epoch, and where the training was stopped."""

    truths: list[float]
    stopped_at: int | None
    memory: StopMemory


def train(*, points: int, rate: float, seed: int, epochs: int) -> TrainingCurve:
    settings = EarlyStopping()
    random = torch.Generator().manual_seed(seed)
    train_x, train_y = _points(points, random)
    validation_x, validation_y = _points(100, random)
    test_x, test_y = _points(2000, random)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    triples = freeze_triples([str(index) for index in range(100)], Validation(), schedule_steps=1)

    def losses(chunk: Sequence[Triple]) -> list[FrozenLoss]:
        indices = [triple.image for triple in chunk]
        with torch.no_grad():
            found = (model(validation_x[indices]) - validation_y[indices]).square().flatten().tolist()
        return [FrozenLoss(plain=loss, training=loss) for loss in found]

    def measured() -> list[FrozenLoss]:
        return merge_shards([measure_losses(triples, size_of=[0] * 100, batch_size=16, losses=losses)], len(triples))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x), y)

    base, memory, truths, stopped_at = measured(), StopMemory(), [], None
    for epoch in range(1, epochs + 1):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(train_x, train_y).backward()
            optimizer.step()
        with torch.no_grad():
            truths.append(float(loss(test_x, test_y)))
        if stopped_at is None:
            summary = summarize_losses(triples, measured(), base, bands=4, schedule_steps=1)
            memory = memory.after(epoch, summary.ratio, settings)
            if memory.stop_reason(epoch, settings, seconds=0) is StopReason.NO_IMPROVEMENT:
                stopped_at = epoch
    return TrainingCurve(truths=truths, stopped_at=stopped_at, memory=memory)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_stops_near_the_minimum_if_the_model_overfits(seed: int) -> None:
    course = train(points=20, rate=2e-3, seed=seed, epochs=50)

    minimum = min(course.truths)
    true_best = course.truths.index(minimum) + 1
    assert course.truths[-1] > 1.15 * minimum, "the model did not overfit"
    assert course.stopped_at is not None
    assert true_best < course.stopped_at <= true_best + 6
    assert course.truths[course.memory.best_epoch - 1] <= 1.03 * minimum


@pytest.mark.parametrize("seed", [0, 1])
def test_it_does_not_stop_while_the_model_improves(seed: int) -> None:
    course = train(points=2000, rate=3e-5, seed=seed, epochs=30)

    assert min(course.truths) == course.truths[-1], "the model did not improve to the end"
    assert course.stopped_at is None
    assert course.memory.best_epoch == 30


def _points(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, generator=random) * 4 - 2
    return x, torch.sin(2 * x) + NOISE * torch.randn(count, 1, generator=random)
