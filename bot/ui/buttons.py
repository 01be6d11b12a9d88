"""Buttons that outlive restarts: their custom id names the verb and what it is about.

A custom id comes from the member's client. Each class takes every id with its prefix, and dispatches one that the bot
has not made with an empty verb, so that it is answered like that of another version.
"""

from __future__ import annotations

import re
from typing import Any, Self

import discord
from discord import ui

from trainer.protocol.text import _

_JOB = re.compile(r"job:([0-9]{1,18}):([a-z_]{1,20})")
_SAMPLE = re.compile(r"sample:([0-9]{1,18}):([a-z]{1,20})")
_DATASET = re.compile(r"ds:([0-9]{1,18}):([a-z_]{1,20})(?::([0-9a-z_-]{1,64}))?")
_GALLERY = re.compile(r"gallery:([0-9]{1,18}):([a-z_]{1,20})(?::([0-9a-z-]{1,80}))?")
_FORM = re.compile(r"form:([0-9]{1,19})")
_HELP = re.compile(r"help:([a-z]{1,20})")
_ADMIN = re.compile(r"admin:([a-z_]{1,20}):([0-9a-z]{1,40})")


class _PersistentButton(ui.DynamicItem[ui.Button[ui.LayoutView]], template=r"(?!)"):
    """A button that is known by its custom id alone."""

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Button)
        return cls(item)


class JobButton(_PersistentButton, template=r"(?s:job:.*)"):
    """A button about a job; a press is dispatched as `job_button` with the job's number and the verb."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        # Through the client: layouts know nothing of stores, and errors are reported in one place.
        found = _JOB.fullmatch(self.custom_id)
        job_id, verb = found.groups() if found else (0, "")
        interaction.client.dispatch("job_button", interaction, int(job_id), verb)


class DatasetButton(_PersistentButton, template=r"(?s:ds:.*)"):
    """A button about a dataset; a press is dispatched as `dataset_button` with number, verb, and argument."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _DATASET.fullmatch(self.custom_id)
        dataset_id, verb, arg = found.groups("") if found else (0, "", "")
        interaction.client.dispatch("dataset_button", interaction, int(dataset_id), verb, arg)


class GalleryButton(_PersistentButton, template=r"(?s:gallery:.*)"):
    """A button of the gallery; a press is dispatched as `gallery_button` with the post's number, verb, and argument."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _GALLERY.fullmatch(self.custom_id)
        post_id, verb, arg = found.groups("") if found else (0, "", "")
        interaction.client.dispatch("gallery_button", interaction, int(post_id), verb, arg)


class AdminButton(_PersistentButton, template=r"(?s:admin:.*)"):
    """A button for operators; a press is dispatched as `admin_button` with its verb and argument."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _ADMIN.fullmatch(self.custom_id)
        verb, arg = found.groups() if found else ("", "")
        interaction.client.dispatch("admin_button", interaction, verb, arg)


class FormButton(_PersistentButton, template=r"(?s:form:.*)"):
    """[Fix in form]; a press is dispatched as `form_button` with the key of the form."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _FORM.fullmatch(self.custom_id)
        interaction.client.dispatch("form_button", interaction, found[1] if found else "")


class HelpButton(_PersistentButton, template=r"(?s:help:.*)"):
    """A page of `/help`; a press is dispatched as `help_button` with the page."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _HELP.fullmatch(self.custom_id)
        interaction.client.dispatch("help_button", interaction, found[1] if found else "")


def form_button(key: int) -> FormButton:
    """Make the button that opens a refused form again."""
    style = discord.ButtonStyle.primary
    return FormButton(ui.Button(custom_id=f"form:{key}", label=_("Fix in form"), style=style))


def help_button(page: str, label: str, *, is_disabled: bool = False) -> HelpButton:
    """Make the button of a page of `/help`."""
    return HelpButton(
        ui.Button(custom_id=f"help:{page}", label=label, style=discord.ButtonStyle.secondary, disabled=is_disabled)
    )


class NotifyButton(_PersistentButton, template=r"(?s:notify:quiet)"):
    """A button of `/notify`; a press is dispatched as `notify_menu` with its verb."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        interaction.client.dispatch("notify_menu", interaction, "quiet", "")


class NotifyMenu(ui.DynamicItem[ui.Select[ui.LayoutView]], template=r"notify:at:(?P<event>[a-z_]{1,20})"):
    """A menu of `/notify`; a choice is dispatched as `notify_menu` with `event-place`."""

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Select)
        return cls(item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        event = self.custom_id.rpartition(":")[2]
        interaction.client.dispatch("notify_menu", interaction, "at", f"{event}-{''.join(self.item.values[:1])}")


class SampleMenu(ui.DynamicItem[ui.Select[ui.LayoutView]], template=r"(?s:sample:.*)"):
    """A menu of a sampling; a choice is dispatched as `sample_menu` with its number, the verb, and the choice."""

    @classmethod
    def of(cls, job_id: int, verb: str, options: list[discord.SelectOption], placeholder: str) -> Self:
        """Make the menu of a sampling."""
        return cls(ui.Select(custom_id=f"sample:{job_id}:{verb}", options=options, placeholder=placeholder))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Select)
        return cls(item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        found = _SAMPLE.fullmatch(self.custom_id)
        job_id, verb = found.groups() if found else (0, "")
        chosen = "".join(self.item.values[:1])
        interaction.client.dispatch("sample_menu", interaction, int(job_id), verb, chosen)


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
