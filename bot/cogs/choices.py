"""What `/finetune` and `/study` offer while somebody types."""

from __future__ import annotations

from discord import app_commands

from bot.config import Config
from trainer.protocol.presets import presets


def preset_choices(typed: str) -> list[app_commands.Choice[str]]:
    """Presets that somebody may mean, with what each is for."""
    found = [each for each in presets().values() if typed.lower() in each.name]
    return [app_commands.Choice(name=f"{each.name} · {each.summary}"[:100], value=each.name) for each in found[:25]]


def base_choices(config: Config, typed: str) -> list[app_commands.Choice[str]]:
    """Base models that somebody may mean."""
    labels = [label for label in config.models.sources if typed.lower() in label.lower()]
    return [app_commands.Choice(name=label[:100], value=label[:100]) for label in labels[:25]]
