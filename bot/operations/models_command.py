"""`python -m bot models`: add a base model to config.toml, and check those that are there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bot.config import Config
from bot.config_file import load_config
from bot.errors import ConfigError, DarkroomError
from bot.predictions import MemoryPredictions, usual_memory
from bot.ui.model_pages import HUB_NAME, model_lines, model_words
from trainer.exchange.base_files import BaseFacts, base_facts
from trainer.exchange.files import write_text
from trainer.protocol.settings import Base
from trainer.protocol.text import _

_TABLE = "[models.sources]"


class ModelNotAdded(DarkroomError):
    """A base model was not added; the configuration is unchanged."""


def predict_memory(config: Config, label: str) -> None:
    """Let a trainer process predict the memory that a LoRA of a base needs, unless that was done before."""
    predictions = MemoryPredictions(config, command=config.trainer.command, env=config.trainer_environment())
    asyncio.run(predictions.of_base(label))


def add_model(
    path: Path,
    label: str,
    source: str,
    environ: Mapping[str, str] = os.environ,
    *,
    predict: Callable[[Config, str], None] = predict_memory,
) -> str:
    """Add a base model to the configuration; return what it is and what to do next.

    Raises:
        ModelNotAdded: It is no model that can be trained, or has a label that is taken.
        ConfigError: The configuration cannot be used.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    sources = load_config(path).models.sources if path.exists() else {}
    if label in sources:
        raise ModelNotAdded(
            _(
                "There is a model “{label}” already ({source}). Choose another label.",
                label=label,
                source=sources[label],
            )
        )
    facts = _require_usable(source, environ)
    line = f"{json.dumps(label, ensure_ascii=False)} = {json.dumps(source, ensure_ascii=False)}"
    content = _with_line(text, line)
    config = _require_valid(path, content, label)
    write_text(path, content)
    predict(config, label)
    words = model_words(source, facts, usual_memory(config, label, environ))
    lines = [_("Added “{label}” to {path}: {facts}.", label=label, path=path, facts=words)]
    if config.models.default_label == label:
        lines.append(_("Requests that name no base use it."))
    lines.append(_("Restart the bot, and try it: `/finetune base:{label}`.", label=label))
    return "\n".join(lines)


def models_text(
    config: Config,
    environ: Mapping[str, str] = os.environ,
    *,
    predict: Callable[[Config, str], None] = predict_memory,
) -> str:
    """Each base model with its family, resolution, size and the memory of a LoRA; and what is missing."""
    for label in config.models.sources:
        predict(config, label)
    lines = list(model_lines(config, environ))
    if config.models.default_label is None:
        lines.append(
            _('Only the toy model is set up. Add a real one: python -m bot models add "SDXL" FILE_FOLDER_OR_HUB_NAME')
        )
    return "\n".join(lines)


def _require_usable(source: str, environ: Mapping[str, str]) -> BaseFacts | None:
    facts = base_facts(Base(source=source), environ)
    if facts is None and not HUB_NAME.fullmatch(source):
        raise ModelNotAdded(
            _(
                "There is no {source}. Name a .safetensors file, a folder in diffusers layout, or a model on the "
                "Hugging Face hub (owner/name).",
                source=source,
            )
        )
    if facts is not None and not facts.family:
        raise ModelNotAdded(
            _(
                "{source} is not a Stable Diffusion 1.x, 2.x, XL or 3 model that can be trained. LoRAs, .ckpt files "
                "and other families are not.",
                source=source,
            )
        )
    return facts


def _with_line(text: str, line: str) -> str:
    """The configuration with a line in its table of models."""
    lines = text.splitlines()
    index = next((number for number, each in enumerate(lines) if each.strip() == _TABLE), None)
    if index is None:
        return "\n".join([*lines, *([""] if lines else []), _TABLE, line, ""])
    return "\n".join([*lines[: index + 1], line, *lines[index + 1 :], ""])


def _require_valid(path: Path, content: str, label: str) -> Config:
    """Raise unless the new configuration can be read and has the model."""
    with TemporaryDirectory(prefix="darkroom-config-") as scratch:
        draft = Path(scratch) / "config.toml"
        draft.write_text(content, encoding="utf-8")
        try:
            config = load_config(draft)
        except ConfigError as error:
            problems = "; ".join(error.problems)
            raise ModelNotAdded(
                _(
                    "{path} cannot take the line by itself ({problems}). Write the model below {table} by hand.",
                    path=path,
                    problems=problems,
                    table=_TABLE,
                )
            ) from error
    assert label in config.models.sources
    return config
