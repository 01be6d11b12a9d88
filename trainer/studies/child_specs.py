"""The specs of a study's children: candidates of a comparison, folds and final run of a cross-validation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from trainer.errors import UsageError
from trainer.protocol.setting_problems import SHORT_NAMES, parse_toml, parse_value
from trainer.protocol.settings import EarlyStopping, SplitChoice, SplitKind
from trainer.protocol.spec import Spec, SpecError, make_spec
from trainer.protocol.text import _
from trainer.protocol.training_settings import Stage, Unfreeze

MAX_CANDIDATES = 64

#: Settings that change what is measured: losses under two values of them cannot be compared.
_MEASURING = (
    "dataset",
    "task",
    "base",
    "base.*",
    "split",
    "split.*",
    "validation",
    "validation.*",
    "mix",
    "mix.*.dataset",
    "mix.*.role",
    "training.resolution",
    "objective.prediction",
    "objective.zero_terminal_snr",
)
#: Settings that no result depends on.
_IDLE = ("version", "name", "preset", "samples", "samples.*")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting and the values to try."""

    #: Dotted; an item of a list goes by its index: `stages.0.learning_rate`.
    setting: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One combination of values."""

    #: The name of its folder: `c01`, `c02`, …
    name: str
    values: Mapping[str, Any]
    spec: Spec

    @property
    def label(self) -> str:
        """The values as users read them: `learning rate 0.0003, rank 8`."""
        named = ((setting.rpartition(".")[2].replace("_", " "), value) for setting, value in self.values.items())
        return ", ".join(f"{name} {format_value(value)}" for name, value in named)


def parse_axis(text: str) -> Axis:
    """Parse `lr=1e-4,3e-4` or `method.targets=attention,all`; values are TOML, bare words are strings.

    Raises:
        UsageError: it has another form, or the setting may not be varied.
    """
    setting, equals, values_text = (part.strip() for part in text.partition("="))
    if not (equals and setting and values_text):
        raise UsageError(
            _("“{text}” is not a setting with its values.", text=text), _("Write it like lr=1e-4,3e-4 or rank=8,32.")
        )
    setting = SHORT_NAMES.get(setting, setting)
    if any(fnmatchcase(setting, pattern) for pattern in _MEASURING):
        raise UsageError(
            _(
                "{setting} changes what is measured, so losses under two values of it cannot be compared.",
                setting=setting,
            ),
            _("Train a job for each value and compare their samples."),
        )
    if any(fnmatchcase(setting, pattern) for pattern in _IDLE):
        raise UsageError(
            _("No result depends on {setting}.", setting=setting), _("Vary a setting that affects training.")
        )
    values = _parse_values(values_text)
    if any(_has_table(value) for value in values):
        # A table would replace a whole group, and with it settings that may not be varied.
        raise UsageError(
            _("{setting} has a group of settings as a value.", setting=setting),
            _("Vary each setting by its own name, such as rank=8,32."),
        )
    if len(values) < 2:
        raise UsageError(_("{setting} has one value.", setting=setting), _("Give at least two."))
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise UsageError(
            _("{setting} has {value} twice.", setting=setting, value=format_value(twice)), _("Give each value once.")
        )
    return Axis(setting=setting, values=values)


def make_candidates(spec: Spec, axes: Sequence[Axis]) -> tuple[Candidate, ...]:
    """Make a candidate of each combination of the values, in their order.

    Raises:
        UsageError: a setting is varied twice, there are too many combinations, or some cannot be trained; the
            sentence names each of those.
    """
    settings = [axis.setting for axis in axes]
    if len(set(settings)) < len(settings):
        raise UsageError(_("A setting is varied twice."), _("Give all of its values at once."))
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MAX_CANDIDATES:
        raise UsageError(
            _("These are {n} candidates.", n=len(combinations)), _("Vary less: {most} at most.", most=MAX_CANDIDATES)
        )
    content = spec.model_dump(mode="json")
    found, problems = [], dict[str, list[str]]()
    for number, values in enumerate(combinations, 1):
        chosen = dict(zip(settings, values, strict=True))
        try:
            found.append(Candidate(name=f"c{number:02d}", values=chosen, spec=_spec_with(content, chosen)))
        except SpecError as error:
            named = ", ".join(f"{setting} {format_value(value)}" for setting, value in chosen.items())
            problems.setdefault(str(error), []).append(named)
    if problems:
        sentences = [
            # A problem of every combination is not one of these values.
            problem
            if 1 < len(named) == len(combinations)
            else _("With {values}: {problem}", values=named[0], problem=problem)
            for problem, named in problems.items()
        ]
        raise UsageError(" ".join(sentences), _("Nothing was started."))
    return tuple(found)


def format_value(value: Any) -> str:
    """Format a value as it is written on the command line: `0.0003`, `lion`, `true`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def measured_spec(spec: Spec) -> Spec:
    """Return the spec of a run that is only measured: no test, and samples only at its end."""
    validation = spec.validation.model_copy(update={"test": False})
    samples = spec.samples.model_copy(update={"every_epochs": spec.training.epochs, "unrelated_prompts": ()})
    return _checked(spec, validation=validation, samples=samples)


