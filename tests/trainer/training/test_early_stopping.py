"""Training stops when the validation ratio no longer falls, and keeps the best epoch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tests.trainer.training.simulated import Curve, improving, overfitting, some_overfitting
from trainer.protocol.settings import EarlyStopping
from trainer.training.early_stopping import StopMemory, StopReason

#: Without smoothing, so that each epoch counts by itself.
PATIENT = EarlyStopping(patience=3, min_delta=0.01, warmup_epochs=0, smoothing=0)


def follow(
    ratios: Iterable[float], settings: EarlyStopping = PATIENT, *, train_ratios: list[float] | None = None
) -> tuple[int | None, StopMemory]:
    """The epoch after which it stops (None: never), and the memory then."""
    memory = StopMemory()
    for epoch, ratio in enumerate(ratios, 1):
        train_ratio = train_ratios[epoch - 1] if train_ratios else None
        memory = memory.after(epoch, ratio, settings, train_ratio=train_ratio)
        if memory.should_stop(epoch, settings, seconds=60.0 * epoch):
            return epoch, memory
    return None, memory


def test_it_does_not_stop_while_the_loss_falls() -> None:
    assert follow([0.98 - 0.02 * i for i in range(30)])[0] is None


def test_it_stops_after_patience_epochs_without_improvement_and_remembers_the_best() -> None:
    stopped_at, memory = follow([0.87, 0.86, 0.85, 0.86, 0.87, 0.88, 0.89])

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


def test_what_is_smoothed_starts_with_the_first_epoch_and_not_with_the_base() -> None:
    settings = PATIENT.model_copy(update={"smoothing": 0.5})

    first = StopMemory().after(1, 0.8, settings)
    second = first.after(2, 0.6, settings)
    third = second.after(3, 0.4, settings)

    assert first.smoothed_ratio == pytest.approx(0.8)
    assert second.smoothed_ratio == pytest.approx((0.8 / 2 + 0.6) / (1 / 2 + 1))
    assert third.smoothed_ratio == pytest.approx((0.8 / 4 + 0.6 / 2 + 0.4) / (1 / 4 + 1 / 2 + 1))


def test_one_lucky_epoch_neither_buys_time_nor_hides_that_it_was_the_best() -> None:
    settings = PATIENT.model_copy(update={"smoothing": 0.7})

    stopped_at, memory = follow([0.80, 0.80, 0.80, 0.78, 0.80, 0.80], settings)

    assert stopped_at == 4
    assert memory.best_epoch == 4
    assert memory.reason(settings).startswith("Less than 1 % of the base's loss gained in 3 epochs")


def test_the_best_epoch_is_the_lowest_however_much_is_smoothed() -> None:
    _, memory = follow([0.9, 0.5, 0.45, 0.46], PATIENT.model_copy(update={"smoothing": 0.7}))

    assert (memory.best_epoch, memory.best_ratio) == (3, 0.45)


def test_with_the_defaults_it_stops_near_the_minimum_of_noisy_curves_with_a_good_epoch() -> None:
    """Noise of 0.5 % of the base's loss, in the measure alone: the harder case, since what is lowest may be luck."""
    settings, random = EarlyStopping(), np.random.default_rng(5)
    late, losses = [], []
    for _ in range(300):
        truth = some_overfitting(random)
        stopped_at, memory = follow(_noisy(truth, 0.005, random), settings)
        assert stopped_at is not None
        late.append(stopped_at - (int(truth.argmin()) + 1))
        losses.append(truth[memory.best_epoch - 1] / truth.min())

    assert np.mean(np.array(late) <= settings.patience + 2) >= 0.95
    assert np.mean(np.array(losses) <= 1.01) >= 0.95


def test_an_epoch_that_none_has_beaten_does_not_end_it_while_the_rest_still_falls() -> None:
    lucky = [0.90, 0.89, 0.80, 0.86, 0.84, 0.82, 0.80, 0.78, 0.76]

    assert follow(lucky)[0] is None
    assert follow([*lucky[:4], 0.88, 0.90, 0.90])[0] == 6
    warm = PATIENT.model_copy(update={"warmup_epochs": 6})
    assert follow([0.80, 0.87, 0.87, 0.87, 0.855, 0.855, 0.855], warm)[0] is None


@pytest.mark.parametrize("noise", [0.003, 0.005, 0.01])
def test_it_does_not_stop_while_a_noisy_curve_still_falls(noise: float) -> None:
    """Per epoch by as much as the noise with the defaults, by 0.6 of it with twice the patience; 60 epochs each."""

    def share_cut_off(fall: float, settings: EarlyStopping) -> float:
        random = np.random.default_rng(6)
        stops = [follow(_noisy(improving(60, fall=fall), noise, random), settings)[0] for _ in range(200)]
        return 1 - stops.count(None) / 200

    assert share_cut_off(noise, EarlyStopping()) <= 0.01
    assert share_cut_off(0.6 * noise, EarlyStopping(patience=8)) == 0


def test_a_flat_curve_is_not_followed_for_ever() -> None:
    random = np.random.default_rng(7)

    stops = [follow(_noisy(np.full(60, 0.7), 0.005, random), EarlyStopping())[0] for _ in range(300)]

    assert max(stop or 61 for stop in stops) <= 20


