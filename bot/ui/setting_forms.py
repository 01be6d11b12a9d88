"""Forms about the settings of a request: its pages, the form that asks for what is wrong, and their messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import discord
from discord import ui

from bot.ui.buttons import dataset_button
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.discord_text import escape, shorten
from bot.ui.layout import Color, MessageContent, box, layout, row, rows
from bot.ui.model_pages import model_words
from bot.ui.setting_fields import SettingField, SettingsPage, fields_of, page_title
from trainer.protocol.presets import Preset, PresetAudience, summary_of
from trainer.protocol.setting_problems import SettingProblem, parse_value, with_short_names
from trainer.protocol.settings import TINY
from trainer.protocol.spec import SpecDraft
from trainer.protocol.text import _

#: Discord's limits: fields of a form, characters of a label, a description and a placeholder, options of a menu.
MAX_FIELDS, _MAX_LABEL, _MAX_DESCRIPTION, _MAX_OPTIONS = 5, 45, 100, 25
#: The value of a menu's option that leaves a setting to the preset.
_LEFT_OUT = "-"
_MAX_LONG = 4000


# -- the form -----------------------------------------------------------------------------------------------------


class SettingsForm(Form):
    """A form of settings; `answers` has what was typed for each, empty where it is left to the preset."""

    def __init__(self, title: str, submitted: FormCallback) -> None:
        super().__init__(title, submitted)
        self._menus: dict[str, ui.Select[Any]] = {}

    @property
    def answers(self) -> dict[str, str]:
        menus = {name: menu.values[0] if menu.values else "" for name, menu in self._menus.items()}
        return {**self.texts, **{name: "" if value == _LEFT_OUT else value for name, value in menus.items()}}

    def add_setting(self, field: SettingField, *, typed: str, left_out: str) -> None:
        """Add a field with what was typed; `left_out` is the value that applies without it."""
        if field.choices and (field.is_closed or not typed or typed in field.choices):
            self._add_menu(field, typed, left_out)
            return
        self.add_text(
            field.name,
            field.label[:_MAX_LABEL],
            shorten(field.description, _MAX_DESCRIPTION) or None,
            value=typed,
            max_length=_MAX_LONG if field.is_long else 500,
            is_long=field.is_long,
            placeholder=left_out,
        )

    def _add_menu(self, field: SettingField, typed: str, left_out: str) -> None:
        is_wrong = bool(typed) and typed not in field.choices
        menu: ui.Select[Any] = ui.Select(custom_id=field.name, required=is_wrong, min_values=int(is_wrong))
        if not is_wrong:
            as_usual = _("Not changed ({value})", value=left_out) if left_out else _("Not changed")
            menu.add_option(label=shorten(as_usual, 100), value=_LEFT_OUT, default=not typed)
        for choice in field.choices[: _MAX_OPTIONS - 1]:
            hint = (field.hints or {}).get(choice)
            menu.add_option(
                label=shorten(choice, 100),
                value=choice,
                description=None if hint is None else shorten(hint, 100),
                default=choice == typed,
            )
        self._menus[field.name] = menu
        description = shorten(field.description, _MAX_DESCRIPTION) or None
        self.add_item(ui.Label(text=field.label[:_MAX_LABEL], description=description, component=menu))
        self._refills.append(
            lambda form: form.add_setting(field, typed=self.answers.get(field.name, ""), left_out=left_out)
        )


def settings_form(
    submitted: FormCallback,
    title: str,
    fields: Sequence[SettingField],
    *,
    typed: Mapping[str, str],
    left_out: Mapping[str, str],
) -> SettingsForm:
    """Make a form of settings, filled with what was typed before.

    Args:
        submitted: The callback.
        title: Of the form.
        fields: At most `MAX_FIELDS`.
        typed: By the names of the settings.
        left_out: The values that apply where nothing is typed.
    """
    form = SettingsForm(title, submitted)
    for field in fields[:MAX_FIELDS]:
        form.add_setting(field, typed=typed.get(field.name, ""), left_out=left_out.get(field.name, ""))
    return form


def field_for(problem: SettingProblem, *, presets: Mapping[str, Preset], bases: Mapping[str, str]) -> SettingField:
    """Return the field that asks for a setting again, with the nearest value that is allowed in its description."""
    name = problem.meant or problem.name
    known = {each.name: each for page in SettingsPage for each in fields_of(page)}
    if name == "preset":
        field = preset_field(presets)
    elif name == "base":
        field = base_field(bases)
    else:
        label = with_short_names(name)
        field = known.get(name) or SettingField(name=name, label=label, is_long=name in {"stages", "mix"})
    if problem.nearest is None or field.choices:
        return field
    nearest = f"{problem.nearest:g}" if isinstance(problem.nearest, float) else str(problem.nearest)
    return replace(field, description=_("The nearest value that works is {value}.", value=nearest))


def preset_field(presets: Mapping[str, Preset]) -> SettingField:
    """Ask for a preset: those of the server first, then the built-in ones."""
    names = tuple(presets)[: _MAX_OPTIONS - 1]
    return SettingField(
        name="preset",
        label=_("Preset"),
        description=_("Settings to start from."),
        choices=names,
        is_closed=True,
        hints={name: summary_of(presets[name]) for name in names},
    )


def base_field(sources: Mapping[str, str]) -> SettingField:
    """Ask for a base model by its label; the toy model says what it is."""
    return SettingField(
        name="base",
        label=_("Base model"),
        description=_("The model to teach."),
        choices=tuple(sources),
        hints={label: model_words(source, None) for label, source in sources.items() if source == TINY},
        is_closed=True,
    )


def value_of(draft: SpecDraft | None, setting: str) -> str:
    """Return the value that a setting of a draft has, as a member would type it; empty if it has none."""
    found: Any = draft
    for part in setting.split("."):
        found = getattr(found, part, None)
    return typed_text(found)


def typed_text(value: Any) -> str:
    """Return a value as a member would type it: prompts on lines, datasets of a mix on lines."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case [{"dataset": _first}, *_rest]:
            return "\n".join(_mix_line(part) for part in value)
        case list() | tuple():
            return "\n".join(typed_text(each) for each in value)
        case _:
            return str(value)


