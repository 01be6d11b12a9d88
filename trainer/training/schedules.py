"""Learning-rate schedules by name; every parameter group keeps its share of the highest rate.

A stage has N steps, W of them warm-up; step n counts from 0. A decaying schedule reaches its end after the last step,
at n = N.
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
from trainer.protocol.settings import Arguments
from trainer.protocol.text import N_, _
from trainer.protocol.training_settings import ScheduleKind
from trainer.training.optimizers import check_library_arguments

#: Called directly, because `diffusers.optimization.get_scheduler` passes on only two of their arguments.
_DIFFUSERS: Mapping[ScheduleKind, Callable[..., LRScheduler]] = {
    ScheduleKind.CONSTANT: diffusers_schedules.get_constant_schedule_with_warmup,
    ScheduleKind.LINEAR: diffusers_schedules.get_linear_schedule_with_warmup,
    ScheduleKind.COSINE: diffusers_schedules.get_cosine_schedule_with_warmup,
    ScheduleKind.COSINE_WITH_RESTARTS: diffusers_schedules.get_cosine_with_hard_restarts_schedule_with_warmup,
    ScheduleKind.POLYNOMIAL: diffusers_schedules.get_polynomial_decay_schedule_with_warmup,
}
_SET_EPOCHS = N_("Set training.epochs, or the epochs of a stage.")
#: Parameters that a spec may not set, with what to do instead.
_RESERVED: Mapping[str, str] = {
    "optimizer": N_("Set training.optimizer."),
    "num_warmup_steps": N_("Set training.warmup_steps."),
    "num_training_steps": _SET_EPOCHS,
    "last_epoch": N_("Resuming needs no setting."),
    "max_lr": N_("Set training.learning_rate."),
    "total_steps": _SET_EPOCHS,
    "epochs": _SET_EPOCHS,
    "steps_per_epoch": _SET_EPOCHS,
    "three_phase": N_("Use three stages."),
    "step": _SET_EPOCHS,
    "steps": _SET_EPOCHS,
    "warmup_steps": N_("Set training.warmup_steps."),
}


def make_schedule(
    kind: ScheduleKind, optimizer: Optimizer, *, steps: int, warmup_steps: int, arguments: Arguments
) -> LRScheduler:
    """Create the schedule of a stage of `steps` optimizer steps; step it after each of them.

    The rate rises from 0 over `warmup_steps`, or, with one_cycle, from the highest rate over `div_factor`.

    Raises:
        BadSpecError: An argument is unknown, of the wrong type or out of range, or the warm-up is too long.
    """
    check_library_arguments(_function(kind), arguments, owner=kind, setting="schedule_arguments", reserved=_RESERVED)
    check_warmup(warmup_steps, steps)
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
            _("The arguments do not suit {schedule}: {error}.", schedule=kind, error=str(error).rstrip(".")),
            _("Correct schedule_arguments."),
        ) from error


def check_warmup(warmup_steps: int, steps: int) -> None:
    """Check that the warm-up is shorter than its stage.

    Raises:
        BadSpecError: It is not.
    """
    if warmup_steps >= steps:
        raise BadSpecError(
            _(
                "A warm-up of {warmup} steps does not fit into the {steps} steps of the stage.",
                warmup=warmup_steps,
                steps=steps,
            ),
            _("Set warmup_steps to {most} at most, or remove it and set warmup_share.", most=steps - 1),
        )


def check_schedule_arguments(kind: ScheduleKind, arguments: Arguments, *, learning_rate: float = 1e-4) -> None:
    """Raise what `make_schedule` would raise for these arguments; needs no model.

    Raises:
        BadSpecError: An argument is unknown, of the wrong type, or out of range.
    """
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
    make_schedule(kind, optimizer, steps=100, warmup_steps=0, arguments=arguments)


def rex(step: int, *, steps: int, warmup_steps: int) -> float:
    """Return the factor (1 - p) / (1/2 + 1/2 (1 - p)), where p is the completed share of the steps after the warm-up.

    Chen et al. 2021, arXiv:2107.04197, section 3. Not pytorch-optimizer's REXScheduler, which gives every group the
    same rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    left = max(0.0, 1 - (step - warmup_steps) / (steps - warmup_steps))
    return left / (0.5 + 0.5 * left)


def _function(kind: ScheduleKind) -> Callable[..., Any]:
    """Return the function whose arguments a spec may set."""
    if kind is ScheduleKind.ONE_CYCLE:
        return OneCycleLR
    return rex if kind is ScheduleKind.REX else _DIFFUSERS[kind]


def _one_cycle(optimizer: Optimizer, steps: int, warmup_steps: int, arguments: Arguments) -> OneCycleLR:
    """Create a one-cycle schedule (Smith & Topin 2017, arXiv:1708.07120).

    torch counts rates, not the steps between them. With `steps + 1` rates the highest is at the end of the warm-up and
    the lowest after the last step; with `steps`, torch would step past its end.
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
        # Without a warm-up the rate falls from the first step. A warm-up of one step would make torch divide by zero.
        pct_start=(warmup_steps + 1) / (steps + 1) if warmup_steps else 0.0,
        **given,
    )


def _has_momentum(optimizer: Optimizer) -> bool:
    """True if momentum may be cycled; schedule-free and prodigy use beta1 for an average or an estimate instead."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return isinstance(inner, Adam) or (isinstance(inner, SGD) and inner.defaults["momentum"] > 0)
