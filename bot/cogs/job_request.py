"""A member's request for a job, from the command, a form or a `.toml` file, and the spec that it makes.

A request may hold values that cannot be trained with: it is stored as it was typed, and a form asks for the right ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from bot.config import Config
from bot.errors import DarkroomError, JobRefused, TooManyEpochs
from bot.queue import Priority
from trainer.protocol.frozen import Frozen
from trainer.protocol.presets import Preset, draft_from_preset, preset_named
from trainer.protocol.setting_problems import SHORT_NAMES, SettingProblem, by_dotted_names, nested, parse_toml
from trainer.protocol.settings import TINY
from trainer.protocol.spec import SpecDraft, SpecError, merge
from trainer.protocol.study import StudyRequest
from trainer.protocol.text import _, listed

#: The most that is read of a `.toml` file.
MAX_TOML_BYTES = 64 * 1024
#: What is read from a `.toml` file for the request itself.
_OF_REQUEST = ("name", "preset", "base")
#: Settings that lead to files of the machine, or to what the queue decides: members choose by a label, a dataset's name
#: or a button instead.
_NOT_FOR_MEMBERS = frozenset(
    {
        *("base.source", "base.revision", "base.config", "base.vae", "base"),
        *("method.start_from", "method.start_sha256", "samples.similarity_model"),
        *("version", "dataset", "validation.test"),
    }
)


class UnknownBase(JobRefused):
    """No base model of that label, or none that could be the default."""

    def __init__(self, *, label: str | None, known: Iterable[str]) -> None:
        self.label, self.known = label, tuple(known)
        if label is None:
            text = _(
                "No real base model is set up here yet, so there is nothing good to train. A manager of the bot adds "
                "one: `/admin models` says how. To try the steps, choose base:{toy}, a toy model for the demo (64 px, "
                "simple shapes only).",
                toy=TINY,
            )
        else:
            text = _(
                "There is no base model “{label}” here. Choose one of these: {known}.",
                label=label,
                known=", ".join(self.known),
            )
        super().__init__(text)


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
    #: The preset as it was when it was chosen, if it is one that the server saved.
    saved_preset: Preset | None = None
    #: Label of a base model in the configuration; None leaves it to the preset.
    base: str | None = None
    #: None: the dataset's name.
    name: str | None = None
    #: Settings that differ from the preset, by their dotted names; `mix` names datasets of the server.
    overrides: dict[str, Any] = Field(default_factory=dict)
    #: The training whose result it starts from; None: from the base model alone.
    start_job: int | None = None
    queue: QueueOptions = QueueOptions()
    study: StudyRequest | None = None

    @property
    def gpus(self) -> int:
        """GPUs that the job itself needs; a study leaves them to its runs."""
        return 0 if self.study is not None else self.queue.gpus

    def value_of(self, setting: str) -> Any:
        """Return what was typed for a setting, or for `preset`, `base` and `name`; None: it is left to the preset."""
        return getattr(self, setting) if setting in {"preset", "base", "name"} else self.overrides.get(setting)

    def changed(self, values: Mapping[str, Any]) -> JobRequest:
        """Return the request with other values, by the same names; None leaves a setting to the preset."""
        own = {name: value for name, value in values.items() if name in {"base", "name"}}
        if values.get("preset"):
            own["preset"] = values["preset"]
        if own.get("preset", self.preset) != self.preset:
            own["saved_preset"] = None
        others = {name: value for name, value in values.items() if name not in {"preset", "base", "name"}}
        return self.model_copy(update={**own, "overrides": overrides({**self.overrides, **others})})


def overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings that the member gave; None leaves one to the preset."""
    return {name: value for name, value in values.items() if value is not None}


