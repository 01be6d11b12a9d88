"""Optimizers by name, from their libraries, made to resume bit for bit and to handle frozen layers."""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from pickle import UnpicklingError
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.errors import BadSpecError, MissingLibraryError, first_line
from trainer.protocol.settings import Arguments
from trainer.protocol.text import N_, _, ngettext, translate
from trainer.protocol.training_settings import OWN_OPTIMIZERS, OptimizerKind, finds_its_rate

_CLASSES: Mapping[str, tuple[str, str]] = {
    OptimizerKind.ADAMW: ("torch.optim", "AdamW"),
    OptimizerKind.ADAM: ("torch.optim", "Adam"),
    OptimizerKind.SGD: ("torch.optim", "SGD"),
    OptimizerKind.ADAMW_8BIT: ("bitsandbytes.optim", "AdamW8bit"),
    # Not pytorch-optimizer's: it counts steps per group, not per parameter, and keeps its momentum in bf16.
    OptimizerKind.ADAFACTOR: ("transformers.optimization", "Adafactor"),
    OptimizerKind.LION: ("pytorch_optimizer", "Lion"),
    OptimizerKind.PRODIGY: ("pytorch_optimizer", "Prodigy"),
    OptimizerKind.DADAPT_ADAM: ("pytorch_optimizer", "DAdaptAdam"),
    OptimizerKind.CAME: ("pytorch_optimizer", "CAME"),
    OptimizerKind.SCHEDULE_FREE_ADAMW: ("pytorch_optimizer", "ScheduleFreeAdamW"),
}
_DEFAULTS: Mapping[str, Arguments] = {
    OptimizerKind.SGD: {"momentum": 0.9},
    # Use the schedule's rate, not one that grows with the weights.
    OptimizerKind.ADAFACTOR: {"relative_step": False, "scale_parameter": False},
    # Recommended by its authors for diffusion models (github.com/konstmish/prodigy); without the guard, a warm-up
    # inflates d.
    OptimizerKind.PRODIGY: {"bias_correction": True, "safeguard_warmup": True},
    # Decoupled decay, as in AdamW; the library adds it to the gradient by default.
    OptimizerKind.DADAPT_ADAM: {"weight_decouple": True},
}
_FUSED = {OptimizerKind.ADAMW, OptimizerKind.ADAM, OptimizerKind.SGD}
_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
_COUNTS_STEPS_PER_GROUP = {OptimizerKind.PRODIGY, OptimizerKind.DADAPT_ADAM, OptimizerKind.SCHEDULE_FREE_ADAMW}
#: Constructor parameters that a spec may not set, with what to do instead.
_RESERVED: Mapping[str, str] = {
    "params": N_("Stages decide what is trained."),
    "lr": N_("Set training.learning_rate."),
    "weight_decay": N_("Set training.weight_decay."),
    "maximize": N_("The loss is minimized; remove it."),
    "differentiable": N_("Nothing is differentiated through the optimizer; remove it."),
    "capturable": N_("Steps are not captured as CUDA graphs; remove it."),
    "relative_step": N_("The schedule sets the rate; remove it."),
    "warmup_init": N_("Set training.warmup_steps."),
    "warmup_steps": N_("Set training.warmup_steps."),
    "is_paged": N_("Remove it."),
}
#: The modules that hold the classes of a library.
_MODULES = {"torch": "torch.optim", "pytorch_optimizer": "pytorch_optimizer", "bitsandbytes": "bitsandbytes.optim"}
#: What another optimizer is tried on: a linear layer, a convolution and a bias.
_TRIAL_SHAPES = ((8, 8), (4, 4, 3, 3), (8,))
#: Before it is saved: some change nothing at first, or act on every tenth step.
_TRIAL_STEPS = 12
#: Key in a parameter group: groups of the same number estimate their rate together.
_ESTIMATE = "estimate"


