"""Buttons of a dataset's card and its review: they outlive restarts, and their ids say what they are about."""

from __future__ import annotations

import re
from typing import Any, Self

import discord
from discord import ui


class DatasetButton(
    ui.DynamicItem[ui.Button[ui.LayoutView]],
    template=r"ds:(?P<dataset_id>\d{1,18}):(?P<verb>[a-z_]{1,20})(?::(?P<arg>[0-9a-z]{1,40}))?",
):
    """The bot hears a press as `dataset_button`: number of the dataset, verb, and the verb's argument or ""."""

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
        # Through the client, as with `JobButton`.
        interaction.client.dispatch("dataset_button", interaction, self.dataset_id, self.verb, self.arg)


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
    made: ui.Button[ui.LayoutView] = ui.Button(label=label or None, emoji=emoji, style=style, disabled=is_disabled)
    return DatasetButton(dataset_id, verb, str(arg), made)
