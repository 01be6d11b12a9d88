"""Optimizers by name, from their libraries, made to resume to the bit and to let frozen layers be."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.errors import BadSpecError, MissingLibraryError
from trainer.protocol.settings import Arguments, OptimizerKind
from trainer.training.arguments import check_against

_CLASSES: Mapping[OptimizerKind, tuple[str, str]] = {
    OptimizerKind.ADAMW: ("torch.optim", "AdamW"),
    OptimizerKind.ADAM: ("torch.optim", "Adam"),
    OptimizerKind.SGD: ("torch.optim", "SGD"),
    OptimizerKind.ADAMW_8BIT: ("bitsandbytes.optim", "AdamW8bit"),
    # That of pytorch-optimizer counts steps for a group and keeps its momentum in bf16; this one for each parameter.
    OptimizerKind.ADAFACTOR: ("transformers.optimization", "Adafactor"),
    OptimizerKind.LION: ("pytorch_optimizer", "Lion"),
    OptimizerKind.PRODIGY: ("pytorch_optimizer", "Prodigy"),
    OptimizerKind.DADAPT_ADAM: ("pytorch_optimizer", "DAdaptAdam"),
    OptimizerKind.CAME: ("pytorch_optimizer", "CAME"),
    OptimizerKind.SCHEDULE_FREE_ADAMW: ("pytorch_optimizer", "ScheduleFreeAdamW"),
}
_DEFAULTS: Mapping[OptimizerKind, Arguments] = {
    OptimizerKind.SGD: {"momentum": 0.9},
    # The rate is the schedule's, and does not grow with the weights.
    OptimizerKind.ADAFACTOR: {"relative_step": False, "scale_parameter": False},
    # Its authors' for diffusion models (github.com/konstmish/prodigy); without the guard a warm-up inflates d.
    OptimizerKind.PRODIGY: {"bias_correction": True, "safeguard_warmup": True},
    # Decay as in AdamW; the library's default adds it to the gradient.
    OptimizerKind.DADAPT_ADAM: {"weight_decouple": True},
}
_FUSED = {OptimizerKind.ADAMW, OptimizerKind.ADAM, OptimizerKind.SGD}
_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
_COUNTS_STEPS_OF_GROUPS = {OptimizerKind.PRODIGY, OptimizerKind.DADAPT_ADAM, OptimizerKind.SCHEDULE_FREE_ADAMW}
#: Parameters of constructors that are not for the spec, with what to do instead.
_OURS: Mapping[str, str] = {
    "params": "Stages say what is trained.",
    "lr": "Set training.learning_rate.",
    "weight_decay": "Set training.weight_decay.",
    "maximize": "A loss is minimized; leave it away.",
    "differentiable": "Nothing is derived through the optimizer; leave it away.",
    "capturable": "Steps are not captured as CUDA graphs; leave it away.",
    "relative_step": "The schedule gives the rate; leave it away.",
    "warmup_init": "Set training.warmup_steps.",
    "warmup_steps": "Set training.warmup_steps.",
    "is_paged": "Leave it away.",
}
#: Key in a parameter group: groups of one number estimate their rate together.
_ESTIMATE = "estimate"


def make_optimizer(
    kind: OptimizerKind, groups: Sequence[Mapping[str, Any]], *, weight_decay: float, arguments: Arguments
) -> Optimizer:
    """The optimizer of torch's parameter `groups`, each with its `params` and `lr`.

    A group without a `weight_decay` of its own gets `weight_decay`. Parameters without a gradient are left as they
    are, and cost no memory until they have one. What joins at a later epoch must be a group of its own: the libraries
    of prodigy, dadapt_adam and schedule_free_adamw count steps for a group. All functions here take the optimizer
    with accelerate's wrapper around it, too.

    Raises:
        BadSpecError: an argument is unknown, of another kind, or out of its range.
        MissingLibraryError: the library is not there, or does not run on this device.
    """
    constructor = _constructor(kind)
    check_against(constructor, arguments, owner=kind, setting="optimizer_arguments", ours=_OURS)
    rates = sorted({float(group["lr"]) for group in groups}, reverse=True)
    own_groups = [dict(group) for group in groups]
    if kind.finds_its_rate:
        for group in own_groups:
            group[_ESTIMATE] = rates.index(float(group["lr"]))
    given = {**_DEFAULTS.get(kind, {}), **arguments}
    if kind in _FUSED and "foreach" not in given and "fused" not in given:
        given["fused"] = _can_be_fused(own_groups)
    try:
        # As a default, the highest rate: diffusers' polynomial schedule measures `lr_end` by it.
        optimizer: Optimizer = constructor(own_groups, lr=rates[0], weight_decay=weight_decay, **given)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise BadSpecError(
            f"The arguments do not suit {kind}: {str(error).rstrip('.')}.", "Mend optimizer_arguments."
        ) from error
    if kind in _COUNTS_STEPS_OF_GROUPS:
        _step_apart(optimizer)
    return optimizer


def check_arguments(kind: OptimizerKind, arguments: Arguments) -> None:
    """What `make_optimizer` would refuse, without a model.

    Raises:
        BadSpecError: an argument is unknown, of another kind, or out of its range.
        MissingLibraryError: the library is not there, or does not run on this machine.
    """
    group = {"params": [nn.Parameter(torch.zeros(2, 2))], "lr": 1e-4}
    make_optimizer(kind, [group], weight_decay=0.0, arguments=arguments)


def effective_rate(optimizer: Optimizer) -> float:
    """The highest rate of all groups; with prodigy and dadapt_adam times the `d` that they found."""
    groups = optimizer.param_groups
    return max(float(group["lr"]) * float(group["d"] if _ESTIMATE in group else 1.0) for group in groups)


@contextmanager
def evaluation_mode(optimizer: Optimizer) -> Iterator[None]:
    """The weights as they are to be judged and kept: schedule-free's averages. Nothing happens with other optimizers.

    What is trained with comes back to the bit: the library's `train()` computes it from the averages, rounded. The
    copy costs as much as the gradients, which are not there between steps.
    """
    if not any("train_mode" in group for group in optimizer.param_groups):
        yield
        return
    trained: list[nn.Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in trained if optimizer.state.get(parameter)]
    averaged = [parameter for parameter in trained if optimizer.state.get(parameter)]
    optimizer.eval()  # type: ignore[attr-defined]  # schedule-free ones have it, and accelerate's wrapper
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(averaged, kept, strict=True):
                parameter.copy_(value)
        for group in optimizer.param_groups:
            group["train_mode"] = True


def _constructor(kind: OptimizerKind) -> type[Any]:
    module, name = _CLASSES[kind]
    library = module.partition(".")[0].replace("_", "-")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MissingLibraryError(
            f"The optimizer {kind} needs {library}, which cannot be imported here.",
            f"`pip install {library}`, or set training.optimizer to adamw.",
        ) from error
    if kind is OptimizerKind.ADAMW_8BIT and not torch.cuda.is_available():
        raise MissingLibraryError(
            f"The optimizer {kind} needs a CUDA GPU, and there is none here.", "Set training.optimizer to adamw."
        )
    return found


def _can_be_fused(groups: Sequence[Mapping[str, Any]]) -> bool:
    """One kernel for all: on 2 cores 6.8 ms a step for 11 M parameters, where torch's default takes 23 ms."""
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)


