"""Discord's own text: escaping, mentions, timestamps and bars; and the permissions that the bot needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import discord

from bot.outbox.transport import HoldReason
from trainer.protocol.text import _, ngettext

#: `<@1>`, `<#1>`, `<:emoji:1>`, `<t:1>`, `</command:1>`, `<id:customize>`: everything that Discord renders from a `<`.
_RENDERED_BY_DISCORD = re.compile(r"<(?=[@#:/at]|id:)")
#: Not `discord.utils.escape_markdown`: it leaves a `[…](…` whose end comes from the surrounding text.
_MARKDOWN = re.compile(r"([\\*_~`|\[\]])|^(?=[#>-])")
#: Characters without a shape of their own: controls (not white space), marks that turn the reading direction, spaces of
#: no width, halves of surrogate pairs. The joiner U+200D stays: emojis are made with it.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)
#: Places in an address where Discord no longer recognizes it once a space of no width is put there.
_IN_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=\bdiscord)(?=\.gg/|\.com/|app\.com/)", re.IGNORECASE)
#: A time of day that is further away than this could be taken for today's.
_WITHIN_A_DAY = timedelta(hours=12)
ZERO_WIDTH_SPACE = "\u200b"

NEEDED_PERMISSIONS = discord.Permissions(
    view_channel=True,
    send_messages=True,
    create_public_threads=True,
    send_messages_in_threads=True,
    attach_files=True,
    embed_links=True,
    read_message_history=True,
)


def shorten(text: str, limit: int) -> str:
    """Put text on one line of at most `limit` characters, ending in "…" where something was left out."""
    # Of a text of megabytes, only what can be shown is looked at.
    line = " ".join(text[: 10 * limit].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def escape(text: str, limit: int = 200) -> str:
    """Escape untrusted text (file names, captions, prompts): Discord shows it as it is, without links or mentions."""
    escaped = _MARKDOWN.sub(r"\\\1", shorten(_INVISIBLE.sub("", text[: 10 * limit]), limit))
    escaped = _RENDERED_BY_DISCORD.sub(f"<{ZERO_WIDTH_SPACE}", escaped).replace("@", f"@{ZERO_WIDTH_SPACE}")
    return _IN_ADDRESS.sub(ZERO_WIDTH_SPACE, escaped)


def inline_code(text: str) -> str:
    """Text in the font of code, also if it has a backtick in it."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def mention(user_id: int) -> str:
    """Mention a user; 0 stands for the command line of the machine."""
    return f"<@{user_id}>" if user_id else _("an operator at the command line")


def progress_bar(share: float, width: int = 12) -> str:
    """A progress bar of `width` blocks: one from the start on, all only at 1."""
    filled = min(width, max(int(share * width), 1 if share > 0 else 0))
    return "█" * filled + "░" * (width - filled)


def relative_time(moment: datetime) -> str:
    """A time that Discord keeps current: "in 5 minutes", "3 minutes ago"."""
    return f"<t:{int(moment.timestamp())}:R>"


def clock_time(moment: datetime) -> str:
    """A time of day in the reader's own time zone."""
    return f"<t:{int(moment.timestamp())}:t>"


def date_time(moment: datetime) -> str:
    """A date and a time of day in the reader's own time zone."""
    return f"<t:{int(moment.timestamp())}:f>"


def time_or_date(moment: datetime, now: datetime) -> str:
    """Only the time if it is within half a day of now, else date and time."""
    return clock_time(moment) if abs(moment - now) < _WITHIN_A_DAY else date_time(moment)


def first_lines(lines: Sequence[str], *, most: int = 20, characters: int = 1200, total: int | None = None) -> list[str]:
    """As many lines as there is room for, and the number of the rest; `total`: there are more than `lines`."""
    shown: list[str] = []
    for line in lines[:most]:
        if sum(map(len, shown)) + len(line) > characters:
            break
        shown.append(line)
    rest = (len(lines) if total is None else total) - len(shown)
    return [*shown, ngettext("… and {n} more", "… and {n} more", rest)] if rest else shown


def permission_names(names: Iterable[str]) -> list[str]:
    """Permissions in Discord's words: `manage_guild` is "Manage Server" there."""
    return [name.replace("guild", "server").replace("_", " ").title() for name in names]


def hold_words(reason: HoldReason) -> str:
    """Why a channel takes no messages for now."""
    match reason:
        case HoldReason.NO_ACCESS:
            return _("I may not see the channel")
        case HoldReason.NO_PERMISSION:
            return _("I may not write or attach files there")
        case HoldReason.ARCHIVED:
            return _("the thread is archived")
        case HoldReason.LOCKED:
            return _("the thread is locked")


def missing_permissions(granted: discord.Permissions) -> list[str]:
    """The permissions that the bot needs and lacks, in Discord's words."""
    if granted.administrator:
        return []
    return permission_names(name for name, is_needed in NEEDED_PERMISSIONS if is_needed and not getattr(granted, name))


def invite_url(application_id: int) -> str:
    """The address where a server's owner invites the bot with all permissions that it needs."""
    scopes = ("bot", "applications.commands")
    return discord.utils.oauth_url(application_id, permissions=NEEDED_PERMISSIONS, scopes=scopes)
