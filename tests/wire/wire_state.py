"""What the loopback Discord knows: servers, channels, people, messages and files; plain records, no network."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]

_DISCORD_EPOCH_MS = 1_420_070_400_000
_sequence = itertools.count(1)

#: Bits of permissions that matter to a bot which posts.
PERMISSIONS = {
    "manage_channels": 1 << 4,
    "administrator": 1 << 3,
    "manage_guild": 1 << 5,
    "view_channel": 1 << 10,
    "send_messages": 1 << 11,
    "embed_links": 1 << 14,
    "attach_files": 1 << 15,
    "read_message_history": 1 << 16,
    "use_application_commands": 1 << 31,
    "manage_threads": 1 << 34,
    "create_public_threads": 1 << 35,
    "send_messages_in_threads": 1 << 38,
}
ALL_PERMISSIONS = (1 << 53) - 1
BOT_PERMISSIONS = sum(
    PERMISSIONS[name]
    for name in (
        "view_channel", "send_messages", "embed_links", "attach_files", "read_message_history",
        "use_application_commands", "create_public_threads", "send_messages_in_threads",
    )
)  # fmt: skip

TEXT, DM, VOICE, PUBLIC_THREAD = 0, 1, 2, 11
EPHEMERAL, LOADING, COMPONENTS_V2 = 1 << 6, 1 << 7, 1 << 15


def snowflake(at: float | None = None) -> int:
    """Return a new ID; its upper bits are the time, as in Discord."""
    milliseconds = int((time.time() if at is None else at) * 1000) - _DISCORD_EPOCH_MS
    return (milliseconds << 22) | (next(_sequence) & 0x3FFFFF)


def bits(*names: str) -> int:
    """The permissions of these names."""
    return sum(PERMISSIONS[name] for name in names)


@dataclass
class WireUser:
    """A person, or the bot."""

    name: str
    id: int = field(default_factory=snowflake)
    is_bot: bool = False
    #: Without it, a message to them is refused (50007).
    accepts_dms: bool = True

    def to_json(self) -> JSON:
        return {
            "id": str(self.id), "username": self.name, "discriminator": "0", "global_name": self.name.title(),
            "avatar": None, "bot": self.is_bot, "public_flags": 0,
        }  # fmt: skip


@dataclass
class WireRole:
    """A role of a server."""

    name: str
    permissions: int
    id: int = field(default_factory=snowflake)

    def to_json(self) -> JSON:
        return {
            "id": str(self.id), "name": self.name, "permissions": str(self.permissions), "position": 0, "color": 0,
            "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
            "hoist": False, "managed": False, "mentionable": False, "flags": 0,
        }  # fmt: skip


@dataclass
class WireMember:
    """A user in a server."""

    user: WireUser
    roles: list[WireRole] = field(default_factory=list)

    def to_json(self) -> JSON:
        return {
            "user": self.user.to_json(), "nick": None, "avatar": None, "roles": [str(role.id) for role in self.roles],
            "joined_at": "2024-01-01T00:00:00+00:00", "deaf": False, "mute": False, "flags": 0, "pending": False,
        }  # fmt: skip


@dataclass
class WireFile:
    """A file of a message, or an attachment that a person hands in."""

    name: str
    content: bytes
    channel_id: int = 0
    id: int = field(default_factory=snowflake)
    content_type: str = "application/octet-stream"

    @property
    def path(self) -> str:
        return f"/attachments/{self.channel_id}/{self.id}/{self.name}"

    def to_json(self, base: str) -> JSON:
        url = f"{base}{self.path}?ex=70000000&is=60000000&hm=0123abcd&"
        return {
            "id": str(self.id), "filename": self.name, "size": len(self.content), "url": url, "proxy_url": url,
            "content_type": self.content_type,
        }  # fmt: skip


@dataclass
class WireMessage:
    """One message as it is now; `versions` are its contents since it was made, with the times of their arrival."""

    channel_id: int
    author: WireUser
    content: str = ""
    components: list[JSON] = field(default_factory=list)
    embeds: list[JSON] = field(default_factory=list)
    files: list[WireFile] = field(default_factory=list)
    flags: int = 0
    nonce: str | int | None = None
    #: Users whom it notifies.
    mentions: list[int] = field(default_factory=list)
    id: int = field(default_factory=snowflake)
    #: Wall-clock time of the request that made it.
    arrived_at: float = field(default_factory=time.time)
    edited_at: float | None = None
    #: (time, texts) of each state of the message.
    versions: list[tuple[float, str]] = field(default_factory=list)
    webhook_id: int | None = None

    @property
    def text(self) -> str:
        """All its text: content, and texts of its components in order."""
        return "\n".join(filter(None, [self.content, *texts_of(self.components)]))

    @property
    def buttons(self) -> dict[str, JSON]:
        """Its buttons by label."""
        return {each.get("label", ""): each for each in walk(self.components) if each["type"] == 2}

    @property
    def selects(self) -> list[JSON]:
        return [each for each in walk(self.components) if each["type"] in {3, 5, 6, 7, 8}]

    @property
    def file_names(self) -> list[str]:
        return [file.name for file in self.files]

    @property
    def is_ephemeral(self) -> bool:
        return bool(self.flags & EPHEMERAL)

    @property
    def is_loading(self) -> bool:
        return bool(self.flags & LOADING)

    def to_json(self, base: str) -> JSON:
        made: JSON = {
            "id": str(self.id), "channel_id": str(self.channel_id), "author": self.author.to_json(),
            "content": self.content, "components": self.components, "embeds": self.embeds,
            "attachments": [file.to_json(base) for file in self.files], "flags": self.flags,
            "timestamp": _iso(self.arrived_at), "edited_timestamp": self.edited_at and _iso(self.edited_at),
            "mentions": [], "mention_roles": [], "mention_everyone": False, "tts": False, "pinned": False, "type": 0,
        }  # fmt: skip
        if self.webhook_id is not None:
            made |= {"webhook_id": str(self.webhook_id), "application_id": str(self.webhook_id)}
        return made


@dataclass
class WireChannel:
    """A text channel, a thread, or the direct messages with one person."""

    name: str
    id: int = field(default_factory=snowflake)
    type: int = TEXT
    guild: WireGuild | None = None
    parent: WireChannel | None = None
    recipient: WireUser | None = None
    #: Of a thread: who started it; 0: the owner of the server.
    owner_id: int = 0
    #: Role or user ID → (allowed, denied).
    overwrites: dict[int, tuple[int, int]] = field(default_factory=dict)
    is_archived: bool = False
    is_locked: bool = False
    #: Everything that was posted and not deleted, oldest first; ephemeral ones too.
    messages: list[WireMessage] = field(default_factory=list)
    deleted: list[WireMessage] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The texts of the messages that everybody sees, oldest first."""
        return [message.text for message in self.messages if not message.is_ephemeral]

    def posts(self, part: str) -> list[WireMessage]:
        """The public messages that contain `part`, oldest first."""
        return [message for message in self.messages if not message.is_ephemeral and part in message.text]

    def to_json(self) -> JSON:
        if self.type == DM:
            assert self.recipient is not None
            return {
                "id": str(self.id), "type": DM, "last_message_id": None, "flags": 0,
                "recipients": [self.recipient.to_json()],
            }  # fmt: skip
        assert self.guild is not None
        made: JSON = {
            "id": str(self.id), "type": self.type, "guild_id": str(self.guild.id), "name": self.name, "flags": 0,
            "last_message_id": None, "rate_limit_per_user": 0,
        }  # fmt: skip
        if self.parent is not None:
            return made | {
                "parent_id": str(self.parent.id), "owner_id": str(self.owner_id or self.guild.owner_id),
                "message_count": 0, "member_count": 1, "total_message_sent": 0,
                "thread_metadata": {
                    "archived": self.is_archived, "locked": self.is_locked, "auto_archive_duration": 1440,
                    "archive_timestamp": _iso(time.time()), "create_timestamp": _iso(time.time()),
                },
            }  # fmt: skip
        if self.type == VOICE:
            made |= {"bitrate": 64_000, "user_limit": 0, "rtc_region": None}
        return made | {
            "position": 0, "topic": None, "nsfw": False, "parent_id": None,
            "permission_overwrites": [
                {
                    "id": str(target), "type": int(target not in self.guild.role_ids),
                    "allow": str(allow), "deny": str(deny),
                }
                for target, (allow, deny) in self.overwrites.items()
            ],
        }  # fmt: skip