def _step_apart(optimizer: Optimizer) -> None:
    """Make pytorch-optimizer's `step` right for groups with several rates, and for groups that are frozen for a while.

    Its optimizers count steps for a group whether it has gradients or not, so that one unfrozen later would begin
    without bias correction, its steps up to 31 times too long. Those that find their rate take the first group's for
    all. Here a step sees only groups with gradients, and for the latter those of one rate and age at once.
    """
    step = optimizer.step

    def step_apart(self: Optimizer, closure: None = None) -> None:
        assert closure is None
        groups = self.param_groups
        assert all(group.get("train_mode", True) for group in groups), "stepping in evaluation mode"
        try:
            for together in _together(groups):
                self.param_groups = together
                step()
        finally:
            self.param_groups = groups

    # Bound to the instance: schedulers, which wrap it once more, need a method.
    optimizer.step = MethodType(step_apart, optimizer)  # type: ignore[method-assign]


def _together(groups: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The groups with gradients, those that may share a step at once."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for group in groups:
        first = next((parameter for parameter in group["params"] if parameter.grad is not None), None)
        if first is None:
            continue
        _own_tensors(group, first.device)
        age = group.get("step", 0) if _ESTIMATE in group else 0
        found.setdefault((group.get(_ESTIMATE, 0), age), []).append(group)
    return list(found.values())


def _own_tensors(group: dict[str, Any], device: torch.device) -> None:
    """Running sums of prodigy and dadapt_adam become the group's own: the library gives groups that step together one
    tensor, which would mix them once they no longer do; and torch leaves it on the device that it was loaded to."""
    for key, value in group.items():
        if isinstance(value, Tensor):
            group[key] = value.to(device, copy=True)
