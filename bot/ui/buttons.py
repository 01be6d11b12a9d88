"""Buttons that outlive restarts: their custom id names the verb and what it is about.

A custom id comes from the member's client. Each class takes every id with its prefix, and dispatches one that the bot
has not made with an empty argument and verb, so that it is answered like that of another version.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, cast

import discord
from discord import ui

from trainer.protocol.text import _

_Control = TypeVar("_Control", bound="ui.Button[ui.LayoutView] | ui.Select[ui.LayoutView]")


class _Persistent(ui.DynamicItem[_Control], template=r"(?!)"):
    """A button or menu that is known by its custom id alone.

    A press is dispatched as `press`, with the class, the verb, the argument, and the number of a thing if its ids have
    one: through the client, because layouts know nothing of stores, and errors are reported in one place.
    """

    #: The custom ids that the bot makes: `number`, `verb` and `arg`; what is chosen in a menu follows the argument.
    form: ClassVar[str]
    #: Of ids that name none.
    verb: ClassVar[str] = ""

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(cast("_Control", item))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        pattern = re.compile(self.form)
        found = pattern.fullmatch(self.custom_id)
        parts = found.groupdict("") if found else {}
        chosen = self.item.values[:1] if isinstance(self.item, ui.Select) else []
        arg = "-".join(filter(None, [parts.get("arg"), *chosen]))
        about = [int(parts.get("number", 0))] if "number" in pattern.groupindex else []
        interaction.client.dispatch("press", interaction, type(self), parts.get("verb", self.verb), arg, *about)


_Button: TypeAlias = _Persistent[ui.Button[ui.LayoutView]]
_Menu: TypeAlias = _Persistent[ui.Select[ui.LayoutView]]


class JobButton(_Button, template=r"(?s:job:.*)"):
    """A button about a job, or a page of the queue."""

    form = r"job:(?P<number>[0-9]{1,18}):(?P<verb>[a-z_]{1,20})"


class DatasetButton(_Button, template=r"(?s:ds:.*)"):
    """A button about a dataset."""

    form = r"ds:(?P<number>[0-9]{1,18}):(?P<verb>[a-z_]{1,20})(?::(?P<arg>[0-9a-z_-]{1,64}))?"


class GalleryButton(_Button, template=r"(?s:gallery:.*)"):
    """A button of the gallery, about a post."""

    form = r"gallery:(?P<number>[0-9]{1,18}):(?P<verb>[a-z_]{1,20})(?::(?P<arg>[0-9a-z-]{1,80}))?"


class AdminButton(_Button, template=r"(?s:admin:.*)"):
    """A button for operators."""

    form = r"admin:(?P<verb>[a-z_]{1,20}):(?P<arg>[0-9a-z]{1,40})"


class FormButton(_Button, template=r"(?s:form:.*)"):
    """[Fix in form], with the key of the form."""

    form, verb = r"form:(?P<arg>[0-9]{1,19})", "reopen"


class HelpButton(_Button, template=r"(?s:help:.*)"):
    """A page of `/help`."""

    form, verb = r"help:(?P<arg>[a-z]{1,20})", "page"


class NotifyButton(_Button, template=r"(?s:notify:quiet)"):
    """[Quiet hours…] of `/notify`."""

    form = r"notify:(?P<verb>quiet)"


class NotifyMenu(_Menu, template=r"notify:at:[a-z_]{1,20}"):
    """A menu of `/notify`: the place of an event's news."""

    form = r"notify:(?P<verb>at):(?P<arg>[a-z_]{1,20})"


class SampleMenu(_Menu, template=r"(?s:sample:.*)"):
    """A menu of a sampling."""

    form = r"sample:(?P<number>[0-9]{1,18}):(?P<verb>[a-z]{1,20})"

    @classmethod
    def of(cls, job_id: int, verb: str, options: list[discord.SelectOption], placeholder: str) -> Self:
        """Make the menu of a sampling."""
        return cls(ui.Select(custom_id=f"sample:{job_id}:{verb}", options=options, placeholder=placeholder))


def form_button(key: int) -> FormButton:
    """Make the button that opens a refused form again."""
    style = discord.ButtonStyle.primary
    return FormButton(ui.Button(custom_id=f"form:{key}", label=_("Fix in form"), style=style))


def help_button(page: str, label: str, *, is_disabled: bool = False) -> HelpButton:
    """Make the button of a page of `/help`."""
    return HelpButton(
        ui.Button(custom_id=f"help:{page}", label=label, style=discord.ButtonStyle.secondary, disabled=is_disabled)
    )


def job_button(
    job_id: int,
    verb: str,
    label: str,
    *,
    emoji: str | None = None,
    style: discord.ButtonStyle = discord.ButtonStyle.secondary,
) -> JobButton:
    """Make a button about a job."""
    return JobButton(ui.Button(custom_id=f"job:{job_id}:{verb}", label=label or None, emoji=emoji, style=style))


def page_button(job_id: int) -> JobButton:
    """Make the button that answers with a link to the page of a job."""
    return job_button(job_id, "web", _("Open page"))


def dataset_button(
    dataset_id: int,
    verb: str,
    label: str = "",
    *,
    arg: str | int = "",
    emoji: str | None = None,
    style: discord.ButtonStyle = discord.ButtonStyle.secondary,
    is_disabled: bool = False,
) -> DatasetButton:
    """Make a button about a dataset."""
    custom_id = f"ds:{dataset_id}:{verb}" + (f":{arg}" if arg != "" else "")
    return DatasetButton(
        ui.Button(custom_id=custom_id, label=label or None, emoji=emoji, style=style, disabled=is_disabled)
    )


def gallery_button(
    post_id: int,
    verb: str,
    label: str,
    *,
    arg: str = "",
    emoji: str | None = None,
    style: discord.ButtonStyle = discord.ButtonStyle.secondary,
    is_disabled: bool = False,
) -> GalleryButton:
    """Make a button of a picture in the gallery."""
    custom_id = f"gallery:{post_id}:{verb}" + (f":{arg}" if arg else "")
    return GalleryButton(ui.Button(custom_id=custom_id, label=label, emoji=emoji, style=style, disabled=is_disabled))


def admin_button(verb: str, arg: str, label: str, *, style: discord.ButtonStyle) -> AdminButton:
    """Make a button for operators."""
    return AdminButton(ui.Button(custom_id=f"admin:{verb}:{arg}", label=label, style=style))
