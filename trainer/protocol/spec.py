"""The spec of a job: the immutable `spec.json` that the bot (or `trainer new`) writes and `trainer run` reads.

A spec is complete: it contains everything that changes the result. Unknown fields are refused, with the nearest known
name; every number has a range; settings that contradict each other are refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.conflicts import check_method, check_mix, check_objective, check_rate, check_stages
from trainer.protocol.frozen import Frozen
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
from trainer.protocol.text import _
from trainer.protocol.training_settings import Stage, Training, resolved

SPEC_VERSION: Literal[1] = 1

Settings: TypeAlias = Mapping[str, Any]

#: Beginnings of the names of settings that do not change what is trained.
_OUTPUT_SETTINGS = ("samples.", "exports.", "validation.test")
#: Our settings by the names that kohya's scripts give them.
_KOHYA_NAMES: Mapping[str, str] = {
    "caption_dropout_rate": "training.caption_dropout",
    "caption_tag_dropout_rate": "training.tag_dropout",
    "debiased_estimation_loss": "objective.debiased",
    "dim": "method.rank",
    "huber_c": "objective.huber_delta",
    "ip_noise_gamma": "objective.input_perturbation",
    "keep_tokens": "training.keep_tags",
    "loss_type": "objective.loss",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.schedule",
    "lr_scheduler_args": "training.schedule_arguments",
    "lr_warmup_steps": "training.warmup_steps",
    "masked_loss": "objective.masked",
    "max_train_epochs": "training.epochs",
    "loraplus_lr_ratio": "training.lora_plus_ratio",
    "max_train_steps": "training.max_steps",
    "min_snr_gamma": "objective.snr_gamma",
    "mixed_precision": "training.precision",
    "multires_noise_discount": "objective.pyramid_noise",
    "network_alpha": "method.alpha",
    "network_dim": "method.rank",
    "network_dropout": "method.dropout",
    "network_module": "method.kind",
    "num_repeats": "training.repeats",
    "optimizer_args": "training.optimizer_arguments",
    "optimizer_type": "training.optimizer",
    "pretrained_model_name_or_path": "base.source",
    "prior_loss_weight": "training.regularization_weight",
    "sample_prompts": "samples.prompts",
    "save_every_n_epochs": "training.keep_every_epochs",
    "shuffle_caption": "training.tag_shuffle",
    "text_encoder_lr": "training.text_encoder_learning_rate",
    "train_batch_size": "training.batch_size",
    "unet_lr": "training.learning_rate",
    "v_parameterization": "objective.prediction",
}

_S = TypeVar("_S", bound="SpecDraft")


class SpecError(ValueError):
    """Settings that cannot be trained with; the message is a sentence for the user."""


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
        check_objective(self.objective)
        check_stages(self.stages, self.training, datasets=1 + len(self.mix))
        for stage in self.plan:
            check_rate(stage)
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
    if not stages or not isinstance(training, Mapping) or "epochs" in training:
        return settings
    counts = [stage.get("epochs") if isinstance(stage, Mapping) else getattr(stage, "epochs", None) for stage in stages]
    if not all(isinstance(count, int) for count in counts):
        return settings
    return {**settings, "training": {**training, "epochs": sum(counts)}}


def make_spec(settings: Settings) -> Spec:
    """Validate nested settings.

    Raises:
        SpecError: One sentence for each problem, with the nearest known name or the allowed range.
    """
    return _validated(Spec, settings)


def make_spec_draft(settings: Settings) -> SpecDraft:
    """Validate nested settings that have no dataset yet.

    Raises:
        SpecError: One sentence for each problem, with the nearest known name or the allowed range.
    """
    return _validated(SpecDraft, settings)


def _validated(model: type[_S], settings: Settings) -> _S:
    try:
        return model.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        raise SpecError(" ".join(problem_sentences(error, model))) from error


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


def extended(spec: Spec, *, trained: int, epochs: int) -> Spec:
    """Return the spec of a training of `trained` epochs that goes on for `epochs` more, as a stage of their own.

    The stages are cut to what was trained: the training may have stopped early. The new stage is like the last one,
    with all blocks that it had unfrozen; its optimizer and its schedule start from zero, as in every stage.

    Raises:
        SpecError: It would have too many epochs or stages.
    """
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


def _flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def known_settings() -> Iterator[str]:
    """Yield every dotted name that a spec knows: `training.epochs`, `method.rank`, …"""
    return _dotted_names(Spec)


def allowed_range(dotted_name: str) -> tuple[float, float]:
    """Return the limits of a numeric setting: `allowed_range("training.epochs") == (1, 1000)`.

    An item of a list is named by its index: `mix.0.repeats`.
    """
    return _range_of(Spec, dotted_name)


def problem_sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each problem: the nearest known name, the allowed range or the choices."""
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                if near := _nearest(name, list(_siblings(model, name.split(".")))):
                    yield _("{name} is not a setting; did you mean {near}?", name=name, near=near)
                else:
                    yield _("{name} is not a setting.", name=name)
            case "missing":
                yield _("{name} is missing.", name=name)
            case "tuple_type":
                yield _(
                    '{name} {value!r} is not a list; write one in brackets, such as ["a", "b"].',
                    name=name,
                    value=problem["input"],
                )
            case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
                yield _range_sentence(name, problem["input"], *_range_of(model, name))
            case "enum" | "literal_error":
                expected = (problem.get("ctx") or {})["expected"]
                yield _(
                    "{name} {value!r} is not one of {expected}.", name=name, value=problem["input"], expected=expected
                )
            case "value_error":
                yield _conflict_sentence(name, str((problem.get("ctx") or {})["error"]))
            case "string_pattern_mismatch" if name == "name":
                yield _(
                    "name {value!r} must be 1–40 lower-case letters, digits, '.', '-' or '_', and begin with a letter "
                    "or digit.",
                    value=problem["input"],
                )
            case _:
                yield _("{name} {value!r}: {why}.", name=name, value=problem["input"], why=problem["msg"].lower())


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the setting that an unknown name stands for: by kohya's name, of another group, or of a similar name."""
    last = name.rpartition(".")[2]
    of_kohya = _KOHYA_NAMES.get(last)
    if of_kohya in known:
        return of_kohya
    same = [each for each in known if each.rpartition(".")[2] == last]
    return next(iter(same or difflib.get_close_matches(name, known, n=1, cutoff=0.4)), None)


