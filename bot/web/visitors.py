"""Who opens a page: the member that its link was made for, with the roles that they have now."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
import discord

from bot.access import Ability, Access
from bot.clock import SYSTEM_CLOCK, Clock
from bot.errors import Explained
from trainer.protocol.text import N_, _

#: A member's roles are asked for again after so long; so much later, they may be old if Discord cannot be reached.
_FRESH_S, _STALE_S = 60.0, 3600.0
_MOST = 1000
#: A member, a role, a channel.
_MENTION = re.compile(r"<(@&?|#)([0-9]{1,20})>")


class NotAMember(Explained):
    """A page's address whose member has left the server."""

    sentence = N_("This link belongs to a member who is no longer in the Discord server.")


class PagesNotReady(Explained):
    """Discord cannot be asked who opens a page."""

    sentence = N_("I cannot reach Discord at the moment, so I do not know who you are. Try again in a minute.")


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """A member of a server, as they are now."""

    user_id: int
    guild_id: int
    #: As the server calls them.
    name: str
    role_ids: frozenset[int]
    #: By Discord's permission, or by a role that manages.
    can_manage: bool


class Visitors:
    """The members behind the links; Discord is asked, and its answer kept for a minute."""

    def __init__(
        self, client: Callable[[], discord.Client | None], access: Access, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._client = client
        self._access = access
        self._clock = clock
        self._known: OrderedDict[tuple[int, int], tuple[float, Visitor]] = OrderedDict()

    async def find(self, guild_id: int, user_id: int) -> Visitor:
        """Return a member of a server.

        Raises:
            NotAMember: They have left, or the bot has.
            PagesNotReady: Discord cannot be asked.
        """
        at, known = self._known.get((guild_id, user_id), (-_STALE_S, None))
        age_s = self._clock.monotonic() - at
        if known is not None and age_s < _FRESH_S:
            return known
        try:
            visitor = await self._ask(guild_id, user_id)
        except PagesNotReady:
            if known is not None and age_s < _STALE_S:
                return known
            raise
        except NotAMember:
            self._known.pop((guild_id, user_id), None)
            raise
        self._known[guild_id, user_id] = (self._clock.monotonic(), visitor)
        self._known.move_to_end((guild_id, user_id))
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return visitor

    async def names(self, guild_id: int, user_ids: Collection[int]) -> dict[int, str]:
        """Return what a server calls members; who has left, or cannot be asked for, is missing."""
        names = {}
        for user_id in user_ids:
            with suppress(NotAMember, PagesNotReady):
                names[user_id] = (await self.find(guild_id, user_id)).name
        return names

    async def spelled(self, guild_id: int, text: str) -> str:
        """Return a text with names in place of Discord's mentions, which a page shows as numbers."""
        client = self._client()
        guild = None if client is None else client.get_guild(guild_id)
        names = {}
        for sign, number in set(_MENTION.findall(text)):
            match sign:
                case "@":
                    found = await self.names(guild_id, [int(number)])
                    names[sign, number] = found.get(int(number), _("another member"))
                case "@&":
                    role = None if guild is None else guild.get_role(int(number))
                    names[sign, number] = _("another role") if role is None else role.name
                case _other:
                    channel = None if guild is None else guild.get_channel(int(number))
                    names[sign, number] = _("another channel") if channel is None else f"#{channel.name}"
        # Nor does a page know Discord's mark of code.
        return _MENTION.sub(lambda found: names[found[1], found[2]], text).replace("`", "")

    def require(self, visitor: Visitor, ability: Ability) -> None:
        """Require that a visitor has one of the roles for this, as commands do.

        Raises:
            RoleNeeded: They have none.
        """
        if not visitor.can_manage:
            self._access.require_role(visitor.guild_id, ability, visitor.role_ids)

    async def _ask(self, guild_id: int, user_id: int) -> Visitor:
        client = self._client()
        if client is None or not client.is_ready():
            raise PagesNotReady
        guild = client.get_guild(guild_id)
        if guild is None:
            raise NotAMember
        if guild.unavailable:
            raise PagesNotReady
        try:
            # Not from the cache: without the privileged intent nothing keeps it fresh.
            member = await guild.fetch_member(user_id)
        except discord.NotFound as error:
            raise NotAMember from error
        except (discord.HTTPException, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PagesNotReady from error
        role_ids = frozenset(role.id for role in member.roles)
        can_manage = member.guild_permissions.manage_guild or self._access.is_manager(guild_id, role_ids)
        return Visitor(
            user_id=user_id, guild_id=guild_id, name=member.display_name, role_ids=role_ids, can_manage=can_manage
        )