def test_the_lowest_ratio_finds_a_better_epoch_than_the_lowest_smoothed_one_where_models_differ() -> None:
    """Epochs do differ: half of the scatter here is the models' own, and is exported with them."""
    settings, random = EarlyStopping(), np.random.default_rng(8)
    by_ratio, by_smoothed = [], []
    for _ in range(400):
        truth = _noisy(overfitting(40, minimum_at=12, depth=0.3, rise=0.8), 0.005, random)
        memories = [StopMemory()]
        for epoch, ratio in enumerate(_noisy(truth, 0.003, random), 1):
            memories.append(memories[-1].after(epoch, ratio, settings))
        by_ratio.append(truth[memories[-1].best_epoch - 1])
        by_smoothed.append(truth[int(np.argmin([memory.smoothed_ratio or 0 for memory in memories[1:]]))])

    assert np.mean(by_ratio) < np.mean(by_smoothed)


def test_the_time_budget_ends_it_with_the_epoch_whatever_the_loss() -> None:
    settings = PATIENT.model_copy(update={"max_hours": 2.0})
    memory = StopMemory().after(1, 0.9, settings)

    assert not memory.should_stop(1, settings, seconds=7199)
    assert memory.why(1, settings, seconds=7200) is StopReason.TIME_BUDGET
    assert memory.reason(settings) == "The time budget of 2 hours is used up."
    assert memory.why(1, settings.model_copy(update={"enabled": False}), seconds=7200) is StopReason.TIME_BUDGET
    half = settings.model_copy(update={"max_hours": 0.5})
    assert memory.reason(half) == "The time budget of 30 minutes is used up."


def test_where_every_picture_trains_the_last_epoch_is_the_best() -> None:
    memory = StopMemory()
    for epoch, ratio in enumerate([0.5, 0.4, 0.9], 1):
        memory = memory.last(epoch, ratio)

    assert (memory.best_epoch, memory.best_ratio) == (3, 0.9)
    assert not memory.should_stop(3, PATIENT, seconds=0)


def test_a_new_stage_has_the_whole_patience_and_must_still_beat_the_best() -> None:
    memory = follow([0.90, 0.91, 0.92])[1].patient_again().after(4, 0.92, PATIENT)

    assert not memory.should_stop(4, PATIENT, seconds=0)
    assert memory.best_epoch == 1
    assert memory.after(5, 0.92, PATIENT).after(6, 0.92, PATIENT).should_stop(6, PATIENT, seconds=0)


def test_the_reason_names_epochs_both_losses_and_how_the_gap_grew() -> None:
    _, memory = follow([0.63, 0.612, 0.62, 0.63, 0.634], train_ratios=[0.62, 0.6, 0.59, 0.585, 0.5816])

    assert memory.gap == pytest.approx(0.0901, abs=1e-3)
    assert memory.reason(PATIENT) == (
        "No better than epoch 2 for 3 epochs (0.612× the base's loss then, 0.634 now); "
        "the gap to the training images grew from 2 % to 9 %."
    )


def test_the_reason_says_nothing_of_a_gap_that_was_not_measured() -> None:
    _, memory = follow([0.9, 0.95, 0.96, 0.97])

    assert memory.gap is None
    assert memory.reason(PATIENT) == ("No better than epoch 1 for 3 epochs (0.900× the base's loss then, 0.970 now).")


def test_a_gap_that_stays_or_closes_is_said_so() -> None:
    stays = follow([0.9, 0.95, 0.95, 0.95], train_ratios=[0.9, 0.95, 0.95, 0.953])[1].reason(PATIENT)
    closes = follow([0.9, 0.95, 0.95, 0.95], train_ratios=[0.85, 0.95, 0.95, 0.99])[1].reason(PATIENT)

    assert stays.endswith("the gap to the training images stayed at 0 %.")
    assert closes.endswith("the gap to the training images fell from 6 % to −4 %.")


def test_worse_than_the_base_is_said_so() -> None:
    _, memory = follow([1.05, 1.03, 1.06])

    assert memory.reason(PATIENT) == (
        "No better than the base model after 3 epochs (1.030× its loss at best, after epoch 2, and 1.060 now)."
    )


def test_it_survives_a_checkpoint_and_an_old_one_can_still_be_read() -> None:
    memory = follow([0.7, 0.612, 0.62], EarlyStopping(), train_ratios=[0.69, 0.6, 0.59])[1]
    old = '{"best_ratio": 0.6, "best_epoch": 3, "reference_ratio": 0.61, "epochs_without_improvement": 1}'

    assert StopMemory.model_validate_json(memory.model_dump_json()) == memory
    after = StopMemory.model_validate_json(old).after(5, 0.59, EarlyStopping())
    assert (after.best_epoch, after.epochs_without_improvement) == (5, 0)
    assert after.smoothed_ratio == pytest.approx(0.59)


def _noisy(truth: Curve, noise: float, random: np.random.Generator) -> Curve:
    curve: Curve = truth + noise * random.standard_normal(len(truth))
    return curve
