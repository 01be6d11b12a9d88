"""Renders messages as plain text for golden files, and reads single parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discord import ui

from bot.ui.discord_text import escape
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, MessageContent, weight
from tests.bot.ui.examples import OWNER
from tests.golden import check_golden

#: Text that tries everything: mentions, Markdown, links, headings, direction marks, wide characters, length.
HOSTILE = "@everyone <@1> <@&2> <#3> **bold** [x](https://evil.example) `code` \n# big ‮ 🜲🜲🜲 " * 20
_FORBIDDEN = ("@everyone", "<@", "<#3>", "**bold**", " [x](", "\n# big")


def render(content: MessageContent, folder: Path | None = None) -> str:
    """All that a message shows and carries, one part per line; paths below `folder` are shortened."""
    lines = list(_lines(content.layout.children, ""))
    lines += [f"[file] {file.name}" for file in content.files]
    sound = "silent" if content.is_silent else "with sound"
    notified = ", ".join(map(str, content.mentions)) or "no one"
    lines.append(f"[{sound}, notifies {notified}]")
    text = "\n".join(lines)
    if folder is None:
        return text
    return text.replace(str(folder), "<folder>").replace(escape(str(folder)), "<folder>")


def _lines(items: Any, indent: str) -> Any:
    for item in items:
        match item:
            case ui.TextDisplay():
                yield from (f"{indent}{line}".rstrip() for line in item.content.splitlines())
            case ui.MediaGallery():
                yield from (f"{indent}[image {each.media.url}] {each.description}" for each in item.items)
            case ui.Section():
                yield from _lines(item.children, indent)
                if isinstance(item.accessory, ui.Thumbnail):
                    yield f"{indent}[thumbnail {item.accessory.media.url}] {item.accessory.description}"
            case ui.Container():
                color = item.accent_color
                yield f"{indent}┌ {color}"
                yield from _lines(item.children, indent + "│ ")
            case ui.ActionRow():
                yield indent + " ".join(_button(each) for each in item.children)
            case ui.File():
                yield f"{indent}[attached {item.media.url}]"
            case _:
                yield f"{indent}[{type(item).__name__}]"


def _button(item: Any) -> str:
    button = item.item if isinstance(item, ui.DynamicItem) else item
    if isinstance(button, ui.Select):
        options = " | ".join(f"[{each.label}]" if each.default else each.label for each in button.options)
        return f"({options} → {button.custom_id})"
    label = " ".join(str(part) for part in (button.emoji, button.label) if part)
    return f"({label}{' ✗' if button.disabled else ''} → {button.custom_id})"


def check_messages(path: Path, messages: Mapping[str, MessageContent | str], folder: Path | None = None) -> None:
    """Compare messages, each below its name, with a golden file."""
    sections = [
        f"== {name}\n{each if isinstance(each, str) else render(each, folder)}\n" for name, each in messages.items()
    ]
    check_golden(path, "\n".join(sections))


def text_of(content: MessageContent) -> str:
    return "\n".join(item.content for item in content.layout.walk_children() if isinstance(item, ui.TextDisplay))


def buttons(content: MessageContent) -> list[Any]:
    return [item.item for item in content.layout.walk_children() if isinstance(item, ui.DynamicItem)]


def verbs(content: MessageContent) -> list[str]:
    """The verbs of the buttons: `cancel`, `pause`."""
    return [button.custom_id.split(":")[2] for button in buttons(content)]


def ids(content: MessageContent) -> list[str]:
    return [button.custom_id for button in buttons(content)]


def alt_texts(content: MessageContent) -> list[str | None]:
    galleries = [item for item in content.layout.walk_children() if isinstance(item, ui.MediaGallery)]
    return [item.description for gallery in galleries for item in gallery.items]


def file_names(content: MessageContent) -> list[str]:
    return [file.name for file in content.files]


def check_limits(content: MessageContent) -> None:
    """Assert that Discord accepts a message, and that hostile text in it notifies no one and is not rendered."""
    parts, characters, size = weight(content.layout)
    assert (parts <= MAX_PARTS, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (True, True, True)
    assert all(len(alt or "") <= 1024 for alt in alt_texts(content))
    assert len(set(ids(content))) == len(ids(content))
    assert all(len(custom_id) <= 100 for custom_id in ids(content))
    # Discord refuses an empty label, also beside an emoji, and a button without either.
    pressed = [each for each in buttons(content) if isinstance(each, ui.Button)]
    assert all(button.label or (button.label is None and button.emoji) for button in pressed)
    rows = [item for item in content.layout.walk_children() if isinstance(item, ui.ActionRow)]
    assert all(len(row.children) <= 5 for row in rows)
    text = text_of(content).replace(f"<@{OWNER}>", "")
    for forbidden in _FORBIDDEN:
        assert forbidden not in text, (forbidden, text)
