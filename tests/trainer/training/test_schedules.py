"""Schedules follow their formulas, keep groups in proportion, and resume bit for bit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from tests.golden import check_sentences
from trainer.errors import BadSpecError
from trainer.protocol.settings import Arguments
from trainer.protocol.training_settings import OptimizerKind, ScheduleKind
from trainer.training.optimizers import make_optimizer
from trainer.training.schedules import check_schedule_arguments, make_schedule

PEAK, SHARE = 2e-4, 0.25
#: Of torch's one-cycle: the highest rate over the first (`div_factor`), and the first over the last.
DIV, FINAL_DIV = 25, 1e4


def make(kind: OptimizerKind = OptimizerKind.ADAMW, arguments: Arguments | None = None) -> Optimizer:
    """Make an optimizer with two groups, the second at a quarter of the rate."""
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "lr": PEAK * share} for share in (1.0, SHARE)]
    return make_optimizer(kind, groups, weight_decay=0.0, arguments=arguments or {})


def factors(
    kind: ScheduleKind, steps: int, warmup_steps: int = 0, arguments: Arguments | None = None
) -> tuple[list[float], float]:
    """Return the factor of each step, and the factor after the last step."""
    optimizer = make()
    schedule = make_schedule(kind, optimizer, steps=steps, warmup_steps=warmup_steps, arguments=arguments or {})
    found: list[float] = []
    for _ in range(steps):
        high, low = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(high * SHARE), "groups keep their proportion"
        found.append(high / PEAK)
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"] / PEAK


def cosine(p: float) -> float:
    return (1 + math.cos(math.pi * p)) / 2


def one_cycle_fall(p: float) -> float:
    lowest = 1 / DIV / FINAL_DIV
    return lowest + (1 - lowest) * cosine(p)


#: Factor at the completed share p of the steps after the warm-up, from docs/optimizers.md.
FALLS: dict[ScheduleKind, Callable[[float], float]] = {
    ScheduleKind.CONSTANT: lambda p: 1.0,
    ScheduleKind.LINEAR: lambda p: 1 - p,
    ScheduleKind.COSINE: cosine,
    ScheduleKind.COSINE_WITH_RESTARTS: lambda p: cosine(p) if p < 1 else 0.0,
    ScheduleKind.POLYNOMIAL: lambda p: (1 - p) + p * 1e-7 / PEAK,
    ScheduleKind.REX: lambda p: (1 - p) / (0.5 + 0.5 * (1 - p)),
    ScheduleKind.ONE_CYCLE: one_cycle_fall,
}


@pytest.mark.parametrize("kind", ScheduleKind)
@pytest.mark.parametrize(("steps", "warmup_steps"), [(20, 5), (20, 1), (2, 1), (7, 6)])
def test_after_the_warm_up_the_rate_follows_its_formula(kind: ScheduleKind, steps: int, warmup_steps: int) -> None:
    found, after = factors(kind, steps, warmup_steps)
    expected = [FALLS[kind]((n - warmup_steps) / (steps - warmup_steps)) for n in range(warmup_steps, steps + 1)]
    assert [*found[warmup_steps:], after] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in ScheduleKind if kind is not ScheduleKind.ONE_CYCLE])
def test_the_warm_up_is_linear_from_0(kind: ScheduleKind) -> None:
    assert factors(kind, 20, 5)[0][:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_warm_up_of_one_cycle_is_a_cosine_from_one_over_div_factor() -> None:
    rise = factors(ScheduleKind.ONE_CYCLE, 20, 5)[0][:6]
    assert rise == pytest.approx([1 - (1 - 1 / DIV) * cosine(n / 5) for n in range(6)])


@pytest.mark.parametrize("kind", [kind for kind in ScheduleKind if kind is not ScheduleKind.ONE_CYCLE])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_without_a_warm_up_the_first_step_has_the_full_rate(kind: ScheduleKind, steps: int) -> None:
    found, after = factors(kind, steps)
    assert found[0] == 1.0
    assert after == pytest.approx(FALLS[kind](1), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_one_cycle_without_a_warm_up_falls_from_the_first_step(steps: int) -> None:
    found, after = factors(ScheduleKind.ONE_CYCLE, steps)
    assert found == pytest.approx([one_cycle_fall((n + 1) / (steps + 1)) for n in range(steps)])
    assert after == pytest.approx(1 / DIV / FINAL_DIV)


@pytest.mark.parametrize("kind", ScheduleKind)
def test_a_schedule_resumes_bit_for_bit(kind: ScheduleKind) -> None:
    def make_both() -> tuple[Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = make()
        return optimizer, make_schedule(kind, optimizer, steps=17, warmup_steps=4, arguments={})

    optimizer, schedule = make_both()
    for _ in range(9):
        optimizer.step()
        schedule.step()
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    resumed_optimizer, resumed = make_both()
    optimizer_state, schedule_state = torch.load(file, weights_only=True)
    resumed_optimizer.load_state_dict(optimizer_state)
    resumed.load_state_dict(schedule_state)
    for _ in range(8):
        for group, resumed_group in zip(optimizer.param_groups, resumed_optimizer.param_groups, strict=True):
            assert (group["lr"], group["betas"]) == (resumed_group["lr"], resumed_group["betas"])
        optimizer.step()
        schedule.step()
        resumed_optimizer.step()
        resumed.step()


def test_one_cycle_cycles_the_momentum_of_sgd_and_adam_only() -> None:
    for kind, key, cycles in [
        (OptimizerKind.SGD, "momentum", True),
        (OptimizerKind.ADAMW, "betas", True),
        (OptimizerKind.PRODIGY, "betas", False),
        (OptimizerKind.SCHEDULE_FREE_ADAMW, "betas", False),
        (OptimizerKind.ADAFACTOR, "beta1", False),
    ]:
        optimizer = make(kind)
        before = optimizer.param_groups[0][key]
        make_schedule(ScheduleKind.ONE_CYCLE, optimizer, steps=10, warmup_steps=3, arguments={})
        assert (optimizer.param_groups[0][key] != before) == cycles, kind
    plain = make(OptimizerKind.SGD, {"momentum": 0.0})
    make_schedule(ScheduleKind.ONE_CYCLE, plain, steps=10, warmup_steps=3, arguments={})
    assert plain.param_groups[0]["momentum"] == 0.0
    make_schedule(ScheduleKind.ONE_CYCLE, make(), steps=10, warmup_steps=3, arguments={"cycle_momentum": False})


def test_arguments_change_the_schedule() -> None:
    assert factors(ScheduleKind.COSINE, 8, 0, {"num_cycles": 1.0})[1] == pytest.approx(1.0)
    assert factors(ScheduleKind.COSINE_WITH_RESTARTS, 8, 0, {"num_cycles": 2})[0][4] == pytest.approx(1.0)
    assert factors(ScheduleKind.LINEAR, 8, 0, {"f_min": 0.1})[1] == pytest.approx(0.1)
    assert factors(ScheduleKind.POLYNOMIAL, 8, 0, {"power": 2, "lr_end": 0.0})[0][4] == pytest.approx(0.25)
    assert max(factors(ScheduleKind.ONE_CYCLE, 10, 0, {"pct_start": 0.3})[0]) == pytest.approx(1.0)
    assert factors(ScheduleKind.ONE_CYCLE, 10, 0, {"pct_start": 0.3})[0][3] == pytest.approx(1.0)
    assert factors(ScheduleKind.ONE_CYCLE, 10, 2, {"div_factor": 10})[0][0] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ScheduleKind)
def test_every_schedule_works_without_arguments(kind: ScheduleKind) -> None:
    check_schedule_arguments(kind, {})


#: Arguments that are refused; the golden file has the sentence of each.
REFUSED: list[tuple[ScheduleKind, Arguments]] = [
    (ScheduleKind.COSINE, {"cycles": 1.0}),
    (ScheduleKind.CONSTANT, {"power": 2.0}),
    (ScheduleKind.REX, {"power": 2.0}),
    (ScheduleKind.COSINE_WITH_RESTARTS, {"num_cycles": 1.5}),
    (ScheduleKind.POLYNOMIAL, {"lr_end": 1.0}),
    (ScheduleKind.ONE_CYCLE, {"pct_start": 1.5}),
    (ScheduleKind.ONE_CYCLE, {"anneal_strategy": "sine"}),
    (ScheduleKind.ONE_CYCLE, {"max_lr": 1.0}),
    (ScheduleKind.ONE_CYCLE, {"three_phase": True}),
    (ScheduleKind.LINEAR, {"num_warmup_steps": 9}),
]


def test_invalid_arguments_are_refused_with_a_hint() -> None:
    sentences = {}
    for kind, arguments in REFUSED:
        with pytest.raises(BadSpecError) as refusal:
            check_schedule_arguments(kind, arguments)
        sentences[f"{kind} {arguments}"] = refusal.value
    check_sentences(Path(__file__).parent / "golden" / "refused_schedule_arguments.txt", sentences)


def test_a_warm_up_longer_than_its_stage_is_refused() -> None:
    with pytest.raises(BadSpecError, match="11 at most"):
        make_schedule(ScheduleKind.REX, make(), steps=12, warmup_steps=30, arguments={})


def test_schedules_accept_the_wrapper_of_accelerate() -> None:
    for kind in (ScheduleKind.REX, ScheduleKind.POLYNOMIAL, ScheduleKind.ONE_CYCLE):
        wrapped = Accelerator(cpu=True).prepare_optimizer(make())
        schedule = make_schedule(kind, wrapped, steps=10, warmup_steps=1, arguments={})
        wrapped.step()
        schedule.step()
        assert wrapped.optimizer.param_groups[0]["lr"] == pytest.approx(PEAK), kind
    assert wrapped.optimizer.param_groups[0]["betas"] != (0.9, 0.999), (
        "one-cycle must cycle the momentum of the wrapped optimizer"
    )
