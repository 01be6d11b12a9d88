"""Who may do what in a server, and in which channels: by roles, as its managers set it or the configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import discord

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import AccessSettings
from bot.db import Database
from bot.db.audit import write_entry
from bot.db.database import put_setting
from bot.errors import ChannelNotAllowed, NotAllowed, RoleNeeded

_SETTING = "access:"
#: In an interaction's `extras`: whether its member manages the server.
_MANAGES = "manages"


class Ability(StrEnum):
    """What the roles of a member allow; a field of `AccessSettings` each."""

    TRAIN = "train"
    SAMPLE = "sample"
    SHARE = "share"
    DATASETS = "datasets"
    MANAGE = "manage"


class Access:
    """The rules of each server; kept in the database and, since each interaction is checked, in memory."""

    def __init__(self, db: Database, configured: AccessSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._configured = configured
        self._clock = clock
        self._rules: dict[int, AccessSettings] = {}

    async def load(self) -> None:
        """Read what is stored; before the first use."""
        rows = await self._db.all("SELECT name, value FROM setting WHERE name LIKE ?", (f"{_SETTING}%",))
        self._rules = {
            int(str(row["name"]).removeprefix(_SETTING)): AccessSettings.model_validate_json(row["value"])
            for row in rows
        }

    def rules_of(self, guild_id: int) -> AccessSettings:
        """The rules of a server: its own, else the configured ones."""
        return self._rules.get(guild_id, self._configured)

    async def set_rules(self, guild_id: int, rules: AccessSettings, *, by: int) -> None:
        """Replace the rules of a server."""
        before = self.rules_of(guild_id).model_dump_json(exclude_defaults=True)
        after = rules.model_dump_json(exclude_defaults=True)
        async with self._db.transaction() as connection:
            await put_setting(connection, f"{_SETTING}{guild_id}", rules.model_dump_json())
            await write_entry(
                connection,
                at=self._clock.time(),
                verb="access",
                guild_id=guild_id,
                by=by,
                before=before,
                after=after,
            )
        self._rules[guild_id] = rules

    def note(self, interaction: discord.Interaction) -> None:
        """Store with an interaction whether its member manages the server; for `manages`."""
        has_role = self.is_manager(interaction.guild_id or 0, _role_ids(interaction))
        interaction.extras[_MANAGES] = interaction.permissions.manage_guild or has_role

    def require(self, interaction: discord.Interaction, ability: Ability | None) -> None:
        """Require that the member may do this, in this channel; a manager may do everything everywhere.

        Args:
            interaction: Of a server; `note` has seen it.
            ability: What it needs; None: only a channel in which the bot works.

        Raises:
            RoleNeeded: The member has none of the roles.
            ChannelNotAllowed: The bot does not work in this channel.
        """
        if manages(interaction):
            return
        rules = self.rules_of(interaction.guild_id or 0)
        if rules.channels and not _channel_ids(interaction) & set(rules.channels):
            raise ChannelNotAllowed(channel_ids=rules.channels)
        if ability is not None:
            self.require_role(interaction.guild_id or 0, ability, _role_ids(interaction))

    def require_role(self, guild_id: int, ability: Ability, role_ids: Collection[int]) -> None:
        """Require one of the roles that an ability needs; for a member who does not manage the server.

        Raises:
            RoleNeeded: The member has none of them.
        """
        roles = roles_of(self.rules_of(guild_id), ability)
        if roles and set(roles).isdisjoint(role_ids):
            raise RoleNeeded(role_ids=roles)

    def is_manager(self, guild_id: int, role_ids: Collection[int]) -> bool:
        """Whether a member with these roles manages the server, also without Discord's permission."""
        return not set(self.rules_of(guild_id).manage).isdisjoint(role_ids)

    def allows(self, interaction: discord.Interaction, ability: Ability | None) -> bool:
        """Whether `require` would raise nothing; for choices, which are left out without a word."""
        try:
            self.require(interaction, ability)
        except NotAllowed:
            return False
        return True


def manages(interaction: discord.Interaction) -> bool:
    """Whether the member who acts manages the server: by its permission, or by a role that it has for this."""
    return bool(interaction.extras.get(_MANAGES, interaction.permissions.manage_guild))


def server_of(interaction: discord.Interaction) -> int:
    """The server of an interaction; the gate refuses those of private messages."""
    assert interaction.guild_id is not None
    return interaction.guild_id


def roles_of(rules: AccessSettings, ability: Ability) -> tuple[int, ...]:
    """The roles with an ability; none: everyone (to manage: those with Discord's permission)."""
    roles: Mapping[Ability, tuple[int, ...]] = {
        Ability.TRAIN: rules.train,
        Ability.SAMPLE: rules.sample,
        Ability.SHARE: rules.share,
        Ability.DATASETS: rules.datasets,
        Ability.MANAGE: rules.manage,
    }
    return roles[ability]


def _role_ids(interaction: discord.Interaction) -> set[int]:
    return {role.id for role in getattr(interaction.user, "roles", ())}


def _channel_ids(interaction: discord.Interaction) -> set[int]:
    """The channel, and for a thread the channel that it belongs to."""
    parent_id = getattr(interaction.channel, "parent_id", None)
    return {each for each in (interaction.channel_id, parent_id) if each is not None}
