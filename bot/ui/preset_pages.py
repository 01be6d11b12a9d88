"""The pages of `/preset`: the list, one preset, and what was saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bot.queue.store.preset_store import SavedPreset
from bot.ui.discord_text import escape, first_lines, mention
from bot.ui.layout import Color, MessageContent, box, layout
from trainer.protocol.presets import Preset, PresetAudience, presets, summary_of
from trainer.protocol.setting_problems import toml_value, with_short_names
from trainer.protocol.text import _

_MAX_TOML = 2400


def preset_list(saved: Sequence[SavedPreset]) -> MessageContent:
    """All presets: those of the server, then the built-in ones, for designers and for experts apart."""
    built_in = presets().values()
    sections = [
        (_("Of this server"), first_lines([_saved_line(each) for each in saved], most=25, characters=1500)),
        (_("For designers"), [_line(each) for each in built_in if each.audience is PresetAudience.DESIGNERS]),
        (_("For experts"), [_line(each) for each in built_in if each.audience is PresetAudience.EXPERTS]),
        (_("For the demo"), [_line(each) for each in built_in if each.audience is PresetAudience.DEMO]),
    ]
    texts = [f"**{title}**\n" + "\n".join(lines) for title, lines in sections if lines]
    hint = _("Choose one with `preset:` in /finetune. /preset save makes one from a job that went well.")
    return MessageContent(layout=layout(box(Color.WAITING, f"### {_('Presets')}", *texts, f"-# {hint}")))


def preset_page(preset: Preset, saved: SavedPreset | None) -> MessageContent:
    """One preset with all its settings, as a `.toml` file has them."""
    lines = [summary_of(preset)]
    if preset.needs:
        lines.append(_("You give: {settings}.", settings=with_short_names(", ".join(preset.needs))))
    if saved is not None:
        lines.append(_("Saved by {owner}.", owner=mention(saved.owner_id)))
        if saved.base:
            lines.append(_("Made on the base {base}.", base=escape(saved.base)))
    toml = as_toml(preset.settings)
    code = f"```toml\n{toml[:_MAX_TOML].replace('```', '')}\n```" if toml else _("All settings are at their defaults.")
    hint = _("These lines also work as a .toml file: `settings:` in /finetune.")
    heading = f"### {_('Preset {name}', name=escape(preset.name))}"
    return MessageContent(layout=layout(box(Color.WAITING, heading, escape_lines(lines, saved), code, f"-# {hint}")))


def escape_lines(lines: Sequence[str], saved: SavedPreset | None) -> str:
    """The first line of a saved preset was typed by a member."""
    first, *others = lines
    return "\n".join([escape(first, 300) if saved is not None else first, *others])


def saved_text(saved: SavedPreset) -> str:
    """What was saved, and how to use it."""
    return _(
        "💾 Preset **{name}** is saved for this server. Use it with `/finetune preset:{name}`; trigger word, prompts "
        "and images are yours to give each time.",
        name=escape(saved.preset.name),
    )


def deleted_preset_text(name: str) -> str:
    return _("Preset **{name}** is deleted. Trainings that used it keep their settings.", name=escape(name))


def _line(preset: Preset) -> str:
    return f"`{preset.name}` {summary_of(preset)}"


def _saved_line(saved: SavedPreset) -> str:
    return f"`{saved.preset.name}` {escape(summary_of(saved.preset), 150)} · {mention(saved.owner_id)}"


def as_toml(settings: Mapping[str, Any]) -> str:
    """Return nested settings as TOML, a line for each; lists of tables on one line."""
    lines = []
    for group, value in settings.items():
        if isinstance(value, Mapping):
            lines += [f"{group}.{name} = {toml_value(inner)}" for name, inner in value.items() if inner is not None]
        elif value is not None:
            lines.append(f"{group} = {toml_value(value)}")
    return "\n".join(lines)
