"""Presets: tested settings, one TOML file each, with the changes for bases of another size."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any

from pydantic import Field

from trainer.protocol.frozen import Frozen
from trainer.protocol.setting_problems import SettingProblem
from trainer.protocol.settings import TINY, Base
from trainer.protocol.spec import Settings, Spec, SpecDraft, SpecError, make_spec_draft, merge
from trainer.protocol.text import _, listed


class PresetAudience(StrEnum):
    """Who chooses a preset."""

    DESIGNERS = "designers"
    #: People who know the method by its name.
    EXPERTS = "experts"
    DEMO = "demo"


#: The built-in presets, the most used first.
_BUILT_IN: dict[str, PresetAudience] = {
    **dict.fromkeys(("lora", "style", "dreambooth", "adaptive"), PresetAudience.DESIGNERS),
    **dict.fromkeys(("dora", "loha", "lokr", "oft", "ia3", "staged"), PresetAudience.EXPERTS),
    **dict.fromkeys(("textual_inversion", "full", "dreambooth_full", "classifier"), PresetAudience.EXPERTS),
    "demo": PresetAudience.DEMO,
}
DEFAULT_PRESET = next(iter(_BUILT_IN))
#: What built-in presets start from for bases of true size, where a step takes long: validation and samples of 20 to 60
#: images then take less than a quarter of an epoch (docs/adr/0018).
_TRUE_SIZE: dict[str, Any] = {
    "training": {"repeats": 0},
    "validation": {"train_images": 8},
    "samples": {"every_epochs": 2, "steps": 20},
    # Small files of all epochs, to choose one by eye (*Compare epochs*).
    "exports": {"every_epochs": 1},
}


def _summaries() -> dict[str, str]:
    """Return what each built-in preset is for; with its name and audience it fits into Discord's 100 characters."""
    return {
        "lora": _("A character, an object or a style from 15 to 200 images. Start here."),
        "style": _("A style from 30 or more images. The captions should say what is in them."),
        "dreambooth": _("One subject from 3 to 10 images. Asks for a trigger word and what it is."),
        "adaptive": _("Finds the learning rate itself. For when lora learned too little or too much."),
        "dora": _("Like lora, closer to a full fine-tune, and slower."),
        "loha": _("Several characters at once, or when lora copies your images."),
        "lokr": _("Keeps details that lora misses, in a file of about 12 MB."),
        "oft": _("Gentle: it rotates weights, so the model keeps what it knows."),
        "ia3": _("A style in less than 1 MB, for the one base it was trained on."),
        "staged": _("Two stages at falling rates, the last blocks first. For UNets."),
        "textual_inversion": _("Teaches one new word and nothing else, in a few KB."),
        "full": _("Every weight, from hundreds of images; a file of gigabytes."),
        "dreambooth_full": _("Like dreambooth, with every weight. A file of gigabytes."),
        "classifier": _("Sorts images, draws none. Needs one folder for each class."),
        "demo": _("For the toy model of the demo: one simple character in minutes."),
    }


def _needed() -> dict[str, str]:
    """Return what a setting is that a preset may need."""
    return {
        "training.trigger": _("a word that stands for what is in the images, such as zkz"),
        "prior.class_prompt": _("what it is one of, such as “a photo of a dog”"),
    }


class Preset(Frozen):
    """A starting point for a spec."""

    name: str
    #: One sentence that helps to choose; empty for a built-in one (`summary_of`).
    summary: str = ""
    #: Settings that it leaves to the user, since they depend on the images; without them it is refused.
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    #: Overrides for a base with this source.
    bases: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def settings_for(self, base_source: str) -> dict[str, Any]:
        is_for_large = self.audience is not None and base_source != TINY and "task" not in self.settings
        below = _TRUE_SIZE if is_for_large else {}
        return merge(below, self.settings, self.bases.get(base_source, {}))

    @property
    def audience(self) -> PresetAudience | None:
        """None: it is not built-in."""
        return _BUILT_IN.get(self.name)


@cache
def presets() -> dict[str, Preset]:
    """Return the built-in presets by name, the most used first; the first is the default."""
    folder = resources.files(__package__) / "presets"
    return {
        name: Preset(name=name, **tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")))
        for name in _BUILT_IN
    }


def summary_of(preset: Preset) -> str:
    """Return what a preset is for, in one sentence."""
    return preset.summary or _summaries().get(preset.name, "")


def preset_named(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        SpecError: There is no such preset; the message names the nearest one and lists all.
    """
    known = presets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = _(" Did you mean {preset}?", preset=near[0]) if near else ""
    raise SpecError(
        _("There is no preset “{name}”.{guess} Presets: {presets}.", name=name, guess=guess, presets=", ".join(known)),
        problems=[SettingProblem(name="preset")],
    )


def draft_from_preset(
    preset: str | Preset, *, base: str | None = None, name: str = "lora", changes: Settings | None = None
) -> SpecDraft:
    """Make a job's spec without its dataset: the preset's settings for this base, with `changes` laid over them.

    Without a base, the preset's own is taken, or the one that ships.

    Raises:
        SpecError: The preset is unknown or needs more settings, or one does not exist or is out of its range.
    """
    chosen = preset if isinstance(preset, Preset) else preset_named(preset)
    source = base or chosen.settings.get("base", {}).get("source") or Base().source
    _check_needs(chosen, changes or {})
    settings = chosen.settings_for(source)
    if "stages" in (changes or {}):
        # The preset's number of epochs is of a training without these stages.
        settings.get("training", {}).pop("epochs", None)
    return make_spec_draft(
        merge({"name": name, "preset": chosen.name}, settings, {"base": {"source": source}}, changes or {})
    )


def _check_needs(preset: Preset, changes: Settings) -> None:
    """Raise SpecError unless `changes` have what the preset leaves to the user."""
    missing = []
    for need in preset.needs:
        group, _dot, name = need.partition(".")
        inner = changes.get(group)
        if not (isinstance(inner, Mapping) and inner.get(name)):
            missing.append(need)
    if missing:
        words = listed([f"{need} ({_needed()[need]})" for need in missing])
        raise SpecError(
            _("The preset {preset} needs {missing}.", preset=preset.name, missing=words),
            problems=[SettingProblem(name=need) for need in missing],
        )


def spec_from_preset(
    preset: str, *, dataset: str, base: str | None = None, name: str = "lora", changes: Settings | None = None
) -> Spec:
    """Make the complete spec of a job; see `draft_from_preset`, which raises the same."""
    return draft_from_preset(preset, base=base, name=name, changes=changes).with_dataset(dataset)
