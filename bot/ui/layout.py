"""A message that is ready to be sent, and the parts of its layout (Components V2, within Discord's limits)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import discord
from discord import ui

from bot.ui.discord_text import mention, shorten
from trainer.exchange.files import FileInFolder

#: Discord refuses more than 40 parts and 4,000 characters, and answers 500 above ~10,170 bytes (discord-api-docs#8554).
MAX_PARTS, MAX_CHARACTERS, MAX_BYTES = 40, 3_500, 9_000
MAX_ALT_TEXT = 900
#: Discord's limits for one message: files, and bytes of the whole request (25 MiB, with room for the form).
MAX_FILES, MAX_REQUEST_BYTES = 10, 24 * 1024 * 1024
#: Characters of a message without a layout: Discord's 2,000, with room for the reference that it is found by.
MAX_TEXT = 1_960
#: Texts of up to this many characters are never shortened to make a layout fit.
_MIN_TEXT = 40


class Color(IntEnum):
    """Accent colors; a state differs by word and sign too, never by color alone."""

    WAITING = 0x80848E
    #: It loads, tests or exports.
    WORKING = 0x3B82F6
    TRAINING = 0x23A55A
    STOPPING = 0xE67E22
    DONE = 0x2ECC71
    FAILED = 0xDA373C
    #: A person should look at this.
    NOTE = 0xF0B232


@dataclass(frozen=True, kw_only=True)
class FileToSend(FileInFolder):
    """A local file, and its name in the message."""

    name: str

    @property
    def url(self) -> str:
        return f"attachment://{self.name}"

    @property
    def public_path(self) -> str:
        return public_path(self.folder, self.path)


def public_path(folder: Path, path: str) -> str:
    """Return where a file of a job lies below the data folder: members need not know where that one is."""
    return f"{folder.parent.name}/{folder.name}/{path}"


@dataclass(frozen=True, kw_only=True)
class MessageContent:
    """One message: its layout, its files, and who may be notified."""

    layout: ui.LayoutView
    files: tuple[FileToSend, ...] = ()
    #: The only users that this message may notify.
    mentions: tuple[int, ...] = ()
    #: No sound and no badge: for routine posts.
    is_silent: bool = False
    #: Sent instead of the layout, where Discord refuses that.
    text: str = ""

    @property
    def allowed_mentions(self) -> discord.AllowedMentions:
        if not self.mentions:
            return discord.AllowedMentions.none()
        users = [discord.Object(user_id) for user_id in self.mentions]
        return discord.AllowedMentions(everyone=False, roles=False, replied_user=False, users=users)


def text_message(text: str) -> MessageContent:
    """A message of one text and nothing else."""
    return MessageContent(layout=layout(text))


def text_form(content: MessageContent, hint: str = "") -> MessageContent:
    """The same message without layout and files: its texts, shortened to what Discord accepts.

    Args:
        content: The message that Discord refuses.
        hint: The last line: how to see what is left out.
    """
    body = "\n".join(item.content for item in content.layout.walk_children() if isinstance(item, ui.TextDisplay))
    room = MAX_TEXT - len(hint) - 2
    text = f"{body[:room]}{'…' if len(body) > room else ''}\n{hint}".strip()
    return MessageContent(layout=layout(text), mentions=content.mentions, is_silent=content.is_silent, text=text)


def stacked(contents: Sequence[MessageContent]) -> MessageContent:
    """Several messages as one, the last one last; it notifies no one."""
    parts = [item for content in contents for item in content.layout.children]
    files = tuple(file for content in contents for file in content.files)
    return MessageContent(layout=layout(*parts), files=files, is_silent=True)


def mentioning(content: MessageContent, user_ids: tuple[int, ...], *, is_quiet: bool) -> MessageContent:
    """The same message, with a sound for these users and no others; `is_quiet`: it only waits for them to look."""
    texts = [item.content for item in content.layout.walk_children() if isinstance(item, ui.TextDisplay)]
    unnamed = [mention(user_id) for user_id in user_ids if not any(mention(user_id) in text for text in texts)]
    content = with_line(content, f"-# {' '.join(unnamed)}") if unnamed else content
    return replace(content, mentions=user_ids, is_silent=is_quiet or not user_ids)


def with_line(content: MessageContent, line: str) -> MessageContent:
    """The same message with one more text below it."""
    return replace(content, layout=layout(*content.layout.children, line))


def without_pictures(content: MessageContent, line: str) -> MessageContent:
    """The same message without its images and files, and with one more text below it."""
    if not content.files:
        return content
    for item in list(content.layout.walk_children()):
        if isinstance(item, ui.MediaGallery | ui.File):
            _remove(content.layout, item)
    return replace(with_line(content, line), files=())


def _remove(parent: Any, item: ui.Item[Any]) -> None:
    """Remove an item of a layout, wherever it is in it."""
    for child in list(parent.children):
        if child is item:
            parent.remove_item(item)
        elif hasattr(child, "children"):
            _remove(child, item)


def image_gallery(file: FileToSend, alt_text: str) -> ui.MediaGallery[Any]:
    """An image that the message carries, with its alternative text."""
    return images_gallery([(file, alt_text)])


def images_gallery(images: Iterable[tuple[FileToSend, str]]) -> ui.MediaGallery[Any]:
    """At most `MAX_FILES` images that the message carries, with their alternative texts."""
    return ui.MediaGallery(
        *(discord.MediaGalleryItem(file.url, description=shorten(text, MAX_ALT_TEXT)) for file, text in images)
    )


def row(*buttons: ui.Item[Any]) -> ui.ActionRow[Any]:
    """A row of buttons."""
    return ui.ActionRow(*buttons)


def rows(buttons: Sequence[ui.Item[Any]]) -> list[ui.ActionRow[Any]]:
    """Rows of at most four buttons, which fit beside each other."""
    return [row(*buttons[start : start + 4]) for start in range(0, len(buttons), 4)]


def box(color: Color, *parts: ui.Item[Any] | str | None) -> ui.Container[Any]:
    """A bordered message body; strings become text, None is left out."""
    return ui.Container(*_items(parts), accent_color=discord.Color(color))


def layout(*parts: ui.Item[Any] | str | None) -> ui.LayoutView:
    """The whole message, shortened until it is within Discord's limits."""
    view = ui.LayoutView(timeout=None)
    for item in _items(parts):
        view.add_item(item)
    _fit(view)
    # Its buttons and menus are found by their ids; a view that waits would cost a task for 15 minutes after an answer.
    view.stop()
    return view


