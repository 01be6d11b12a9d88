"""Training stops when the validation ratio no longer falls, and keeps the best epoch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.protocol.spec import EarlyStopping
from trainer.training.early_stopping import StopMemory

PATIENT = EarlyStopping(patience=3, min_delta=0.01, warmup_epochs=0)


def follow(ratios: Sequence[float], settings: EarlyStopping = PATIENT) -> tuple[int | None, StopMemory]:
    """The epoch after which it stops (None: never), and the memory then."""
    memory = StopMemory()
    for epoch, ratio in enumerate(ratios, 1):
        memory = memory.after(epoch, ratio, settings)
        if memory.should_stop(epoch, settings):
            return epoch, memory
    return None, memory


def test_it_does_not_stop_while_the_loss_falls() -> None:
    assert follow([0.98 - 0.02 * i for i in range(30)])[0] is None


def test_it_stops_after_patience_epochs_without_improvement_and_remembers_the_best() -> None:
    stopped_at, memory = follow([0.95, 0.90, 0.85, 0.86, 0.87, 0.88, 0.89])

    assert stopped_at == 6
    assert memory.best_epoch == 3
    assert memory.best_ratio == 0.85


def test_gains_below_the_minimum_delta_do_not_buy_time_but_are_kept_as_the_best() -> None:
    stopped_at, memory = follow([0.900, 0.899, 0.898, 0.897])

    assert stopped_at == 4
    assert memory.best_epoch == 4


def test_small_gains_add_up_to_an_improvement() -> None:
    assert follow([0.900, 0.895, 0.889, 0.884, 0.879, 0.873, 0.868])[0] is None


def test_the_warm_up_never_stops() -> None:
    settings = PATIENT.model_copy(update={"warmup_epochs": 6})

    assert follow([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 0.5], settings)[0] is None
    assert follow([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8], settings)[0] == 7


def test_switched_off_it_never_stops() -> None:
    assert follow([1.5] * 20, PATIENT.model_copy(update={"enabled": False}))[0] is None


def test_an_epoch_that_is_worse_than_the_base_is_still_the_best_that_can_be_exported() -> None:
    assert follow([1.3, 1.2, 1.25])[1].best_epoch == 2


def test_the_reason_names_epochs_and_both_losses() -> None:
    _, memory = follow([0.9, 0.95, 0.96, 0.97])

    reason = memory.reason(0.97, PATIENT)

    assert "3 epochs" in reason
    assert "0.970" in reason
    assert "0.900" in reason
    assert "epoch 1" in reason
