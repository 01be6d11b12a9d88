"""What is wrong with settings, as sentences: the nearest known name, the allowed range, the choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError


def names_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted name that a model knows."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def range_of(model: type[BaseModel], dotted_name: str) -> tuple[float, float]:
    """The smallest and largest value of a numeric setting; a list's item goes by its place."""
    *groups, name = dotted_name.split(".")
    bounds: dict[str, float] = {}
    for constraint in _model_of(model, groups).model_fields[name].metadata:
        for key in ("ge", "gt", "le", "lt"):
            if (value := getattr(constraint, key, None)) is not None:
                bounds["low" if key in {"ge", "gt"} else "high"] = value
    return bounds["low"], bounds["high"]


def _model_of(model: type[BaseModel], groups: Sequence[str]) -> type[BaseModel]:
    """The model that a dotted path leads to; places in a list lead to what the list holds."""
    for group in groups:
        if not group.isdigit():
            annotation = model.model_fields[group].annotation
            found = next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)), None)
            assert found is not None
            assert issubclass(found, BaseModel)
            model = found
    return model


def sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """One for each problem."""
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                *groups, _ = map(str, problem["loc"])
                is_in_list = any(group.isdigit() for group in groups)
                known = names_of(_model_of(model, groups), ".".join([*groups, ""])) if is_in_list else names_of(model)
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                yield f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ".")
            case "missing":
                yield f"{name} is missing."
            case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
                low, high = range_of(model, name)
                yield f"{name} {problem['input']} is outside {low:g} – {high:g}."
            case "enum" | "literal_error":
                expected = (problem.get("ctx") or {})["expected"]
                yield f"{name} {problem['input']!r} is not one of {expected}."
            case "value_error":
                sentence = str((problem.get("ctx") or {})["error"])
                is_plain = "." not in sentence.split()[0] and "_" not in sentence.split()[0]
                start = sentence[0].upper() if is_plain else sentence[0]
                yield f"{name}: {sentence}" if name else start + sentence[1:]
            case "string_pattern_mismatch" if name == "name":
                yield (
                    f"name {problem['input']!r} must be 1–40 small letters, digits, '.', '-' or '_', and begin with a "
                    "letter or digit."
                )
            case _:
                yield f"{name} {problem['input']!r}: {problem['msg'].lower()}."