def _mix_line(part: Mapping[str, Any]) -> str:
    words = [str(part["dataset"])]
    words += [f"{name}={part[name]}" for name in ("weight", "repeats", "trigger") if part.get(name)]
    return " ".join([*words, "regularization"] if part.get("role") == "regularization" else words)


def parse_mix(text: str) -> list[dict[str, Any]]:
    """Parse the datasets of a mix, one on each line: `cats weight=0.3`, `people regularization`."""
    parts = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, *words = line.split()
        part: dict[str, Any] = {"dataset": name}
        for word in words:
            key, equals, value = word.partition("=")
            part |= {key: parse_value(value)} if equals else {"role": word}
        parts.append(part)
    return parts


# -- messages -----------------------------------------------------------------------------------------------------


def settings_card(dataset_id: int, draft_id: int, name: str, overrides: Mapping[str, Any]) -> MessageContent:
    """The pages of settings of a request, and what is set by now."""
    # Prompts, one a line in their form, are parted as in the command.
    typed = {name: typed_text(value).replace("\n", " | ") for name, value in overrides.items()}
    lines = [f"`{with_short_names(name)}` {escape(text, 120)}" for name, text in typed.items()]
    buttons = [
        dataset_button(dataset_id, "page", page_title(page), arg=f"{draft_id}-{page}")
        for page in SettingsPage
        if page is not SettingsPage.BASICS
    ]
    body = box(
        Color.WAITING,
        f"### ⚙️ {_('Settings of {name}', name=escape(name))}",
        "\n".join(lines) or _("Everything is as in the preset."),
        "-# " + _("An empty field keeps the preset's value."),
        *rows(buttons),
        row(dataset_button(dataset_id, "back", _("Back"), arg=draft_id, style=discord.ButtonStyle.primary)),
    )
    return MessageContent(layout=layout(body))


def problem_card(
    dataset_id: int, draft_id: int, *, name: str, sentence: str, problems: Sequence[SettingProblem]
) -> MessageContent:
    """What has to change before a request can be queued; everything that was typed is kept."""
    near = [each for each in problems if each.nearest is not None]
    lines = [
        _(
            "The nearest value that works for {setting}: **{value}**.",
            setting=escape(with_short_names(each.name)),
            value=escape(typed_text(each.nearest), 60),
        )
        for each in near
    ]
    body = box(
        Color.NOTE,
        f"### ✏️ {_('{name}: this needs a change', name=escape(name))}",
        "\n".join([sentence, *lines]),
        "-# " + _("Nothing is queued yet. Everything else that you set is kept."),
        row(
            dataset_button(dataset_id, "fix", _("Fix in form"), arg=draft_id, style=discord.ButtonStyle.primary),
            dataset_button(dataset_id, "advanced", _("All settings…"), arg=draft_id),
            dataset_button(dataset_id, "cancel", _("Cancel"), arg=draft_id),
        ),
    )
    return MessageContent(layout=layout(body))


def preset_choice(preset: Preset) -> str:
    """A preset in a list of choices: `dora · for experts · Like lora, …`."""
    parts = [preset.name]
    if preset.audience is PresetAudience.EXPERTS:
        parts.append(_("for experts"))
    elif preset.audience is None:
        parts.append(_("of this server"))
    return " · ".join([*parts, summary_of(preset)]) if summary_of(preset) else " · ".join(parts)
