"""Checks the arguments that a spec gives a library's function, before anything starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from trainer.errors import BadSpecError
from trainer.protocol.settings import Arguments

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def check_against(
    function: Callable[..., Any], arguments: Arguments, *, owner: str, setting: str, ours: Mapping[str, str]
) -> None:
    """Every argument is one that `function` takes, and of the kind of its default.

    `owner` is the optimizer or schedule, `setting` where the arguments stand in the spec; `ours` are parameters that
    are not for the spec, each with what to do instead.

    Raises:
        BadSpecError: an argument is not known, not for the spec, or of another kind.
    """
    known = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ours and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }
    for name, value in arguments.items():
        if name in ours:
            raise BadSpecError(f"{setting}.{name} is not for the spec.", ours[name])
        if name not in known:
            raise _unknown(f"{setting}.{name}", name, list(known), owner)
        if not _fits(value, known[name]):
            words = _kind_in_words(known[name])
            raise BadSpecError(f"{setting}.{name} {value!r} is of another kind than {owner} takes.", f"Give {words}.")


def _unknown(dotted: str, name: str, known: list[str], owner: str) -> BadSpecError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f" Did you mean {near[0]}?" if near else ""
    hint = f"It takes {', '.join(known)}." if known else "It takes no arguments."
    return BadSpecError(f"{dotted} is not an argument of {owner}.{guess}", hint)


def _kind(parameter: inspect.Parameter) -> type:
    """What a parameter takes, by its default; by its annotation where that is None, or 0 for 0.0."""
    if parameter.default is None or parameter.default is parameter.empty:
        return bool if "bool" in str(parameter.annotation) else float
    if type(parameter.default) is int and "float" in str(parameter.annotation):
        return float
    return type(parameter.default)


def _fits(value: object, parameter: inspect.Parameter) -> bool:
    kind = _kind(parameter)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(parameter.default)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _kind_in_words(parameter: inspect.Parameter) -> str:
    kind = _kind(parameter)
    return f"{len(parameter.default)} numbers" if kind is tuple else _WORDS[kind]
