"""What is wrong with settings: a sentence for each problem, and the nearest value or name; and their short names."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer.protocol.conflicts import ConflictError
from trainer.protocol.text import _
from trainer.protocol.training_settings import OWN_OPTIMIZERS

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

#: The short names of the settings that people set most: in Discord, in a `.toml` file, and on the command line.
SHORT_NAMES: Mapping[str, str] = {
    "epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "repeats": "training.repeats",
    "batch_size": "training.batch_size",
    "lr": "training.learning_rate",
    "optimizer": "training.optimizer",
    "resolution": "training.resolution",
    "trigger": "training.trigger",
    "seed": "training.seed",
    "rank": "method.rank",
    "alpha": "method.alpha",
    "prompts": "samples.prompts",
    "class_prompt": "prior.class_prompt",
    "early_stop": "early_stopping.enabled",
}

_SHORT_NAME_OF = {long: short for short, long in SHORT_NAMES.items()}
_LONG_NAMES = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, _SHORT_NAME_OF))})(?![\w.]*\w)")


def by_dotted_names(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a `.toml` file by their dotted names, short names in full; `mix` and `stages` whole."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            values |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            values[SHORT_NAMES.get(name, name)] = value
    return values


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"training.epochs": 3, "stages": […]}` as `{"training": {"epochs": 3}, "stages": […]}`.

    A value in place of a group stays, to be refused.
    """
    settings: dict[str, Any] = {}
    for dotted, value in values.items():
        group, dot, name = dotted.partition(".")
        if not dot:
            settings[group] = value
        elif isinstance(inner := settings.setdefault(group, {}), dict):
            inner[name] = value
    return settings


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML text.

    Raises:
        ValueError: It is not TOML, or has a number of thousands of digits or lists in hundreds of lists.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(_("a value is too long or nested too deeply")) from error


def parse_value(text: str) -> Any:
    """Parse a value as TOML; a bare word is text."""
    try:
        return parse_toml(f"value = {text.strip()}")["value"]
    except ValueError:
        return text.strip()


def toml_value(value: Any) -> str:
    """Return a value as TOML, on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case Mapping():
            inner = ", ".join(f"{name} = {toml_value(each)}" for name, each in value.items() if each is not None)
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(toml_value(each) for each in value)}]"
        case str():
            return json.dumps(str(value), ensure_ascii=False)
        case _:
            return str(value)


@dataclass(frozen=True, kw_only=True)
class SettingProblem:
    """A setting that is refused."""

    #: Its dotted name.
    name: str
    #: The nearest value that is allowed, if there is one.
    nearest: float | str | None = None
    #: There is no such setting, and this one may have been meant.
    meant: str | None = None


def with_short_names(sentence: str) -> str:
    """Write settings in a sentence by their short names: `training.learning_rate 30 is …` → `lr 30 is …`."""
    return _LONG_NAMES.sub(lambda found: _SHORT_NAME_OF[found[0]], sentence)


def problem_sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each problem: the nearest known name, the allowed range or the choices."""
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        yield _sentence_about_name(name, problem, model) or _sentence_about_value(name, problem, model)


