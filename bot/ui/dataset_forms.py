"""Forms about datasets: files to upload, caption rules, the caption of one image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import discord
from discord import ui

from bot.ui.buttons import form_button
from bot.ui.discord_text import ZERO_WIDTH_SPACE, shorten
from bot.ui.layout import Color, MessageContent, box, layout, row
from trainer.protocol.edits import CaptionRules
from trainer.protocol.text import _

#: Discord's limit for one form.
MAX_FILES = 10
_MAX_TITLE_CHARS, _MAX_PLACEHOLDER_CHARS = 45, 100
_MAX_CAPTION_CHARS, _MAX_LIST_CHARS = 2000, 4000
#: A form that was closed without an answer is forgotten after this time.
_TIMEOUT_S = 3600
#: In an interaction's `extras`: one of our forms has it.
_HAS_FORM = "has_form"

_MAX_COLUMN_CHARS = 100
#: As many as Discord lets people choose.
MAX_GUESTS = 25
_EVERYONE, _PRIVATE = "everyone", "private"
_RULE_CHARS = {
    name: next(rule.max_length for rule in CaptionRules.model_fields[name].metadata if hasattr(rule, "max_length"))
    for name in ("trigger", "prefix", "suffix")
}


class Form(ui.Modal):
    """A form that passes itself to a callback; the callback reports its own errors."""

    def __init__(self, title: str, submitted: FormCallback) -> None:
        super().__init__(title=shorten(title, _MAX_TITLE_CHARS), timeout=_TIMEOUT_S)
        self._submitted = submitted
        self._texts: dict[str, ui.TextInput[Any]] = {}
        #: Add each field to another form, with what was typed.
        self._refills: list[Callable[[Any], None]] = []

    def refilled(self) -> Form:
        """Return the same form, filled with what was typed."""
        again = type(self)(self.title, self._submitted)
        for refill in self._refills:
            refill(again)
        return again

    @property
    def texts(self) -> dict[str, str]:
        """The typed texts by field name."""
        return {name: field.value for name, field in self._texts.items()}

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        interaction.extras[_HAS_FORM] = True
        await self._submitted(interaction, self)

    def add_text(
        self,
        name: str,
        label: str,
        description: str | None = None,
        *,
        value: str = "",
        max_length: int = 200,
        is_long: bool = False,
        placeholder: str = "",
    ) -> None:
        """Add an optional line, or a paragraph."""
        field: ui.TextInput[Any] = ui.TextInput(
            custom_id=name,
            style=discord.TextStyle.paragraph if is_long else discord.TextStyle.short,
            required=False,
            max_length=max_length,
            default=value[:max_length] or None,
            placeholder=shorten(placeholder, _MAX_PLACEHOLDER_CHARS) or None,
        )
        self._texts[name] = field
        self.add_item(ui.Label(text=label, description=description, component=field))
        self._refills.append(
            lambda form: form.add_text(
                name,
                label,
                description,
                value=field.value,
                max_length=max_length,
                is_long=is_long,
                placeholder=placeholder,
            )
        )


FormCallback: TypeAlias = Callable[[discord.Interaction[Any], Form], Awaitable[None]]


def is_forgotten_form(interaction: discord.Interaction[Any]) -> bool:
    """Whether a form was sent that this process does not know: an earlier one opened it, or it was open for hours."""
    return interaction.type is discord.InteractionType.modal_submit and _HAS_FORM not in interaction.extras


def forgotten_form(interaction: discord.Interaction[Any]) -> MessageContent:
    """What was typed into a form that is not known, so that it need not be typed again."""
    why = _(
        "I was restarted while this form was open, or it was open for too long. Nothing was changed. Open it again the "
        "way you did before."
    )
    typed = [text for text in _typed(interaction.data or {}) if text.strip()]
    parts = [f"```\n{text.replace('```', ZERO_WIDTH_SPACE.join('```'))}\n```" for text in typed]
    if typed:
        why += " " + _("This is what you wrote:")
    return MessageContent(layout=layout(why, "\n".join(parts)))


def _typed(data: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a form as Discord sends them: labels and rows with a component in each."""
    for part in data.get("components", ()):
        component = part.get("component", part)
        if isinstance(component.get("value"), str):
            yield component["value"]
        yield from _typed(component)


def refused_form(sentence: str, key: int) -> MessageContent:
    """Why a form was refused, and the way back to it with everything that was typed."""
    return MessageContent(layout=layout(box(Color.NOTE, f"✏️ {sentence}", row(form_button(key)))))


