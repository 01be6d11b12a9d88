"""Optimizer steps within the backward pass: each weight is changed as soon as its gradient is known.

The gradient is then freed, so those of a full fine-tune are never in memory together. Weights in bf16 are widened to
fp32 one at a time while they are changed, and rounded stochastically: rounded to the nearest, they would not move by
steps of 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.device import Processes
from trainer.errors import BadSpecError
from trainer.protocol.text import _


def check_machine(processes: Processes) -> None:
    """Refuse what a fused backward pass cannot do on this machine.

    Raises:
        BadSpecError: Several processes share the training, or the GPU has no bf16.
    """
    if processes.count > 1:
        raise BadSpecError(
            _("training.fused_backward works on one GPU, and this training has {count}.", count=processes.count),
            _("Ask for one GPU, or set training.fused_backward to false."),
        )
    if processes.accelerator.scaler is not None:
        raise BadSpecError(
            _("training.fused_backward needs bf16, which this GPU does not have."),
            _("Set training.precision to fp32, or training.fused_backward to false."),
        )


@contextmanager
def stepping_in_backward(optimizer: Optimizer, *, max_grad_norm: float) -> Iterator[None]:
    """Within the body, a backward pass changes each weight that it has completed the gradient of, and frees it.

    Gradients of earlier passes are part of it. Each is limited to `max_grad_norm` by itself, as in kohya's scripts: the
    norm of all is not known before the first weight is changed.
    """
    owners = [(parameter, index) for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]]
    handles = [
        parameter.register_post_accumulate_grad_hook(
            lambda own, index=index: _step_parameter(optimizer, index, own, max_grad_norm)
        )
        for parameter, index in owners
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for parameter, index in owners:
        if parameter.grad is not None:
            # It was no part of this pass, only of earlier ones.
            _step_parameter(optimizer, index, parameter, max_grad_norm)


@torch.no_grad()
def _step_parameter(optimizer: Optimizer, index: int, parameter: nn.Parameter, max_grad_norm: float) -> None:
    # Imported here: its 160 modules take 0.4 s, which few trainings need.
    from pytorch_optimizer.optimizer.utils.precision import copy_stochastic

    groups, stored = optimizer.param_groups, parameter.data
    if stored.dtype is torch.bfloat16:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        parameter.grad = None
        parameter.data = stored.float()
        parameter.grad = gradient
    nn.utils.clip_grad_norm_([parameter], max_grad_norm)
    optimizer.param_groups = [{**groups[index], "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
        parameter.grad = None
        if stored.dtype is torch.bfloat16:
            copy_stochastic(stored, parameter.data)
            parameter.data = stored


@contextmanager
def state_in_fp32(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Keep the optimizer's state in fp32 while it is loaded: torch casts it to the dtype of its weight."""
    kept = [(parameter, parameter.data) for parameter in parameters if parameter.dtype is torch.bfloat16]
    try:
        for parameter, data in kept:
            parameter.data = torch.zeros((), device=data.device).expand(data.shape)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
