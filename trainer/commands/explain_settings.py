"""All settings of a training as a commented `.toml` file, from their own descriptions, defaults and ranges."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.protocol.setting_problems import SHORT_NAMES, range_of, toml_value
from trainer.protocol.spec import SpecDraft
from trainer.protocol.text import _

_FIELD = re.compile(r"    (\w+):")
#: They are not chosen.
_LEFT_OUT = {"version", "method.start_sha256"}


def settings_as_toml() -> str:
    """Return every setting with what it does, its default and its range; a `#` stands before each value."""
    head = [
        _("Every setting of a training, at its default. Remove the # before a line to set it."),
        _("Presets change some of these: a preset's settings apply where this file says nothing."),
        _(
            "Short names work too, at the top of the file, before the first [table]: {names}.",
            names=", ".join(SHORT_NAMES),
        ),
    ]
    lines = [f"## {line}" for line in head]
    tables: list[tuple[str, type[BaseModel]]] = []
    for name, field in SpecDraft.model_fields.items():
        model = _model_of(field)
        if model is not None:
            tables.append((name, model))
        elif name not in _LEFT_OUT:
            lines += ["", *_setting(SpecDraft, name, name, field)]
    for name, model in tables:
        is_list = get_origin(SpecDraft.model_fields[name].annotation) is tuple
        lines += ["", *(f"## {line}" for line in _about(model)), f"# [[{name}]]" if is_list else f"[{name}]"]
        for each, field in model.model_fields.items():
            if f"{name}.{each}" not in _LEFT_OUT:
                lines += _setting(model, each, f"{name}.{each}", field)
    return "\n".join(lines) + "\n"


def _setting(model: type[BaseModel], name: str, dotted: str, field: FieldInfo) -> Iterator[str]:
    """The description, range and default of one setting."""
    for line in _comments(model).get(name, []):
        yield f"## {line}"
    if limits := _limits(model, name, field):
        yield f"## {limits}"
    short = next((short for short, full in SHORT_NAMES.items() if full == dotted), None)
    if short is not None:
        yield "## " + _("Short name: {name}", name=short)
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if value is None:
        yield f"# {name} =    ## " + _("not set")
    else:
        yield f"# {name} = {toml_value(value)}"


def _limits(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """`1 to 1000`, or the values that there are to choose from."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return _("One of: {values}", values=", ".join(kind))
        if get_origin(kind) is Literal:
            return _("One of: {values}", values=", ".join(map(str, get_args(kind))))
    try:
        low, high = range_of(model, name)
    except KeyError:
        return ""
    return _("{low:g} to {high:g}", low=low, high=high)


def _about(model: type[BaseModel]) -> list[str]:
    return [line.strip() for line in (model.__doc__ or "").strip().splitlines() if line.strip()]


@cache
def _comments(model: type[BaseModel]) -> dict[str, list[str]]:
    """The `#:` comments above the fields of a model, by the fields."""
    found: dict[str, list[str]] = {}
    comment: list[str] = []
    for line in inspect.getsource(model).splitlines():
        if line.strip().startswith("#:"):
            comment.append(line.strip().removeprefix("#:").strip())
            continue
        if match := _FIELD.match(line):
            found[match[1]] = comment
        comment = []
    return found


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a group of settings, or of the entries of a list of them."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