def _range_sentence(name: str, value: Any, low: float, high: float) -> str:
    # A limit that is refused itself is no part of the range.
    if value == low:
        return _("{name} must be more than {low:g}, up to {high:g}.", name=name, low=low, high=high)
    if value == high:
        return _("{name} must be less than {high:g}, from {low:g}.", name=name, low=low, high=high)
    return _("{name} {value} is outside {low:g} – {high:g}.", name=name, value=value, low=low, high=high)


def _conflict_sentence(name: str, message: str) -> str:
    """Return the message of a validator, in upper case unless it begins with the name of a setting."""
    first = message.split()[0]
    begins_with_setting = "." in first or "_" in first
    return f"{name}: {message}" if name else message if begins_with_setting else message[0].upper() + message[1:]


def _dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted_names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _siblings(model: type[BaseModel], path: Sequence[str]) -> Iterator[str]:
    """Yield the known names that an unknown one may stand for: of its list item, or of the whole model."""
    groups = path[:-1]
    if any(group.isdigit() for group in groups):
        return _dotted_names(_model_at(model, groups), ".".join([*groups, ""]))
    return _dotted_names(model)


def _range_of(model: type[BaseModel], dotted_name: str) -> tuple[float, float]:
    *groups, name = dotted_name.split(".")
    bounds: dict[str, float] = {}
    for constraint in _model_at(model, groups).model_fields[name].metadata:
        for key in ("ge", "gt", "le", "lt"):
            if (value := getattr(constraint, key, None)) is not None:
                bounds["low" if key in {"ge", "gt"} else "high"] = value
    return bounds["low"], bounds["high"]


def _model_at(model: type[BaseModel], groups: Sequence[str]) -> type[BaseModel]:
    """Return the model at a dotted path; an index leads to the model of the list's items."""
    for group in groups:
        if not group.isdigit():
            annotation = model.model_fields[group].annotation
            found = next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)), None)
            assert found is not None
            assert issubclass(found, BaseModel)
            model = found
    return model
