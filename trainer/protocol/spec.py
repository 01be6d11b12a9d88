"""The spec of a job: the immutable `spec.json` that the bot (or `trainer new`) writes and `trainer run` reads.

A spec is complete: it contains everything that changes the result. Unknown fields are refused, with the nearest known
name; every number has a range; settings that contradict each other are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.conflicts import (
    check_memory_settings,
    check_method,
    check_mix,
    check_objective,
    check_rate,
    check_stages,
)
from trainer.protocol.frozen import Frozen
from trainer.protocol.setting_problems import (
    SettingProblem,
    problem_sentences,
    range_of,
    setting_problems,
)
from trainer.protocol.settings import (
    Base,
    Classifier,
    EarlyStopping,
    Exports,
    Method,
    MixPart,
    Objective,
    Prior,
    Samples,
    SplitChoice,
    TaskKind,
    Validation,
)
from trainer.protocol.training_settings import ScheduleKind, Stage, Training, resolved

SPEC_VERSION: Literal[1] = 1

Settings: TypeAlias = Mapping[str, Any]

#: Beginnings of the names of settings that do not change what is trained.
_OUTPUT_SETTINGS = ("samples.", "exports.", "validation.test")
_S = TypeVar("_S", bound=BaseModel)


class SpecError(ValueError):
    """Settings that cannot be trained with; the message is a sentence for the user."""

    def __init__(self, message: str, *, problems: Sequence[SettingProblem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message)


class SpecDraft(Frozen):
    """A training job without its dataset: settings that are valid by themselves and together."""

    version: Literal[1] = SPEC_VERSION
    task: TaskKind = TaskKind.DIFFUSION
    name: str = Field(default="lora", pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")
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
    exports: Exports = Exports()
    augmentation: Augmentation = Augmentation()
    #: Other datasets that are trained on beside `dataset`.
    mix: tuple[MixPart, ...] = Field(default=(), max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _add_epochs(cls, content: Any) -> Any:
        return _with_sum_of_epochs(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_method(self.method, self.task, self.training)
        check_memory_settings(self.base, self.method, self.task, self.training, self.plan)
        check_objective(self.objective)
        check_stages(self.stages, self.training, datasets=1 + len(self.mix))
        for number, stage in enumerate(self.plan):
            # A stage without a rate of its own has that of `training`.
            is_own = self.stages and self.stages[number].learning_rate is not None
            check_rate(stage, f"stages.{number}" if is_own else "training")
        return self

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages with their open values filled from `training`; at least one."""
        return tuple(resolved(stage, self.training) for stage in self.stages or (Stage(epochs=self.training.epochs),))

    def with_dataset(self, dataset: str, *, name: str | None = None) -> Spec:
        """Complete the draft with a prepared dataset folder, and with another name if one is given.

        Raises:
            SpecError: The name is invalid, or `mix` contains the same dataset.
        """
        return make_spec({**self.model_dump(mode="json"), "dataset": dataset, "name": name or self.name})


class Spec(SpecDraft):
    """One training job, complete."""

    #: A folder that `trainer prepare` wrote.
    dataset: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        check_mix(self.dataset, self.mix)
        return self


def _with_sum_of_epochs(settings: dict[str, Any]) -> dict[str, Any]:
    """Set `training.epochs` to the sum over the stages if it is left out; another number is refused later."""
    stages, training = settings.get("stages"), settings.get("training", {})
    if not (stages and isinstance(stages, Sequence) and isinstance(training, Mapping)) or "epochs" in training:
        return settings
    counts = [stage.get("epochs") if isinstance(stage, Mapping) else getattr(stage, "epochs", None) for stage in stages]
    if not all(isinstance(count, int) for count in counts):
        return settings
    return {**settings, "training": {**training, "epochs": sum(counts)}}


def make_spec(settings: Settings) -> Spec:
    """Validate the settings of a job; raises what `validated` raises."""
    return validated(Spec, settings)


def make_spec_draft(settings: Settings) -> SpecDraft:
    """Validate settings that have no dataset yet; raises what `validated` raises."""
    return validated(SpecDraft, settings)