@dataclass
class WireGuild:
    """A server."""

    name: str
    bot: WireMember
    id: int = field(default_factory=snowflake)
    owner_id: int = field(default_factory=snowflake)
    roles: list[WireRole] = field(default_factory=list)
    members: dict[int, WireMember] = field(default_factory=dict)
    channels: list[WireChannel] = field(default_factory=list)
    #: The bot is a member; else everything about the server is refused (50001).
    has_bot: bool = True

    @property
    def role_ids(self) -> set[int]:
        return {role.id for role in self.roles}

    @property
    def everyone(self) -> WireRole:
        return self.roles[0]

    def permissions_of(self, member: WireMember, channel: WireChannel) -> int:
        """The permissions of a member in a channel, by Discord's documented algorithm."""
        if member.user.id == self.owner_id:
            return ALL_PERMISSIONS
        base = self.everyone.permissions
        for role in member.roles:
            base |= role.permissions
        if base & PERMISSIONS["administrator"]:
            return ALL_PERMISSIONS
        overwrites = (channel.parent or channel).overwrites
        allow, deny = overwrites.get(self.everyone.id, (0, 0))
        base = base & ~deny | allow
        allow = deny = 0
        for role in member.roles:
            role_allow, role_deny = overwrites.get(role.id, (0, 0))
            allow, deny = allow | role_allow, deny | role_deny
        base = base & ~deny | allow
        allow, deny = overwrites.get(member.user.id, (0, 0))
        return base & ~deny | allow

    def to_json(self) -> JSON:
        threads = [channel for channel in self.channels if channel.parent is not None and not channel.is_archived]
        return {
            "id": str(self.id), "name": self.name, "owner_id": str(self.owner_id), "icon": None, "features": [],
            "roles": [role.to_json() for role in self.roles], "emojis": [], "stickers": [],
            "channels": [channel.to_json() for channel in self.channels if channel.parent is None],
            "threads": [thread.to_json() for thread in threads],
            "members": [self.bot.to_json()], "member_count": len(self.members) + 1, "presences": [],
            "voice_states": [], "stage_instances": [], "guild_scheduled_events": [], "soundboard_sounds": [],
            "joined_at": "2024-01-01T00:00:00+00:00", "large": False, "unavailable": False, "premium_tier": 0,
            "preferred_locale": "en-US", "verification_level": 0, "default_message_notifications": 0,
            "explicit_content_filter": 0, "mfa_level": 0, "nsfw_level": 0, "system_channel_flags": 0,
            "premium_subscription_count": 0, "afk_channel_id": None, "afk_timeout": 300, "system_channel_id": None,
            "rules_channel_id": None, "public_updates_channel_id": None, "vanity_url_code": None,
        }  # fmt: skip


def make_guild(name: str, bot: WireUser) -> WireGuild:
    """A server with its role @everyone and the bot's own role."""
    everyone = WireRole("@everyone", bits("view_channel", "send_messages", "use_application_commands"))
    role = WireRole(bot.name, BOT_PERMISSIONS)
    guild = WireGuild(name, WireMember(bot, [role]))
    everyone.id = guild.id
    guild.roles = [everyone, role]
    return guild


def walk(components: list[JSON]) -> list[JSON]:
    """All components and their children, in order."""
    found: list[JSON] = []
    for component in components:
        found.append(component)
        found += walk(component.get("components", []))
        found += walk([component[key] for key in ("accessory", "component") if isinstance(component.get(key), dict)])
    return found


def texts_of(components: list[JSON]) -> list[str]:
    """The texts of text displays, in order."""
    return [each["content"] for each in walk(components) if each["type"] == 10]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