def _sentence_about_name(name: str, problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return what is wrong with the name of a setting; empty: it exists."""
    match problem["type"]:
        case "extra_forbidden":
            if near := _nearest(name, list(_siblings(model, name.split(".")))):
                return _("{name} is not a setting; did you mean {near}?", name=name, near=near)
            return _("{name} is not a setting.", name=name)
        case "missing":
            return _("{name} is missing.", name=name)
    return ""


def _sentence_about_value(name: str, problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    value, context = problem["input"], problem.get("ctx") or {}
    match problem["type"]:
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            return _range_sentence(name, value, *range_of(model, name))
        case "multiple_of":
            return _("{name} {value} is not a multiple of {n}.", name=name, value=value, n=context["multiple_of"])
        case "enum" | "literal_error":
            choices = str(context["expected"]).replace("'", "")
            return _("{name} {value} is not one of {expected}.", name=name, value=_quoted(value), expected=choices)
        case "value_error":
            return _conflict_sentence(name, str(context["error"]))
        case "string_pattern_mismatch" if name == "name":
            return _(
                "name {value} must be 1–40 lower-case letters, digits, a period, - or _, and begin with a letter or "
                "digit.",
                value=_quoted(value),
            )
    return _sentence_about_type(name, problem)


def _sentence_about_type(name: str, problem: Mapping[str, Any]) -> str:
    value, context = problem["input"], problem.get("ctx") or {}
    match problem["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return _("{name} {value} is not a whole number, such as 8.", name=name, value=_quoted(value))
        case "float_parsing" | "float_type" | "finite_number":
            return _("{name} {value} is not a number, such as 0.0001.", name=name, value=_quoted(value))
        case "bool_parsing" | "bool_type":
            return _("{name} {value} is neither true nor false.", name=name, value=_quoted(value))
        case "string_type":
            return _("{name} {value} is not text; put it in quotes.", name=name, value=_quoted(value))
        case "tuple_type":
            return _(
                '{name} {value} is not a list; write one in brackets, such as ["a", "b"].',
                name=name,
                value=_quoted(value),
            )
        case "model_type" | "dict_type":
            return _("{name} {value} is not a group of settings.", name=name, value=_quoted(value))
        case "string_too_short":
            return _("{name} is empty.", name=name)
        case "string_too_long":
            return _("{name} has more than {most} characters.", name=name, most=context["max_length"])
        case "too_long":
            length, most = context["actual_length"], context["max_length"]
            return _("{name} has {n} entries; {most} is the most.", name=name, n=length, most=most)
    return _("{name} {value}: {why}.", name=name, value=_quoted(value), why=problem["msg"].lower())


def _quoted(value: object) -> str:
    """A value as it was typed, in quotes if it is text."""
    return f"“{value}”" if isinstance(value, str) else str(value)


def setting_problems(error: ValidationError, model: type[BaseModel]) -> list[SettingProblem]:
    """Return the settings that are refused, each with the nearest value that is allowed."""
    found: list[SettingProblem] = []
    for problem in error.errors():
        name, conflict = ".".join(str(part) for part in problem["loc"]), (problem.get("ctx") or {}).get("error")
        if isinstance(conflict, ConflictError):
            found.append(SettingProblem(name=conflict.setting, nearest=conflict.nearest))
        elif problem["type"] == "value_error" and name == "training.optimizer":
            found.append(SettingProblem(name=name, nearest=_nearest_optimizer(problem)))
        elif problem["type"] == "value_error":
            # Of several settings that contradict each other: the sentence names them.
            known = list(dotted_names(model))
            about = [name] if name in known else [each for each in known if _is_named(each, str(conflict))]
            found += [SettingProblem(name=each) for each in about or filter(None, [name])]
        else:
            is_unknown = problem["type"] == "extra_forbidden"
            meant = _nearest(name, list(_siblings(model, name.split(".")))) if is_unknown else None
            found.append(SettingProblem(name=name, nearest=_nearest_value(problem, name, model), meant=meant))
    return found


def _nearest_value(problem: Mapping[str, Any], name: str, model: type[BaseModel]) -> float | str | None:
    value, context = problem["input"], problem.get("ctx") or {}
    match problem["type"]:
        case "multiple_of":
            low, high = range_of(model, name)
            step: int = context["multiple_of"]
            return step * round(min(max(float(value), low), high) / step)
        case "greater_than_equal" | "less_than_equal":
            limit: float = context["ge"] if "ge" in context else context["le"]
            return limit
        case "enum" | "literal_error" if isinstance(value, str):
            choices = [choice.strip("'") for choice in re.split(r", | or ", str(context["expected"]))]
            return next(iter(difflib.get_close_matches(value, choices, n=1)), None)
        case "string_too_long" if isinstance(value, str):
            return value[: context["max_length"]]
    return None


def _is_named(setting: str, sentence: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(setting)}\b", sentence) is not None


def _nearest_optimizer(problem: Mapping[str, Any]) -> str | None:
    """The optimizer of ours with a similar name; the setting takes others too, so its error lists no choices."""
    return next(iter(difflib.get_close_matches(str(problem["input"]), sorted(OWN_OPTIMIZERS), n=1)), None)


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the setting that an unknown name stands for: by kohya's name, of another group, or of a similar name."""
    if "." not in name and (short := difflib.get_close_matches(name, SHORT_NAMES, n=1, cutoff=0.7)):
        return SHORT_NAMES[short[0]]
    last = name.rpartition(".")[2]
    of_kohya = _KOHYA_NAMES.get(last)
    if of_kohya in known:
        return of_kohya
    same = [each for each in known if each.rpartition(".")[2] == last]
    return next(iter(same or difflib.get_close_matches(name, known, n=1, cutoff=0.4)), None)


def _range_sentence(name: str, value: Any, low: float, high: float) -> str:
    limits = {"low": _digits(low), "high": _digits(high)}
    # A limit that is refused itself is no part of the range.
    if value == low:
        return _("{name} must be more than {low}, up to {high}.", name=name, **limits)
    if value == high:
        return _("{name} must be less than {high}, from {low}.", name=name, **limits)
    return _("{name} {value} is not between {low} and {high}.", name=name, value=value, **limits)


def _digits(value: float) -> str:
    """`0.0000001` rather than `1e-07`."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _conflict_sentence(name: str, message: str) -> str:
    """Return the message of a validator, in upper case unless it begins with the name of a setting."""
    first = message.split()[0]
    begins_with_setting = "." in first or "_" in first
    return f"{name}: {message}" if name else message if begins_with_setting else message[0].upper() + message[1:]


def dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting of a model: `training.epochs`, `method.rank`, …"""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _siblings(model: type[BaseModel], path: Sequence[str]) -> Iterator[str]:
    """Yield the known names that an unknown one may stand for: of its list item, or of the whole model."""
    groups = path[:-1]
    if any(group.isdigit() for group in groups):
        return dotted_names(_model_at(model, groups), ".".join([*groups, ""]))
    return dotted_names(model)


def range_of(model: type[BaseModel], dotted_name: str) -> tuple[float, float]:
    """Return the limits of a numeric setting; an item of a list is named by its index."""
    *groups, name = dotted_name.split(".")
    bounds: dict[str, float] = {}
    if name.isdigit():
        # Of a list of numbers: `strengths.0`.
        numbers = _model_at(model, groups[:-1]).model_fields[groups[-1]]
        field = FieldInfo.from_annotation(get_args(numbers.annotation)[0])
    else:
        field = _model_at(model, groups).model_fields[name]
    for constraint in field.metadata:
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