def options_as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command by the names of their settings; None is left out."""
    return {
        SHORT_NAMES.get(name, name): value.strip() if isinstance(value, str) else value
        for name, value in options.items()
        if value is not None
    }


def request_of_toml(content: bytes) -> dict[str, Any]:
    """Read a `.toml` file with the settings that `trainer new --explain` lists; the values are by dotted names, and
    `preset`, `base` and `name`.

    Raises:
        JobRefused: It is not TOML.
    """
    try:
        tables = parse_toml(content.decode("utf-8-sig"))
    except ValueError as error:
        raise JobRefused(_("The settings file is not valid TOML: {error}. Nothing was queued.", error=error)) from error
    return {name: str(value) if name in _OF_REQUEST else value for name, value in by_dotted_names(tables).items()}


def make_draft(request: JobRequest, config: Config, *, max_epochs: int) -> SpecDraft:
    """Make the spec of a request, without its dataset. `mix` still has the names of datasets.

    Raises:
        TooManyEpochs: The member may not train so many.
        UnknownBase: The base is unknown, or none is set up.
        SpecError: The preset is unknown, or a value is out of its range or not for members.
    """
    _refuse_foreign_files(request.overrides)
    base = _base(request, config)
    draft = draft_from_preset(
        request.saved_preset or request.preset,
        base=base.get("source"),
        name=slug(request.name) if request.name else "lora",
        changes=merge({"base": base}, nested(request.overrides)),
    )
    epochs = draft.training.epochs
    if epochs > max_epochs:
        raise TooManyEpochs(epochs=epochs, allowed=max_epochs)
    return draft


def problems_of(error: BaseException) -> tuple[SettingProblem, ...]:
    """Return the settings of a request that a form can put right; empty: the error is about something else."""
    match error:
        case SpecError():
            return error.problems
        case TooManyEpochs():
            return (SettingProblem(name="training.epochs", nearest=error.allowed),)
        case UnknownBase():
            return (SettingProblem(name="base"),)
        case UnknownMixedDataset():
            return (SettingProblem(name="mix"),)
    return ()


class UnknownMixedDataset(DarkroomError):
    """A dataset that is to be mixed in does not exist here, is there twice, or is more private than the other."""

    def __init__(self, *, name: str, is_twice: bool = False, is_private: bool = False) -> None:
        self.name, self.is_twice, self.is_private = name, is_twice, is_private
        if is_private:
            text = _(
                "{name} is private, and more people would see it in this training. Take it out, or change who sees "
                "the two datasets (/dataset privacy).",
                name=name,
            )
        elif is_twice:
            text = _("{name} would be mixed with itself. Set repeats to see its images more often.", name=name)
        else:
            text = _("There is no dataset {name} here to mix in. /dataset list shows them all.", name=name)
        super().__init__(text)


def _refuse_foreign_files(values: Mapping[str, Any]) -> None:
    """Raise SpecError if a setting would lead to files that are not the member's."""
    refused = [name for name in values if name in _NOT_FOR_MEMBERS]
    if refused:
        raise SpecError(
            _(
                "{settings} cannot be set from Discord. Choose a base by its label (base), and a dataset by its name.",
                settings=listed(refused),
            ),
            problems=[SettingProblem(name=name) for name in refused],
        )


def _base(request: JobRequest, config: Config) -> dict[str, str]:
    """The model to start from; empty leaves it to a preset for one kind of model, such as a classifier."""
    preset = request.saved_preset or preset_named(request.preset)
    if request.base is None and "base" in preset.settings:
        return {}
    label = request.base or config.models.default_label
    if label is None or label not in config.models.sources:
        raise UnknownBase(label=label, known=config.models.sources)
    return config.models.base_of(label)


def split_prompts(text: str) -> list[str]:
    """Split `a fox | a fox in snow`, or a prompt on each line, into two prompts."""
    return [prompt for part in re.split(r"[|\n]", text) if (prompt := part.strip())]


def slug(name: str) -> str:
    """Turn a name into a file name: `My Fox!` → `my-fox`; unchanged if nothing would remain, so that it is refused."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:40] or name
