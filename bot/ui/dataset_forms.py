"""Forms about datasets: files to hand in, rules for captions, one caption."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import discord
from discord import ui

from bot.ui.text import shorten
from trainer.protocol.edits import CaptionRules

#: Discord's limit for one form.
MAX_FILES = 10
_LONGEST_CAPTION, _LONGEST_LIST = 2000, 4000
#: A form that was closed without an answer is not remembered for ever.
_LIFE_S = 3600

_LENGTHS = {
    name: next(rule.max_length for rule in CaptionRules.model_fields[name].metadata if hasattr(rule, "max_length"))
    for name in ("trigger", "prefix", "suffix")
}


class Form(ui.Modal):
    """A form that hands what was typed to a function; where that fails is for its maker to tell."""

    def __init__(self, title: str, submitted: Callable[[discord.Interaction[Any], Form], Awaitable[None]]) -> None:
        super().__init__(title=shorten(title, 45), timeout=_LIFE_S)
        self._submitted = submitted
        self._texts: dict[str, ui.TextInput[Any]] = {}

    @property
    def texts(self) -> dict[str, str]:
        """What was typed, by name."""
        return {name: field.value for name, field in self._texts.items()}

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        await self._submitted(interaction, self)

    def ask(
        self,
        name: str,
        label: str,
        description: str | None = None,
        *,
        known: str = "",
        length: int = 200,
        is_long: bool = False,
    ) -> None:
        """Add a line that may stay empty, or a paragraph."""
        style = discord.TextStyle.paragraph if is_long else discord.TextStyle.short
        field: ui.TextInput[Any] = ui.TextInput(
            custom_id=name, style=style, required=False, max_length=length, default=known[:length] or None
        )
        self._texts[name] = field
        self.add_item(ui.Label(text=label, description=description, component=field))


class UploadForm(Form):
    """Up to ten files, and what is wished for them."""

    def __init__(
        self, submitted: Callable[[discord.Interaction[Any], Form], Awaitable[None]], *, has_captioner: bool
    ) -> None:
        super().__init__("Hand in a dataset", submitted)
        self._files: ui.FileUpload[Any] = ui.FileUpload(custom_id="files", min_values=1, max_values=MAX_FILES)
        self.add_item(
            ui.Label(
                text="Pictures, archives, captions",
                description="Up to ten files. A caption is a .txt of its picture's name.",
                component=self._files,
            )
        )
        self.ask("name", "Name", "Small letters, digits, - . _ · left out: the first file's", length=36)
        self._mode: ui.RadioGroup[Any] | None = None
        if has_captioner:
            self._mode = ui.RadioGroup(custom_id="captions", required=False)
            self._mode.add_option(label="As they are", value="keep", default=True)
            self._mode.add_option(
                label="Write the missing ones", value="write", description="A model does; look them over afterwards"
            )
            self.add_item(ui.Label(text="Captions", component=self._mode))
        description = "Put in front of each caption that does not hold it"
        self.ask("trigger", "Trigger word", description, length=_LENGTHS["trigger"])

    @property
    def attachments(self) -> list[discord.Attachment]:
        return list(self._files.values)

    @property
    def wants_captions(self) -> bool:
        return self._mode is not None and self._mode.value == "write"


def caption_form(
    submitted: Callable[[discord.Interaction[Any], Form], Awaitable[None]], *, number: int, caption: str
) -> Form:
    """The caption of one picture."""
    form = Form(f"Caption of picture {number}", submitted)
    form.ask("caption", "Caption", "Empty: none", known=caption, length=_LONGEST_CAPTION, is_long=True)
    return form


def rules_form(
    submitted: Callable[[discord.Interaction[Any], Form], Awaitable[None]], *, name: str, known: dict[str, str]
) -> Form:
    """What is done to every caption of a dataset."""
    form = Form(f"Captions of {name}", submitted)
    form.ask(
        "trigger",
        "Trigger word",
        "Put in front of each caption that does not hold it",
        known=known["trigger"],
        length=_LENGTHS["trigger"],
    )
    form.ask("prefix", "Before each caption", known=known["prefix"], length=_LENGTHS["prefix"])
    form.ask("suffix", "After each caption", known=known["suffix"], length=_LENGTHS["suffix"])
    form.ask("strip", "Take out", "Words or tags, commas between them", known=known["strip"], length=_LONGEST_LIST)
    form.ask("replace", "Replace", "One a line: old => new", known=known["replace"], length=_LONGEST_LIST, is_long=True)
    return form
