"""How the learning rate moves over a stage, by name; every group keeps its share of the highest rate.

N steps in all, W of warm-up; the factor of step n, from 0. After the last step, at n = N, a falling schedule is at its
end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import optimization as diffusers_schedules
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from trainer.errors import BadSpecError
from trainer.protocol.settings import Arguments, ScheduleKind
from trainer.training.arguments import check_against

#: `diffusers.optimization.get_scheduler` hands on two of their arguments only, so they are called themselves.
_DIFFUSERS: Mapping[ScheduleKind, Callable[..., LRScheduler]] = {
    ScheduleKind.CONSTANT: diffusers_schedules.get_constant_schedule_with_warmup,
    ScheduleKind.LINEAR: diffusers_schedules.get_linear_schedule_with_warmup,
    ScheduleKind.COSINE: diffusers_schedules.get_cosine_schedule_with_warmup,
    ScheduleKind.COSINE_WITH_RESTARTS: diffusers_schedules.get_cosine_with_hard_restarts_schedule_with_warmup,
    ScheduleKind.POLYNOMIAL: diffusers_schedules.get_polynomial_decay_schedule_with_warmup,
}
_EPOCHS = "Set training.epochs, or those of a stage."
#: Parameters that are not for the spec, with what to do instead.
_OURS: Mapping[str, str] = {
    "optimizer": "Set training.optimizer.",
    "num_warmup_steps": "Set training.warmup_steps.",
    "num_training_steps": _EPOCHS,
    "last_epoch": "A resumed training goes on by itself.",
    "max_lr": "Set training.learning_rate.",
    "total_steps": _EPOCHS,
    "epochs": _EPOCHS,
    "steps_per_epoch": _EPOCHS,
    "three_phase": "Make it three stages.",
    "step": _EPOCHS,
    "steps": _EPOCHS,
    "warmup_steps": "Set training.warmup_steps.",
}


def make_schedule(
    kind: ScheduleKind, optimizer: Optimizer, *, steps: int, warmup_steps: int, arguments: Arguments
) -> LRScheduler:
    """The schedule of a stage of `steps` optimizer steps, to be stepped after each of them.

    The rate rises from 0 over `warmup_steps`; with one_cycle from the highest over `div_factor`.

    Raises:
        BadSpecError: an argument is unknown, of another kind or out of its range, or the warm-up outlasts the stage.
    """
    check_against(_function(kind), arguments, owner=kind, setting="schedule_arguments", ours=_OURS)
    if warmup_steps >= steps:
        raise BadSpecError(
            f"A warm-up of {warmup_steps} steps outlasts the {steps} steps of the stage.",
            f"Set warmup_steps to {steps - 1} at most, or leave it away for warmup_share.",
        )
    try:
        if kind is ScheduleKind.ONE_CYCLE:
            return _one_cycle(optimizer, steps, warmup_steps, arguments)
        if kind is ScheduleKind.REX:
            return LambdaLR(optimizer, partial(rex, steps=steps, warmup_steps=warmup_steps))
        lengths = {"num_warmup_steps": warmup_steps}
        if kind is not ScheduleKind.CONSTANT:
            lengths["num_training_steps"] = steps
        return _DIFFUSERS[kind](optimizer, **lengths, **arguments)
    except ValueError as error:
        raise BadSpecError(
            f"The arguments do not suit {kind}: {str(error).rstrip('.')}.", "Mend schedule_arguments."
        ) from error


def check_warmup(warmup_steps: int, steps: int) -> None:
    """Raises: BadSpecError: the warm-up outlasts the `steps` of its stage."""
    if warmup_steps >= steps:
        raise BadSpecError(
            f"A warm-up of {warmup_steps} steps outlasts the {steps} steps of the stage.",
            f"Set warmup_steps to {steps - 1} at most, or leave it away for warmup_share.",
        )


def check_schedule_arguments(kind: ScheduleKind, arguments: Arguments, *, learning_rate: float = 1e-4) -> None:
    """What `make_schedule` would refuse of arguments, without a model.

    Raises:
        BadSpecError: an argument is unknown, of another kind, or out of its range.
    """
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
    make_schedule(kind, optimizer, steps=100, warmup_steps=0, arguments=arguments)


def rex(step: int, *, steps: int, warmup_steps: int) -> float:
    """The factor (1 - p) / (1/2 + 1/2 (1 - p)) at the share p of the steps after the warm-up.

    Chen et al. 2021, arXiv:2107.04197, section 3. pytorch-optimizer's REXScheduler gives every group the same rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    left = max(0.0, 1 - (step - warmup_steps) / (steps - warmup_steps))
    return left / (0.5 + 0.5 * left)


def _function(kind: ScheduleKind) -> Callable[..., Any]:
    """Whose arguments a spec may give."""
    if kind is ScheduleKind.ONE_CYCLE:
        return OneCycleLR
    return rex if kind is ScheduleKind.REX else _DIFFUSERS[kind]


def _one_cycle(optimizer: Optimizer, steps: int, warmup_steps: int, arguments: Arguments) -> OneCycleLR:
    """Smith & Topin 2017, arXiv:1708.07120.

    torch counts the rates and not the steps between them: with one more than `steps`, the highest stands at the end of
    the warm-up and the lowest after the last step, where torch would else go on past its end.
    """
    given: dict[str, Any] = dict(arguments)
    if (share := given.pop("pct_start", None)) is not None:
        if not 0 <= share <= 1:
            raise ValueError(f"pct_start {share:g} is not between 0 and 1")
        warmup_steps = min(round(share * steps), steps - 1)
    given.setdefault("cycle_momentum", _has_momentum(optimizer))
    return OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        total_steps=steps + 1,
        # Without a warm-up it falls from the first step on; one step of it would be none, which torch divides by.
        pct_start=(warmup_steps + 1) / (steps + 1) if warmup_steps else 0.0,
        **given,
    )


def _has_momentum(optimizer: Optimizer) -> bool:
    """Whether a cycle of its momentum does what the paper means: not where beta1 is part of an average or an estimate
    of the rate, as with schedule-free and prodigy."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return isinstance(inner, Adam) or (isinstance(inner, SGD) and inner.defaults["momentum"] > 0)