def fold_spec(spec: Spec, fold: int, folds: int) -> Spec:
    """Return the spec of the run that validates on one fold (from 1) and trains on all others."""
    return _checked(measured_spec(spec), split=SplitChoice(kind=SplitKind.FOLD, fold=fold, folds=folds))


def final_spec(spec: Spec, epochs: int) -> Spec:
    """Return the spec of the run on all images, the only one that is tested.

    Stages and the epochs at which blocks unfreeze are scaled to `epochs`, and the schedules with them: in a run of 7
    epochs the rate has fallen by the seventh, in a fold that is planned for 20 it has not.
    """
    stages = scale_stages(spec.stages, epochs)
    training = spec.training.model_copy(update={"epochs": sum(stage.epochs for stage in stages) if stages else epochs})
    return _checked(
        spec,
        training=training,
        stages=stages,
        split=SplitChoice(kind=SplitKind.ALL),
        early_stopping=EarlyStopping(enabled=False),
    )


def scale_stages(stages: tuple[Stage, ...], epochs: int) -> tuple[Stage, ...]:
    """Scale the stages to `epochs` in all, by largest remainders; each keeps at least one epoch."""
    if not stages:
        return ()
    total = max(epochs, len(stages))
    shares = [Fraction(stage.epochs * total, sum(stage.epochs for stage in stages)) for stage in stages]
    lengths = [max(1, int(share)) for share in shares]
    indexes = range(len(stages))
    while sum(lengths) < total:
        lengths[max(indexes, key=lambda index: shares[index] - lengths[index])] += 1
    while sum(lengths) > total:
        longer = [index for index in indexes if lengths[index] > 1]
        lengths[min(longer, key=lambda index: shares[index] - lengths[index])] -= 1
    return tuple(_with_epochs(stage, length) for stage, length in zip(stages, lengths, strict=True))


def _with_epochs(stage: Stage, epochs: int) -> Stage:
    unfreeze = tuple(
        Unfreeze(
            blocks=each.blocks,
            # The first epoch stays the first; later ones move in proportion.
            from_epoch=min(epochs, 1 + round((each.from_epoch - 1) * epochs / stage.epochs)),
        )
        for each in stage.unfreeze
    )
    return stage.model_copy(update={"epochs": epochs, "unfreeze": unfreeze})


def _checked(spec: Spec, **changes: object) -> Spec:
    """Replace groups of a spec and validate it; raises SpecError if they contradict each other."""
    return make_spec(spec.model_copy(update=changes).model_dump(mode="json"))


def _spec_with(content: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    changed = json.loads(json.dumps(content))
    for setting, value in values.items():
        _set(changed, setting, value)
    if changed["stages"] and "training.epochs" not in values:
        # The spec sums up those of its stages.
        changed["training"].pop("epochs")
    return make_spec(changed)


def _set(content: Any, setting: str, value: Any) -> None:
    *groups, name = setting.split(".")
    for group in groups:
        if isinstance(content, list) and group.isdecimal() and int(group) < len(content):
            content = content[int(group)]
        elif isinstance(content, dict) and isinstance(content.get(group), dict | list):
            content = content[group]
        else:
            content = None
    if not isinstance(content, dict):
        raise SpecError(_("{setting} is not a setting of this job.", setting=setting))
    if _has_table(content.get(name)):
        raise SpecError(_("{setting} is a group of settings; vary each of them by its own name.", setting=setting))
    content[name] = value


def _has_table(value: Any) -> bool:
    """True for a table, and for a list that contains one."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_table, value)))


def _parse_values(text: str) -> tuple[Any, ...]:
    try:
        return tuple(parse_toml(f"values = [{text}]")["values"])
    except ValueError:
        return tuple(parse_value(word) for word in text.split(",") if word.strip())
