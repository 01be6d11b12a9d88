"""Buttons that outlive restarts: their custom id names the verb and what it is about.

A custom id comes from the member's client. Each class takes every id with its prefix, and dispatches one that the bot
has not made with an empty verb, so that it is answered like that of another version.
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

    A press is dispatched with the parts of the custom id (the number of a thing as `int`), and what was chosen: through
    the client, because layouts know nothing of stores, and errors are reported in one place.
    """

    #: What it is dispatched as, and the custom ids that the bot makes.
    event: ClassVar[str]
    form: ClassVar[str]

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(cast("_Control", item))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        pattern = re.compile(self.form)
        found = pattern.fullmatch(self.custom_id)
        parts: list[str | int] = [*found.groups("")] if found else [""] * pattern.groups
        if "number" in pattern.groupindex:
            parts[0] = int(parts[0] or 0)
        if isinstance(self.item, ui.Select):
            parts.append("".join(self.item.values[:1]))
        interaction.client.dispatch(self.event, interaction, *parts)


_Button: TypeAlias = _Persistent[ui.Button[ui.LayoutView]]
_Menu: TypeAlias = _Persistent[ui.Select[ui.LayoutView]]


class JobButton(_Button, template=r"(?s:job:.*)"):
    """A button about a job, dispatched with the job's number and the verb."""

    event, form = "job_button", r"job:(?P<number>[0-9]{1,18}):([a-z_]{1,20})"


class DatasetButton(_Button, template=r"(?s:ds:.*)"):
    """A button about a dataset, dispatched with number, verb, and argument."""

    event, form = "dataset_button", r"ds:(?P<number>[0-9]{1,18}):([a-z_]{1,20})(?::([0-9a-z_-]{1,64}))?"


class GalleryButton(_Button, template=r"(?s:gallery:.*)"):
    """A button of the gallery, dispatched with the post's number, verb, and argument."""

    event, form = "gallery_button", r"gallery:(?P<number>[0-9]{1,18}):([a-z_]{1,20})(?::([0-9a-z-]{1,80}))?"


class AdminButton(_Button, template=r"(?s:admin:.*)"):
    """A button for operators, dispatched with its verb and argument."""

    event, form = "admin_button", r"admin:([a-z_]{1,20}):([0-9a-z]{1,40})"


class FormButton(_Button, template=r"(?s:form:.*)"):
    """[Fix in form], dispatched with the key of the form."""

    event, form = "form_button", r"form:([0-9]{1,19})"


class HelpButton(_Button, template=r"(?s:help:.*)"):
    """A page of `/help`, dispatched with the page."""

    event, form = "help_button", r"help:([a-z]{1,20})"


class NotifyButton(_Button, template=r"(?s:notify:quiet)"):
    """[Quiet hours…] of `/notify`, dispatched with `quiet`."""

    event, form = "notify_menu", r"notify:(quiet)"


class NotifyMenu(_Menu, template=r"notify:at:[a-z_]{1,20}"):
    """A menu of `/notify`, dispatched with `at`, the event, and the chosen place."""

    event, form = "notify_menu", r"notify:(at):([a-z_]{1,20})"


class SampleMenu(_Menu, template=r"(?s:sample:.*)"):
    """A menu of a sampling, dispatched with its number, the verb, and the choice."""

    event, form = "sample_menu", r"sample:(?P<number>[0-9]{1,18}):([a-z]{1,20})"

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