def make_optimizer(
    kind: str, groups: Sequence[Mapping[str, Any]], *, weight_decay: float, arguments: Arguments
) -> Optimizer:
    """Create an optimizer for torch's parameter `groups`, each with its `params` and `lr`.

    A parameter without a gradient is not updated and takes no memory until it has one. Parameters that are unfrozen
    later must be in a group of their own, because prodigy, dadapt_adam and schedule_free_adamw count steps per group.

    Args:
        kind: An `OptimizerKind`, or a class of a library: `torch.RAdam`.
        weight_decay: For groups without a `weight_decay` of their own.

    Raises:
        BadSpecError: The class is unknown; an argument is unknown, of the wrong type, or out of range.
        MissingLibraryError: The library is missing, or does not run on this device.
    """
    constructor = _constructor(kind)
    check_library_arguments(constructor, arguments, owner=kind, setting="optimizer_arguments", reserved=_RESERVED)
    rates = sorted({float(group["lr"]) for group in groups}, reverse=True)
    own_groups = [dict(group) for group in groups]
    if finds_its_rate(kind):
        for group in own_groups:
            group[_ESTIMATE] = rates.index(float(group["lr"]))
    given: dict[str, Any] = {**_DEFAULTS.get(kind, {}), **arguments}
    if "weight_decay" in inspect.signature(constructor).parameters:
        given["weight_decay"] = weight_decay
    if kind in _FUSED and "foreach" not in given and "fused" not in given:
        given["fused"] = _can_be_fused(own_groups)
    try:
        # The default rate is the highest one: diffusers' polynomial schedule compares `lr_end` with it.
        optimizer: Optimizer = constructor(own_groups, lr=rates[0], **given)
    except (ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise BadSpecError(
            _("The arguments do not suit {optimizer}: {error}.", optimizer=kind, error=str(error).rstrip(".")),
            _("Correct optimizer_arguments, or take another optimizer."),
        ) from error
    if kind in _COUNTS_STEPS_PER_GROUP or kind.startswith("pytorch_optimizer."):
        _step_groups_separately(optimizer)
    return optimizer


def check_optimizer_arguments(kind: str, arguments: Arguments) -> None:
    """Raise what `make_optimizer` would raise for these arguments; needs no model.

    An optimizer that is not one of ours is tried: it must step without a closure and continue from a file bit for bit.

    Raises:
        BadSpecError: An argument is unknown, of the wrong type, or out of range, or the optimizer cannot be used.
        MissingLibraryError: The library is missing, or does not run on this machine.
    """
    if kind not in OWN_OPTIMIZERS:
        _try_optimizer(kind, arguments)
        return
    group = {"params": [nn.Parameter(torch.zeros(2, 2))], "lr": 1e-4}
    make_optimizer(kind, [group], weight_decay=0.0, arguments=arguments)


def _try_optimizer(kind: str, arguments: Arguments) -> None:
    optimizer = _trial_optimizer(kind, arguments)
    try:
        _take_trial_steps(optimizer, range(_TRIAL_STEPS))
        weights = [parameter.detach().clone() for parameter in _parameters(optimizer)]
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = _trial_optimizer(kind, arguments, weights)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for each in (optimizer, resumed):
            _take_trial_steps(each, range(_TRIAL_STEPS, _TRIAL_STEPS + 3))
    except BadSpecError:
        raise
    except UnpicklingError as error:
        raise _unusable(kind, _("its state cannot be read back from a file without running code in it")) from error
    except Exception as error:
        # A library's optimizers raise anything: some need a closure, the model, or second derivatives.
        raise _unusable(kind, first_line(error)) from error
    pairs = list(zip(_parameters(optimizer), _parameters(resumed), strict=True))
    if not all(bool(one.isfinite().all()) for one, _other in pairs):
        raise _unusable(kind, _("its weights are no longer numbers after a few steps"))
    if all(torch.equal(before, one) for before, (one, _other) in zip(weights, pairs, strict=True)):
        raise _unusable(kind, _("it changes no weights"))
    if not all(torch.equal(one, other) for one, other in pairs):
        raise _unusable(kind, _("it does not continue from a checkpoint as if it had not been stopped"))


def _trial_optimizer(kind: str, arguments: Arguments, weights: Sequence[Tensor] = ()) -> Optimizer:
    generator = torch.Generator().manual_seed(0)
    values = weights or [torch.randn(shape, generator=generator) for shape in _TRIAL_SHAPES]
    parameters = [nn.Parameter(value.clone()) for value in values]
    rate = 1.0 if finds_its_rate(kind) else 1e-3
    return make_optimizer(kind, [{"params": parameters, "lr": rate}], weight_decay=0.01, arguments=arguments)


def _take_trial_steps(optimizer: Optimizer, numbers: range) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in _parameters(optimizer):
            parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _unusable(kind: str, why: str) -> BadSpecError:
    return BadSpecError(
        _("{optimizer} cannot train here: {why}.", optimizer=kind, why=why.rstrip(".")),
        _("Set training.optimizer to another one, such as adamw."),
    )


def effective_rate(optimizer: Optimizer, rates: Sequence[float]) -> float:
    """Return the highest rate of all groups (`rates`), times the estimated `d` with prodigy and dadapt_adam."""
    groups = zip(optimizer.param_groups, rates, strict=True)
    return max(float(rate) * float(group["d"] if _ESTIMATE in group else 1.0) for group, rate in groups)


def check_library_arguments(
    function: Callable[..., Any], arguments: Arguments, *, owner: str, setting: str, reserved: Mapping[str, str]
) -> None:
    """Check the arguments that a spec passes to a library's function by the function's signature.

    Args:
        owner: Name of the optimizer or schedule.
        setting: Name of the setting that holds the arguments.
        reserved: Parameters that a spec may not set, each with what to do instead, marked by `N_`.

    Raises:
        BadSpecError: An argument is unknown, reserved, or of the wrong type.
    """
    known = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in reserved and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }
    for name, value in arguments.items():
        if name in reserved:
            raise BadSpecError(
                _("{setting}.{name} cannot be set.", setting=setting, name=name), translate(reserved[name])
            )
        if name not in known:
            raise _unknown_argument(f"{setting}.{name}", name, list(known), owner)
        if not _has_type_of(value, known[name]):
            raise BadSpecError(
                _(
                    "{setting}.{name} is {value!r}, which {owner} does not take.",
                    setting=setting,
                    name=name,
                    value=value,
                    owner=owner,
                ),
                _("Give {type}.", type=_describe_type(known[name])),
            )


