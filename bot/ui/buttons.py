"""Buttons that outlive restarts: their custom id names the verb and what it is about."""

from __future__ import annotations

import re
from typing import Any, Self

import discord
from discord import ui


class JobButton(ui.DynamicItem[ui.Button[ui.LayoutView]], template=r"job:(?P<job_id>\d{1,18}):(?P<verb>[a-z_]{1,20})"):
    """A button about a job; a press is dispatched as `job_button` with the job's number and the verb."""

    def __init__(self, job_id: int, verb: str, button: ui.Button[ui.LayoutView]) -> None:
        button.custom_id = f"job:{job_id}:{verb}"
        super().__init__(button)
        self.job_id = job_id
        self.verb = verb

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Button)
        return cls(int(match["job_id"]), match["verb"], item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        # Through the client: layouts know nothing of stores, and errors are reported in one place.
        interaction.client.dispatch("job_button", interaction, self.job_id, self.verb)


class DatasetButton(
    ui.DynamicItem[ui.Button[ui.LayoutView]],
    template=r"ds:(?P<dataset_id>\d{1,18}):(?P<verb>[a-z_]{1,20})(?::(?P<arg>[0-9a-z]{1,40}))?",
):
    """A button about a dataset; a press is dispatched as `dataset_button` with number, verb, and argument."""

    def __init__(self, dataset_id: int, verb: str, arg: str, button: ui.Button[ui.LayoutView]) -> None:
        button.custom_id = f"ds:{dataset_id}:{verb}" + (f":{arg}" if arg else "")
        super().__init__(button)
        self.dataset_id = dataset_id
        self.verb = verb
        self.arg = arg

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Button)
        return cls(int(match["dataset_id"]), match["verb"], match["arg"] or "", item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        interaction.client.dispatch("dataset_button", interaction, self.dataset_id, self.verb, self.arg)


class AdminButton(
    ui.DynamicItem[ui.Button[ui.LayoutView]], template=r"admin:(?P<verb>[a-z_]{1,20}):(?P<arg>[0-9a-z]{1,40})"
):
    """A button for operators; a press is dispatched as `admin_button` with its verb and argument."""

    def __init__(self, verb: str, arg: str, button: ui.Button[ui.LayoutView]) -> None:
        button.custom_id = f"admin:{verb}:{arg}"
        super().__init__(button)
        self.verb = verb
        self.arg = arg

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Button)
        return cls(match["verb"], match["arg"], item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        interaction.client.dispatch("admin_button", interaction, self.verb, self.arg)


def job_button(
    job_id: int,
    verb: str,
    label: str,
    *,
    emoji: str | None = None,
    style: discord.ButtonStyle = discord.ButtonStyle.secondary,
) -> JobButton:
    """Make a button about a job."""
    return JobButton(job_id, verb, ui.Button(label=label, emoji=emoji, style=style))


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
    button: ui.Button[ui.LayoutView] = ui.Button(label=label or None, emoji=emoji, style=style, disabled=is_disabled)
    return DatasetButton(dataset_id, verb, str(arg), button)
