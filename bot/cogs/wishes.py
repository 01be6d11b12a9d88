"""What somebody asked `/finetune` or `/study` for, and the spec that follows from it."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from bot.config import Config
from bot.errors import JobRefused
from bot.queue import Priority
from trainer.protocol.presets import preset_named, spec_from_preset
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyOrder, make_study_order


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What somebody asked for, as they typed it; None where they left it to the preset."""

    preset: str
    base: str | None
    name: str | None
    epochs: int | None
    lr: float | None
    rank: int | None
    prompts: str | None
    trigger: str | None
    class_prompt: str | None
    seed: int | None
    early_stop: bool | None
    #: How it stands in line: a `Priority` by name, GPUs at once, and seconds since the epoch before which it does not
    #: start.
    priority: str | None = None
    gpus: int | None = None
    run_after: float | None = None
    #: `StudyOrder` as JSON, for a study.
    study: str | None = None

    def changes(self) -> dict[str, Any]:
        """The settings to lay over the preset."""
        training = {
            "epochs": self.epochs,
            "learning_rate": self.lr,
            "trigger": self.trigger and self.trigger.strip(),
            "seed": self.seed,
        }
        groups: dict[str, dict[str, Any]] = {
            "training": training,
            "method": {"rank": self.rank},
            "samples": {"prompts": split_prompts(self.prompts) if self.prompts else None},
            "prior": {"class_prompt": self.class_prompt and self.class_prompt.strip()},
            "early_stopping": {"enabled": self.early_stop},
        }
        return {
            group: {key: value for key, value in settings.items() if value is not None}
            for group, settings in groups.items()
        }

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def order(self) -> Priority:
        return Priority[self.priority.upper()] if self.priority else Priority.NORMAL

    @property
    def study_order(self) -> StudyOrder | None:
        return None if self.study is None else make_study_order(json.loads(self.study))

    @classmethod
    def from_json(cls, text: str) -> Wishes:
        """The wishes of a draft; those that a bot of another version did not know are left to the preset."""
        said = json.loads(text)
        return cls(**{field.name: said.get(field.name) for field in dataclasses.fields(cls)})


def make_spec(wishes: Wishes, config: Config, *, dataset_name: str, folder: str, max_epochs: int | None = None) -> Spec:
    """The complete spec of what somebody asked for; `max_epochs` of theirs, the configured number if None.

    Raises:
        JobRefused: an unknown base, or more epochs than they may ask for.
        SpecError: an unknown preset, or a value out of its range.
    """
    source = _base_of(wishes, config)
    name = slug(wishes.name) if wishes.name else dataset_name
    spec = spec_from_preset(wishes.preset, dataset=folder, base=source, name=name, changes=wishes.changes())
    allowed = max_epochs or config.limits.max_epochs
    if spec.training.epochs > allowed:
        raise JobRefused(
            f"{spec.training.epochs} epochs are more than the {allowed} that one job of yours may ask for here. "
            "Nothing was queued; take fewer epochs."
        )
    return spec


def _base_of(wishes: Wishes, config: Config) -> str | None:
    """What to train; None leaves it to a preset that is for one kind of model only, such as a classifier."""
    if wishes.base is None and "base" in preset_named(wishes.preset).settings:
        return None
    label = wishes.base or config.models.default
    if label not in config.models.sources:
        raise JobRefused(f"There is no base model {label!r} here. Models: {', '.join(config.models.sources)}.")
    return config.models.sources[label]


def split_prompts(text: str) -> list[str]:
    """`a fox | a fox in snow` as two prompts."""
    return [prompt for part in text.split("|") if (prompt := part.strip())]


def slug(name: str) -> str:
    """A name as a file may have it: `My Fox!` is `my-fox`; left to be refused where nothing remains."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:40] or name
