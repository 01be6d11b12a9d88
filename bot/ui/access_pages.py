"""Who may do what in a server and where, and the channel of its gallery: the forms of `/admin settings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot.config import AccessSettings
from bot.ui.dataset_forms import Form, FormCallback
from trainer.protocol.text import _, listed


class AccessForm(Form):
    """Who may do what in a server, and where."""

    def __init__(self, submitted: FormCallback, rules: AccessSettings, *, is_about_drawing: bool = False) -> None:
        # A form of Discord has at most five fields.
        super().__init__(_("Who may draw here") if is_about_drawing else _("Who may do what here"), submitted)
        self._before, self._is_about_drawing = rules, is_about_drawing
        self._chosen: dict[str, ui.RoleSelect[Any] | ui.ChannelSelect[Any]] = {}
        everyone = _("Leave it empty for everyone.")
        if is_about_drawing:
            self._add_roles("sample", _("Who may draw with models"), everyone, rules.sample)
            return
        self._add_roles("train", _("Who may train"), everyone, rules.train)
        self._add_roles("share", _("Who may share results"), everyone, rules.share)
        self._add_roles("datasets", _("Who may see and add datasets"), everyone, rules.datasets)
        self._add_roles(
            "manage", _("Who else manages Darkroom"), _("Besides those who may manage the server."), rules.manage
        )
        channels: ui.ChannelSelect[Any] = ui.ChannelSelect(
            custom_id="channels",
            channel_types=[discord.ChannelType.text, discord.ChannelType.news, discord.ChannelType.forum],
            required=False,
            min_values=0,
            max_values=_MAX_CHOSEN,
            default_values=_as_defaults(rules.channels, discord.SelectDefaultValueType.channel),
        )
        self._add("channels", _("Where I work"), _("Leave it empty for all channels."), channels)

    def refilled(self) -> AccessForm:
        return AccessForm(self._submitted, self.rules, is_about_drawing=self._is_about_drawing)

    @property
    def rules(self) -> AccessSettings:
        """What was chosen."""
        chosen = {name: tuple(value.id for value in select.values) for name, select in self._chosen.items()}
        return self._before.model_copy(update=chosen)

    def _add_roles(self, name: str, label: str, description: str, role_ids: Sequence[int]) -> None:
        roles: ui.RoleSelect[Any] = ui.RoleSelect(
            custom_id=name,
            required=False,
            min_values=0,
            max_values=_MAX_CHOSEN,
            default_values=_as_defaults(role_ids, discord.SelectDefaultValueType.role),
        )
        self._add(name, label, description, roles)

    def _add(self, name: str, label: str, description: str, select: ui.RoleSelect[Any] | ui.ChannelSelect[Any]) -> None:
        self._chosen[name] = select
        self.add_item(ui.Label(text=label, description=description, component=select))


#: Roles or channels of one rule: as many as Discord lets people choose.
_MAX_CHOSEN = 25


def _as_defaults(ids: Sequence[int], kind: discord.SelectDefaultValueType) -> list[discord.SelectDefaultValue]:
    return [discord.SelectDefaultValue(id=each, type=kind) for each in ids[:_MAX_CHOSEN]]


def access_text(rules: AccessSettings) -> str:
    """What the rules of a server say."""
    everyone = _("everyone")
    lines = (
        _("**Train:** {who}", who=_roles(rules.train) or everyone),
        _("**Draw with models:** {who}", who=_roles(rules.sample) or everyone),
        _("**Share results:** {who}", who=_roles(rules.share) or everyone),
        _("**See and add datasets:** {who}", who=_roles(rules.datasets) or everyone),
        _(
            "**Manage Darkroom:** {who}",
            who=listed([*map(_role, rules.manage), _("members who may manage the server")]),
        ),
        _("**Channels:** {where}", where=listed(f"<#{each}>" for each in rules.channels) or _("all")),
        _(
            "**Gallery:** {where}",
            where=f"<#{rules.gallery}>" if rules.gallery else _("the channel where a picture is shared"),
        ),
    )
    return "\n".join((_("### Saved"), *lines))


def gallery_channel_text(channel_id: int, missing: Sequence[str]) -> str:
    """Where shared pictures are posted from now on, and what the bot needs for it."""
    if not channel_id:
        return _("Shared pictures are posted in the channel where they are shared.")
    where = _("Shared pictures are posted in <#{channel}> from now on.", channel=channel_id)
    if not missing:
        return where
    return " ".join((where, _("I still need these permissions there: {names}.", names=listed(missing))))


def _roles(role_ids: Sequence[int]) -> str:
    return listed(map(_role, role_ids))


def _role(role_id: int) -> str:
    return f"<@&{role_id}>"
