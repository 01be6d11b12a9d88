"""A member's request for a job, translated once from the slash command, and the spec that it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bot.config import Config
from bot.errors import JobRefused, TooManyEpochs
from bot.queue import Priority
from trainer.protocol.frozen import Frozen
from trainer.protocol.presets import draft_from_preset, preset_named
from trainer.protocol.spec import SpecDraft
from trainer.protocol.study import StudyRequest
from trainer.protocol.text import _


class QueueOptions(Frozen):
    """How a job waits and starts."""

    priority: Priority = Priority.NORMAL
    #: GPUs that train it together.
    gpus: int = 1
    #: It does not start before this time, seconds since the epoch.
    run_after: float | None = None


class JobRequest(Frozen):
    """What a member asked for; a draft stores it as JSON until it is confirmed."""

    preset: str
    #: Label of a base model in the configuration; None leaves it to the preset.
    base: str | None = None
    #: None: the dataset's name.
    name: str | None = None
    #: Settings that differ from the preset, by their dotted names.
    overrides: dict[str, Any] = Field(default_factory=dict)
    queue: QueueOptions = QueueOptions()
    study: StudyRequest | None = None

    @property
    def gpus(self) -> int:
        """GPUs that the job itself needs; a study leaves them to its runs."""
        return 0 if self.study is not None else self.queue.gpus


def overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings that the member gave; None leaves one to the preset."""
    return {name: value for name, value in values.items() if value is not None}


def make_draft(request: JobRequest, config: Config, *, max_epochs: int) -> SpecDraft:
    """Make the spec of a request, without its dataset.

    Raises:
        TooManyEpochs: The member may not train so many.
        JobRefused: The base is unknown.
        SpecError: The preset is unknown, or a value is out of its range.
    """
    draft = draft_from_preset(
        request.preset,
        base=_base_source(request, config),
        name=slug(request.name) if request.name else "lora",
        changes=_nested(request.overrides),
    )
    epochs = draft.training.epochs
    if epochs > max_epochs:
        raise TooManyEpochs(epochs=epochs, allowed=max_epochs)
    return draft


def _base_source(request: JobRequest, config: Config) -> str | None:
    """The model to start from; None leaves it to a preset for one kind of model, such as a classifier."""
    if request.base is None and "base" in preset_named(request.preset).settings:
        return None
    label = request.base or config.models.default
    if label not in config.models.sources:
        known = ", ".join(config.models.sources)
        raise JobRefused(_('There is no base model "{label}" here. Models: {known}.', label=label, known=known))
    return config.models.sources[label]


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"training.epochs": 3}` as `{"training": {"epochs": 3}}`."""
    settings: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        group, _dot, name = dotted.partition(".")
        settings.setdefault(group, {})[name] = value
    return settings


def split_prompts(text: str) -> list[str]:
    """Split `a fox | a fox in snow` into two prompts."""
    return [prompt for part in text.split("|") if (prompt := part.strip())]


def slug(name: str) -> str:
    """Turn a name into a file name: `My Fox!` → `my-fox`; unchanged if nothing would remain, so that it is refused."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:40] or name