class UploadForm(Form):
    """Up to ten files, and what to do with them."""

    def __init__(self, submitted: FormCallback, *, has_captioner: bool, has_page: bool = False) -> None:
        super().__init__(_("Upload a dataset"), submitted)
        self._files: ui.FileUpload[Any] = ui.FileUpload(
            custom_id="files", required=not has_page, min_values=0 if has_page else 1, max_values=MAX_FILES
        )
        few = _("Up to ten files. A caption is a .txt file with the name of its image.")
        any_number = _("Up to ten files here. For folders and large files choose none: you get a page for them.")
        self.add_item(
            ui.Label(
                text=_("Images, archives, captions"),
                description=any_number if has_page else few,
                component=self._files,
            )
        )
        self.add_text(
            "name", _("Name"), _("Lowercase letters, digits, - . _ (default: the first file's name)"), max_length=36
        )
        self._mode: ui.RadioGroup[Any] | None = None
        if has_captioner:
            self._mode = ui.RadioGroup(custom_id="captions", required=False)
            self._mode.add_option(label=_("As they are"), value="keep", default=True)
            self._mode.add_option(
                label=_("Write the missing ones"),
                value="write",
                description=_("A model writes them; review them afterwards"),
            )
            self.add_item(ui.Label(text=_("Captions"), component=self._mode))
        _add_trigger(self)
        self.add_text(
            "caption_column",
            _("Caption column"),
            _("For a table (CSV, JSON) with several columns of text"),
            max_length=_MAX_COLUMN_CHARS,
        )

    @property
    def attachments(self) -> list[discord.Attachment]:
        return list(self._files.values)

    @property
    def wants_captions(self) -> bool:
        return self._mode is not None and self._mode.value == "write"


def caption_form(submitted: FormCallback, *, number: int, caption: str) -> Form:
    """The caption of one image."""
    form = Form(_("Caption of image {number}", number=number), submitted)
    form.add_text(
        "caption",
        _("Caption"),
        _("Leave empty for no caption"),
        value=caption,
        max_length=_MAX_CAPTION_CHARS,
        is_long=True,
    )
    return form


def rules_form(submitted: FormCallback, *, name: str, rules: dict[str, str]) -> Form:
    """The rules for all captions of a dataset."""
    form = Form(_("Captions of {name}", name=name), submitted)
    _add_trigger(form, rules["trigger"])
    form.add_text("prefix", _("Before each caption"), value=rules["prefix"], max_length=_RULE_CHARS["prefix"])
    form.add_text("suffix", _("After each caption"), value=rules["suffix"], max_length=_RULE_CHARS["suffix"])
    form.add_text(
        "strip", _("Remove"), _("Words or tags, commas between them"), value=rules["strip"], max_length=_MAX_LIST_CHARS
    )
    form.add_text(
        "replace",
        _("Replace"),
        _("One per line: old => new"),
        value=rules["replace"],
        max_length=_MAX_LIST_CHARS,
        is_long=True,
    )
    return form


class PrivacyForm(Form):
    """Who sees a dataset: everyone, or its owner, managers and people whom the owner names."""

    def __init__(self, submitted: FormCallback, *, name: str, is_private: bool, guests: Sequence[int]) -> None:
        super().__init__(_("Who sees {name}", name=name), submitted)
        self._name = name
        self._who: ui.RadioGroup[Any] = ui.RadioGroup(custom_id="who")
        self._who.add_option(label=_("Everyone here"), value=_EVERYONE, default=not is_private)
        self._who.add_option(label=_("Only me, managers and the people below"), value=_PRIVATE, default=is_private)
        self.add_item(ui.Label(text=_("Who sees it and may train with it"), component=self._who))
        chosen = [discord.SelectDefaultValue(id=each, type=discord.SelectDefaultValueType.user) for each in guests]
        self._guests: ui.UserSelect[Any] = ui.UserSelect(
            custom_id="guests", required=False, min_values=0, max_values=MAX_GUESTS, default_values=chosen[:MAX_GUESTS]
        )
        self.add_item(ui.Label(text=_("People who may see it too"), component=self._guests))

    def refilled(self) -> PrivacyForm:
        return PrivacyForm(self._submitted, name=self._name, is_private=self.is_private, guests=self.guests)

    @property
    def is_private(self) -> bool:
        return self._who.value == _PRIVATE

    @property
    def guests(self) -> tuple[int, ...]:
        """The members who were chosen, without bots."""
        return tuple(each.id for each in self._guests.values if not each.bot)


def _add_trigger(form: Form, value: str = "") -> None:
    description = _("Added to the start of every caption that doesn't contain it")
    form.add_text("trigger", _("Trigger word"), description, value=value, max_length=_RULE_CHARS["trigger"])
