"""The candidates of a comparison: each combination of the given values, a spec of its own, checked before any runs."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from trainer.errors import UsageError
from trainer.protocol.spec import Spec, SpecError, make_spec

MOST_CANDIDATES = 64

#: Settings that change what is measured: losses under two values of them are answers to two questions.
_MEASURING = (
    "dataset",
    "task",
    "base.*",
    "split.*",
    "validation.*",
    "mix",
    "mix.*.dataset",
    "mix.*.role",
    "training.resolution",
    "objective.prediction",
    "objective.zero_terminal_snr",
)
#: Settings that a result cannot hang on.
_IDLE = ("version", "name", "preset", "samples.*")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting and the values it is tried with."""

    #: Dotted; a place in a list by its number: `stages.0.learning_rate`.
    setting: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One combination of values."""

    #: Its folder's name: `c01`, `c02`, …
    name: str
    values: Mapping[str, Any]
    spec: Spec

    @property
    def label(self) -> str:
        """`learning rate 0.0003, rank 8`."""
        named = ((setting.rpartition(".")[2].replace("_", " "), value) for setting, value in self.values.items())
        return ", ".join(f"{name} {shown(value)}" for name, value in named)


def parse_axis(text: str) -> Axis:
    """`training.learning_rate=1e-4,3e-4` or `training.optimizer=adamw,lion`; values are TOML, bare words are strings.

    Raises:
        UsageError: it is not of that form, or may not be varied.
    """
    setting, equals, listed = (part.strip() for part in text.partition("="))
    if not (equals and setting and listed):
        raise UsageError(f"{text} is not GROUP.NAME=VALUE,VALUE.", "Such as training.learning_rate=1e-4,3e-4,1e-3.")
    if any(fnmatchcase(setting, pattern) for pattern in _MEASURING):
        raise UsageError(
            f"{setting} changes what is measured, so losses under two values of it cannot be compared.",
            "Make a job for each, and look at their samples.",
        )
    if any(fnmatchcase(setting, pattern) for pattern in _IDLE):
        raise UsageError(f"No result hangs on {setting}.", "Vary something that is trained with.")
    values = _parse_values(listed)
    if len(values) < 2:
        raise UsageError(f"{setting} has one value.", "Give at least two.")
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise UsageError(f"{setting} has {shown(twice)} twice.", "Give each value once.")
    return Axis(setting=setting, values=values)


def candidates(spec: Spec, axes: Sequence[Axis]) -> tuple[Candidate, ...]:
    """Each combination of the values, in their order.

    Raises:
        UsageError: a setting is varied twice, there are too many combinations, or some cannot be trained with; the
            sentence names each of those.
    """
    settings = [axis.setting for axis in axes]
    if len(set(settings)) < len(settings):
        raise UsageError("A setting is varied twice.", "Give all of its values at once.")
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MOST_CANDIDATES:
        raise UsageError(f"These are {len(combinations)} candidates.", f"Vary less: {MOST_CANDIDATES} at most.")
    content = spec.model_dump(mode="json")
    found, problems = [], dict[str, None]()
    for number, values in enumerate(combinations, 1):
        chosen = dict(zip(settings, values, strict=True))
        try:
            found.append(Candidate(name=f"c{number:02d}", values=chosen, spec=_spec_with(content, chosen)))
        except SpecError as error:
            named = ", ".join(f"{setting} {shown(value)}" for setting, value in chosen.items())
            problems[f"With {named}: {error}"] = None
    if problems:
        raise UsageError(" ".join(problems), "Nothing was started.")
    return tuple(found)


def shown(value: Any) -> str:
    """A value as people write it: 0.0003, lion, true."""
    return value if isinstance(value, str) else json.dumps(value)


def _spec_with(content: Mapping[str, Any], values: Mapping[str, Any]) -> Spec:
    changed = json.loads(json.dumps(content))
    for setting, value in values.items():
        _put(changed, setting, value)
    if changed["stages"] and "training.epochs" not in values:
        # What the stages add up to.
        changed["training"]["epochs"] = sum(stage["epochs"] for stage in changed["stages"])
    return make_spec(changed)


def _put(content: Any, setting: str, value: Any) -> None:
    *groups, name = setting.split(".")
    for group in groups:
        if isinstance(content, list) and group.isdigit() and int(group) < len(content):
            content = content[int(group)]
        elif isinstance(content, dict) and isinstance(content.get(group), dict | list):
            content = content[group]
        else:
            raise SpecError(f"{setting} is not a setting of this job.")
    if not isinstance(content, dict):
        raise SpecError(f"{setting} is not a setting of this job.")
    content[name] = value


def _parse_values(listed: str) -> tuple[Any, ...]:
    try:
        return tuple(tomllib.loads(f"values = [{listed}]")["values"])
    except tomllib.TOMLDecodeError:
        return tuple(_parse_words(listed))


def _parse_words(listed: str) -> Iterator[Any]:
    for word in filter(None, (word.strip() for word in listed.split(","))):
        try:
            yield tomllib.loads(f"value = {word}")["value"]
        except tomllib.TOMLDecodeError:
            yield word
