"""Presets: named settings that work, one TOML file each, with what changes for a base of another size."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer.protocol.settings import Base
from trainer.protocol.spec import Settings, Spec, SpecError, make_spec, merge


class Preset(BaseModel):
    """A starting point for a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    #: One sentence for the person who chooses.
    summary: str
    settings: dict[str, Any] = {}
    #: Laid over `settings` where the spec's base has this source.
    bases: dict[str, dict[str, Any]] = {}

    def settings_for(self, base_source: str) -> dict[str, Any]:
        return merge(self.settings, self.bases.get(base_source, {}))


@cache
def presets() -> dict[str, Preset]:
    """All presets that ship, by name, the default (`lora`) first."""
    folder = resources.files(__package__) / "presets"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    found = [
        Preset(name=file.name.removesuffix(".toml"), **tomllib.loads(file.read_text(encoding="utf-8")))
        for file in files
    ]
    return {preset.name: preset for preset in sorted(found, key=lambda preset: preset.name != "lora")}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SpecError: there is none; the sentence names the nearest, and all.
    """
    known = presets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    raise SpecError(f"There is no preset {name!r}.{guess} Presets: {', '.join(known)}.")


def spec_from_preset(
    preset: str, *, dataset: str, base: str | None = None, name: str = "lora", changes: Settings | None = None
) -> Spec:
    """The complete spec of a job: the preset's settings for this base, with `changes` laid over them.

    Without a base the preset's own is taken, or the one that ships.

    Raises:
        SpecError: unknown preset, or a setting that does not exist or is out of its range.
    """
    chosen = preset_named(preset)
    source = base or chosen.settings.get("base", {}).get("source") or Base().source
    head = {"name": name, "dataset": dataset, "preset": preset}
    settings = chosen.settings_for(source)
    if "stages" in (changes or {}):
        # The preset's number of epochs is of a training without these stages.
        settings.get("training", {}).pop("epochs", None)
    return make_spec(merge(head, settings, {"base": {"source": source}}, changes or {}))
