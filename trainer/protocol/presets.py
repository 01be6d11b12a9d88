"""Presets: tested settings, one TOML file each, with the changes for bases of another size."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from pydantic import Field

from trainer.protocol.frozen import Frozen
from trainer.protocol.settings import Base
from trainer.protocol.spec import Settings, Spec, SpecDraft, SpecError, make_spec_draft, merge
from trainer.protocol.text import _, listed

#: What a setting is that a preset may need.
_NEEDED: Mapping[str, str] = {
    "training.trigger": _("a word that stands for what is on the images, such as zkz"),
    "prior.class_prompt": _("what it is one of, such as “a photo of a dog”"),
}


class Preset(Frozen):
    """A starting point for a spec."""

    name: str
    #: One sentence that helps to choose.
    summary: str
    #: Settings that it leaves to the user, since they depend on the images; without them it is refused.
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    #: Overrides for a base with this source.
    bases: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def settings_for(self, base_source: str) -> dict[str, Any]:
        return merge(self.settings, self.bases.get(base_source, {}))


@cache
def presets() -> dict[str, Preset]:
    """Return the built-in presets by name, the default (`lora`) first."""
    folder = resources.files(__package__) / "presets"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    found = [
        Preset(name=file.name.removesuffix(".toml"), **tomllib.loads(file.read_text(encoding="utf-8")))
        for file in files
    ]
    return {preset.name: preset for preset in sorted(found, key=lambda preset: preset.name != "lora")}


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
        _("There is no preset {name!r}.{guess} Presets: {presets}.", name=name, guess=guess, presets=", ".join(known))
    )


def draft_from_preset(
    preset: str, *, base: str | None = None, name: str = "lora", changes: Settings | None = None
) -> SpecDraft:
    """Make a job's spec without its dataset: the preset's settings for this base, with `changes` laid over them.

    Without a base, the preset's own is taken, or the one that ships.

    Raises:
        SpecError: The preset is unknown or needs more settings, or one does not exist or is out of its range.
    """
    chosen = preset_named(preset)
    source = base or chosen.settings.get("base", {}).get("source") or Base().source
    _check_needs(chosen, changes or {})
    settings = chosen.settings_for(source)
    if "stages" in (changes or {}):
        # The preset's number of epochs is of a training without these stages.
        settings.get("training", {}).pop("epochs", None)
    return make_spec_draft(
        merge({"name": name, "preset": preset}, settings, {"base": {"source": source}}, changes or {})
    )


def _check_needs(preset: Preset, changes: Settings) -> None:
    """Raise SpecError unless `changes` have what the preset leaves to the user."""
    missing = []
    for need in preset.needs:
        group, _dot, name = need.partition(".")
        if not changes.get(group, {}).get(name):
            missing.append(f"{need} ({_NEEDED[need]})")
    if missing:
        raise SpecError(_("The preset {preset} needs {missing}.", preset=preset.name, missing=listed(missing)))


def spec_from_preset(
    preset: str, *, dataset: str, base: str | None = None, name: str = "lora", changes: Settings | None = None
) -> Spec:
    """Make the complete spec of a job; see `draft_from_preset`, which raises the same."""
    return draft_from_preset(preset, base=base, name=name, changes=changes).with_dataset(dataset)