def _items(parts: Iterable[ui.Item[Any] | str | None]) -> list[ui.Item[Any]]:
    return [ui.TextDisplay(part) if isinstance(part, str) else part for part in parts if part]


def weight(view: ui.LayoutView) -> tuple[int, int, int]:
    """Return (parts, characters, bytes) of a layout, as Discord counts them."""
    components = view.to_components()  # type: ignore[no-untyped-call]
    wire = json.dumps(components, ensure_ascii=False)
    return sum(1 for _item in view.walk_children()), view.content_length(), len(wire.encode())


def _fit(view: ui.LayoutView) -> None:
    """Shorten the longest text, then alternative texts, until the layout may be sent."""
    texts = [item for item in view.walk_children() if isinstance(item, ui.TextDisplay)]
    galleries = [item for item in view.walk_children() if isinstance(item, ui.MediaGallery)]
    for _attempt in range(200):
        parts, characters, size = weight(view)
        assert parts <= MAX_PARTS, f"a layout of {parts} parts"
        if characters <= MAX_CHARACTERS and size <= MAX_BYTES:
            return
        longest = max(texts, key=lambda item: len(item.content), default=None)
        if longest is not None and len(longest.content) > _MIN_TEXT:
            longest.content = longest.content[: len(longest.content) * 3 // 4].rstrip("\\ ") + "…"
        else:
            for gallery in galleries:
                gallery.items = [_with_shorter_alt(item) for item in gallery.items]


def _with_shorter_alt(item: discord.MediaGalleryItem) -> discord.MediaGalleryItem:
    alt = item.description or ""
    return discord.MediaGalleryItem(item.media, description=alt[: len(alt) * 3 // 4] or None)


def sendable(files: Sequence[FileToSend], limit_bytes: int) -> tuple[FileToSend, ...]:
    """Return the files that fit into one message: each within the server's limit, all within a request's."""
    kept: list[FileToSend] = []
    room = MAX_REQUEST_BYTES
    for file in files:
        try:
            size = file.locate().stat().st_size
        except FileNotFoundError:
            continue
        if size <= min(limit_bytes, room) and len(kept) < MAX_FILES:
            kept.append(file)
            room -= size
    return tuple(kept)
