"""Helpers for the tests of datasets: an archive with defects, and presses on buttons."""

from __future__ import annotations

from typing import Any

import discord

from tests.bot.cogs.conftest import PNG, World, archive, texts

#: Six good images, one with a finding (kept), one near duplicate (dropped).
DEFECTIVE = archive(6, blur__png=PNG + b"blur", twin__png=PNG + b"twin")


def buttons(message: Any) -> dict[str, str]:
    """Map label or emoji of each enabled button of a message to its id."""
    return dict(_buttons(message.components))


def _buttons(components: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in components:
        part = part if isinstance(part, dict) else part.to_dict()
        if part.get("type") == 2 and not part.get("disabled"):
            found.append((part.get("label") or part["emoji"]["name"], part["custom_id"]))
        found += _buttons(part.get("components", []))
    return found


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


class StrayPress:
    """A press that simcord cannot make: on a button that is no longer shown, or is shown to another member."""

    def __init__(self, lab: World, user: Any = None) -> None:
        self.guild_id = lab.channel.guild.id
        self.user = user or lab.ana
        self.client = lab.env.bot
        self.permissions = discord.Permissions.none()
        self.filesize_limit = 10 * 2**20
        self.response = self
        self.followup = self
        #: The text of each reply.
        self.replies: list[str] = []
        self._is_done = False

    def is_done(self) -> bool:
        return self._is_done

    async def defer(self) -> None:
        self._is_done = True

    async def send(self, *, view: Any, **_: object) -> None:
        self.replies += texts(view.children)

    send_message = edit_message = edit_original_response = send


async def press_stray(lab: World, event: str, *arguments: Any, user: Any = None) -> str:
    """Press a button that is not shown to `user`; return the reply."""
    stray = StrayPress(lab, user)
    lab.env.bot.dispatch(event, stray, *arguments)
    await lab.until(lambda: bool(stray.replies))
    return stray.replies[0]
