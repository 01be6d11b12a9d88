"""Helpers for the tests of datasets: an archive with defects, and presses on buttons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import discord

from tests.bot.cogs.conftest import PNG, World, answer, archive

#: Six good images, one with a finding (kept), one near duplicate (dropped).
DEFECTIVE = archive(6, blur__png=PNG + b"blur", twin__png=PNG + b"twin")


def buttons(message: Any) -> dict[str, str]:
    """Map label or emoji of each enabled button of a message to its id; links have none."""
    return {
        part.get("label") or part["emoji"]["name"]: part["custom_id"]
        for part in _parts(message.components)
        if part.get("type") == 2 and not part.get("disabled") and "custom_id" in part
    }


def menus(message: Any) -> list[str]:
    """The ids of a message's menus."""
    return [part["custom_id"] for part in _parts(message.components) if part.get("type") == 3]


def _parts(components: Any) -> Iterator[dict[str, Any]]:
    for component in components:
        part = component if isinstance(component, dict) else component.to_dict()
        yield part
        yield from _parts(part.get("components", []))


async def press(actor: Any, message: Any, label: str) -> Any:
    """Press the button whose label begins with `label`, and return the result."""
    found = [custom_id for name, custom_id in buttons(message).items() if name.startswith(label)]
    assert found, f"no button {label!r} among {list(buttons(message))}"
    return await actor.click(message, custom_id=found[0])


async def upload_dataset(lab: World, file: tuple[str, bytes] = DEFECTIVE) -> Any:
    """Upload a dataset as Ana, through the form; return its report card."""
    shown = await lab.ana.slash(lab.channel, "dataset upload")
    result = await lab.ana.submit_modal(shown, {"files": [file]})
    return result.response.message


def shown_again(lab: World, message: Any) -> Any:
    """An ephemeral message in its current state."""
    return next(each for each in lab.channel.history(viewer=lab.ana) if each.id == message.id)


async def press_forged(lab: World, custom_id: str, user: Any = None, channel: Any = None) -> str:
    """Press a button that the bot has not shown to `user` (Ana), on a message that has its id; return the answer."""
    view = discord.ui.LayoutView()
    button: Any = discord.ui.Button(custom_id=custom_id, label="forged")
    view.add_item(discord.ui.ActionRow(button))
    shown_in = lab.env.bot.get_channel((channel or lab.channel).id)
    message = await shown_in.send(view=view)
    # As if an earlier bot had sent it; and hundreds of views that wait make each press slow.
    view.stop()
    result = await (user or lab.ana).click(message, custom_id=custom_id)
    if result.response is None or result.response.id != message.id:
        await message.delete()
    return str(result.modal["title"]) if result.modal else answer(result)
