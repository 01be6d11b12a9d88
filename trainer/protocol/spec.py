"""What a job is: the one immutable `spec.json` that the bot (or `trainer new`) writes and `trainer run` reads.

A spec is complete: everything that changes the result stands in it, in groups (`settings/`). Unknown fields are
refused, with the nearest known name; every number has a range; settings that contradict each other are refused too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, model_validator

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.checks import check_together
from trainer.protocol.frozen import Frozen
from trainer.protocol.mix import MixPart
from trainer.protocol.settings import (
    Base,
    Classifier,
    EarlyStopping,
    Method,
    Objective,
    Prior,
    Samples,
    SplitChoice,
    Stage,
    TaskKind,
    Training,
    Validation,
    resolved,
)
from trainer.protocol.spec_errors import names_of, range_of, sentences
from trainer.protocol.upgrade import upgrade

SPEC_VERSION: Literal[2] = 2

Settings: TypeAlias = Mapping[str, Any]


class SpecError(ValueError):
    """Settings that cannot be trained with; the message is a sentence for a person."""


class Spec(Frozen):
    """One training job, complete."""

    version: Literal[2] = SPEC_VERSION
    task: TaskKind = TaskKind.DIFFUSION
    name: str = Field(default="lora", pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")
    #: A folder that `trainer prepare` wrote.
    dataset: str = Field(min_length=1)
    #: The preset that the settings started from, for the record.
    preset: str = "lora"
    base: Base = Base()
    method: Method = Method()
    training: Training = Training()
    #: Parts of the training, one after another; empty: one, as `training` says.
    stages: tuple[Stage, ...] = Field(default=(), max_length=32)
    objective: Objective = Objective()
    prior: Prior = Prior()
    classifier: Classifier = Classifier()
    split: SplitChoice = SplitChoice()
    validation: Validation = Validation()
    early_stopping: EarlyStopping = EarlyStopping()
    samples: Samples = Samples()
    augmentation: Augmentation = Augmentation()
    #: Further datasets that are trained on beside `dataset`.
    mix: tuple[MixPart, ...] = Field(default=(), max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        return upgrade(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_together(self)
        return self

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages with nothing left open that `training` says; at least one."""
        return tuple(resolved(stage, self.training) for stage in self.stages or (Stage(epochs=self.training.epochs),))

    def write(self, job_dir: Path) -> Path:
        """Write `spec.json` into `job_dir` by rename, and return its path."""
        job_dir.mkdir(parents=True, exist_ok=True)
        path = job_dir / "spec.json"
        part = path.with_suffix(".json.part")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)
        return path


def read_spec(job_dir: Path) -> Spec:
    """The spec of a job folder.

    Raises:
        SpecError: `spec.json` is missing, is not JSON, or holds settings that cannot be trained with.
    """
    path = job_dir / "spec.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{job_dir} has no spec.json; write one with `python -m trainer new`.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} does not hold a JSON object.")
    if raw.get("version", SPEC_VERSION) not in {1, SPEC_VERSION}:
        raise SpecError(f"{path} is of version {raw['version']}; this trainer reads versions 1 to {SPEC_VERSION}.")
    return make_spec(raw)


def make_spec(settings: Settings) -> Spec:
    """A spec from nested settings.

    Raises:
        SpecError: one sentence that names every problem, with the nearest known name or the allowed range.
    """
    try:
        return Spec.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        raise SpecError(" ".join(sentences(error, Spec))) from error


def merge(settings: Settings, *overrides: Settings) -> dict[str, Any]:
    """`settings` with each of `overrides` laid over it, group by group."""
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()
    }
    for override in overrides:
        for key, value in override.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def known_settings() -> Iterator[str]:
    """Every dotted name that a spec knows: `training.epochs`, `method.rank`, …"""
    return names_of(Spec)


def allowed_range(dotted_name: str) -> tuple[float, float]:
    """The smallest and largest value of a numeric setting: `allowed_range("training.epochs") == (1, 1000)`.

    A setting of a list's item goes by the item's place: `mix.0.repeats`.
    """
    return range_of(Spec, dotted_name)