def validated(model: type[_S], settings: Settings) -> _S:
    """Validate nested settings, in their JSON form.

    Raises:
        SpecError: One sentence for each problem, with the nearest known name or the allowed range.
    """
    try:
        # Dates are those of a TOML file: no setting is one.
        return model.model_validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        raise SpecError(" ".join(problem_sentences(error, model)), problems=setting_problems(error, model)) from error


def merge(settings: Settings, *overrides: Settings) -> dict[str, Any]:
    """Lay each of `overrides` over `settings`, group by group."""
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()
    }
    for override in overrides:
        for key, value in override.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Describe how the training of two specs, in their JSON form, differs: `training.epochs 8 → 10`.

    What is only drawn, tested and exported at the end may differ: the winner of a comparison is trained without it.
    """
    old, new = _flat(before), _flat(after)
    return [
        f"{name} {json.dumps(old.get(name))} → {json.dumps(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name) and not name.startswith(_OUTPUT_SETTINGS)
    ]


def continues_exactly(spec: Spec, *, trained: int, epochs: int) -> bool:
    """True if an extension changes no learning rate: the training goes on as if it had been planned longer."""
    training = spec.training
    is_constant = training.schedule is ScheduleKind.CONSTANT and training.max_steps is None and not spec.stages
    # A warm-up that is a share of the steps must be over, or the rate would fall back into it.
    is_warm = training.warmup_steps is not None or training.warmup_share * (trained + epochs) <= trained
    return is_constant and is_warm


def extended(spec: Spec, *, trained: int, epochs: int) -> Spec:
    """Return the spec of a training of `trained` epochs that goes on for `epochs` more: exactly where its schedule
    allows it (`continues_exactly`), else as a stage of their own.

    The stages are cut to what was trained: the training may have stopped early. The new stage is like the last one,
    with all blocks that it had unfrozen; its optimizer and its schedule start from zero, as in every stage.

    Raises:
        SpecError: It would have too many epochs or stages.
    """
    if continues_exactly(spec, trained=trained, epochs=epochs):
        longer = {"training": {"epochs": trained + epochs}}
        return make_spec(merge(spec.model_dump(mode="json"), longer))
    stages: list[Stage] = []
    left = trained
    for stage in spec.stages or (Stage(epochs=spec.training.epochs),):
        if left > 0:
            done = min(stage.epochs, left)
            unfreeze = tuple(each for each in stage.unfreeze if each.from_epoch <= done)
            stages.append(stage.model_copy(update={"epochs": done, "unfreeze": unfreeze}))
            left -= done
    unfrozen = tuple(each.model_copy(update={"from_epoch": 1}) for each in stages[-1].unfreeze)
    stages.append(stages[-1].model_copy(update={"name": "", "epochs": epochs, "unfreeze": unfrozen}))
    settings = spec.model_dump(mode="json")
    settings["training"] |= {"epochs": trained + epochs, "max_steps": None}
    return make_spec({**settings, "stages": [stage.model_dump(mode="json") for stage in stages]})


#: Settings that are learning rates, of a training and of each stage.
_RATES = ("learning_rate", "text_encoder_learning_rate", "text_encoder_2_learning_rate")


def with_rates_divided(spec: Spec, by: float) -> Spec:
    """Return the spec with all its learning rates divided, to two digits.

    Raises:
        SpecError: One would be below what is allowed.
    """
    settings = spec.model_dump(mode="json")
    for group in (settings["training"], *settings["stages"]):
        group |= {name: float(f"{group[name] / by:.1e}") for name in _RATES if group[name] is not None}
    return make_spec(settings)


def at_resolution(spec: Spec, side: int) -> Spec:
    """Return the spec with training images of this side, px, in all its stages."""
    settings = spec.model_dump(mode="json")
    for group in (settings["training"], *settings["stages"]):
        group["resolution"] = side
    return make_spec(settings)


def _flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def allowed_range(dotted_name: str) -> tuple[float, float]:
    """Return the limits of a numeric setting: `allowed_range("training.epochs") == (1, 1000)`.

    An item of a list is named by its index: `mix.0.repeats`.
    """
    return range_of(Spec, dotted_name)