def _unknown_argument(dotted: str, name: str, known: list[str], owner: str) -> BadSpecError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    message = _("{argument} is not an argument of {owner}.", argument=dotted, owner=owner)
    if near:
        message += " " + _("Did you mean {name}?", name=near[0])
    hint = _("It takes {names}.", names=", ".join(known)) if known else _("It takes no arguments.")
    return BadSpecError(message, hint)


def _type_of(parameter: inspect.Parameter) -> type:
    """Return the type of a parameter's default, or guess it from the annotation if that is None, or 0 for 0.0."""
    if parameter.default is None or parameter.default is parameter.empty:
        return bool if "bool" in str(parameter.annotation) else float
    if type(parameter.default) is int and "float" in str(parameter.annotation):
        return float
    return type(parameter.default)


def _has_type_of(value: object, parameter: inspect.Parameter) -> bool:
    expected = _type_of(parameter)
    if expected is tuple:
        return isinstance(value, tuple) and len(value) == len(parameter.default)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is expected


def _describe_type(parameter: inspect.Parameter) -> str:
    expected = _type_of(parameter)
    if expected is tuple:
        return ngettext("{n} number", "{n} numbers", len(parameter.default))
    return {bool: _("true or false"), int: _("a whole number"), float: _("a number"), str: _("a word")}[expected]


def _constructor(kind: str) -> type[Any]:
    if kind in OWN_OPTIMIZERS:
        module, name = _CLASSES[kind]
    else:
        module, name = _MODULES[kind.partition(".")[0]], kind.rpartition(".")[2]
    library = module.partition(".")[0].replace("_", "-")
    try:
        classes = vars(importlib.import_module(module))
    except ImportError as error:
        raise MissingLibraryError(
            _(
                "The optimizer {optimizer} needs {library}, which cannot be imported here.",
                optimizer=kind,
                library=library,
            ),
            _("`pip install {library}`, or set training.optimizer to adamw.", library=library),
        ) from error
    if library == "bitsandbytes" and not torch.cuda.is_available():
        raise MissingLibraryError(
            _("The optimizer {optimizer} needs a CUDA GPU, and there is none here.", optimizer=kind),
            _("Set training.optimizer to adamw."),
        )
    found = classes.get(name)
    if not isinstance(found, type) or not issubclass(found, Optimizer) or found is Optimizer:
        known = [each for each, value in classes.items() if isinstance(value, type) and issubclass(value, Optimizer)]
        near = [each for each in difflib.get_close_matches(name, known, n=4, cutoff=0.4) if each != name]
        raise BadSpecError(
            _("{library} has no optimizer {name}.", library=library, name=name),
            _("Did you mean {names}?", names=", ".join(near)) if near else _("Set training.optimizer to adamw."),
        )
    return found


def _can_be_fused(groups: Sequence[Mapping[str, Any]]) -> bool:
    """True if torch has a fused kernel: 6.8 ms per step instead of 23 ms for 11 M parameters on 2 cores."""
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)


def _step_groups_separately(optimizer: Optimizer) -> None:
    """Make `step` of a pytorch-optimizer class correct for several rates, and for groups that are frozen for a while.

    These classes count steps per group whether it has gradients or not, so a group unfrozen later would start without
    bias correction, with steps up to 31 times too long. Those that estimate their rate use the first group's rate for
    all. The replacement calls `step` only on groups with gradients, and for the latter separately per rate and age.
    """
    step = optimizer.step

    def step_separately(self: Optimizer, closure: None = None) -> None:
        assert closure is None
        groups = self.param_groups
        assert all(group.get("train_mode", True) for group in groups), "stepping in evaluation mode"
        try:
            for subset in _groups_to_step_together(groups):
                self.param_groups = subset
                step()
        finally:
            self.param_groups = groups

    # Bound to the instance: schedulers wrap `step` once more and need a method.
    optimizer.step = MethodType(step_separately, optimizer)  # type: ignore[method-assign]


def _groups_to_step_together(groups: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Partition the groups that have gradients by rate and age."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for group in groups:
        first = next((parameter for parameter in group["params"] if parameter.grad is not None), None)
        if first is None:
            continue
        _copy_tensors(group, first.device)
        age = group.get("step", 0) if _ESTIMATE in group else 0
        found.setdefault((group.get(_ESTIMATE, 0), age), []).append(group)
    return list(found.values())


def _copy_tensors(group: dict[str, Any], device: torch.device) -> None:
    """Give a group its own copies of the running sums of prodigy and dadapt_adam, on `device`.

    The library shares one tensor among groups that step together, which would mix them once they no longer do, and
    torch leaves it on the device that it was loaded to.
    """
    for key, value in group.items():
        if isinstance(value, Tensor):
            group[key] = value.to(device, copy=True)
