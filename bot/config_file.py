"""Reads `config.toml`, and reports all its problems at once.

The Discord token is not a setting: it is read from the environment only, so that a config file can be shown to anyone.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bot.config import Config
from bot.errors import ConfigError
from trainer.protocol.setting_problems import dotted_names
from trainer.protocol.text import _


def load_config(path: Path) -> Config:
    """Load a TOML file; settings that it leaves out have their defaults.

    Raises:
        ConfigError: The file is missing or is not TOML, or settings are unknown or out of range; it lists them all.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            path=path, problems=[_("There is no such file. Copy config.example.toml and edit it.")]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path=path, problems=[_("It cannot be read: {error}.", error=error)]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path=path, problems=[_("It is not TOML: {error}.", error=error)]) from error
    try:
        # As JSON: types are strict, but arrays become tuples and strings become paths.
        return Config.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(path=path, problems=list(_problems(error))) from error


def read_token(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """Read the bot's token from the environment.

    Raises:
        ConfigError: The variable is not set.
    """
    name = config.discord.token_env
    if token := environ.get(name, "").strip():
        return token
    problem = _("{name} is not set. Set it to the bot's token.", name=name)
    raise ConfigError(path=Path("The environment"), problems=[problem])


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        context: dict[str, Any] = problem.get("ctx") or {}
        value = problem["input"]
        match problem["type"]:
            case "extra_forbidden" if name.rpartition(".")[2] == "token":
                variable = "DARKROOM_TOKEN"
                yield _(
                    "{name} does not belong in a file. Set the environment variable {variable}.",
                    name=name,
                    variable=variable,
                )
            case "extra_forbidden" if near := _nearest(name):
                yield _("{name} is not a setting; did you mean {near}?", name=name, near=near)
            case "extra_forbidden":
                yield _("{name} is not a setting.", name=name)
            case "greater_than_equal":
                yield _(
                    "{name} is {value}; it must be {least} or more.", name=name, value=value, least=f"{context['ge']:g}"
                )
            case "less_than_equal":
                yield _(
                    "{name} is {value}; it must be {most} or less.", name=name, value=value, most=f"{context['le']:g}"
                )
            case "value_error":
                yield _("{name}: {error}.", name=name, error=context["error"])
            case _kind:
                message = problem["msg"].removeprefix("Input ").replace("should be", "must be")
                rule = f"{message[:1].lower()}{message[1:]}"
                yield _("{name} is {value!r}; it {rule}.", name=name, value=value, rule=rule)


def _nearest(name: str) -> str | None:
    groups = list(Config.model_fields)
    settings = list(dotted_names(Config))
    known = [*settings, *groups] if "." in name else groups
    # Right key, wrong group: the last part may still be known.
    same_key = [known for known in settings if known.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter([*difflib.get_close_matches(name, known, n=1, cutoff=0.5), *same_key]), None)
