"""Answers for people who use a screen reader: text from top to bottom, what pictures show in words, named buttons."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from discord import ui

from bot.ui.discord_text import escape
from bot.ui.layout import MAX_ALT_TEXT, MessageContent, layout
from trainer.protocol.text import _

#: Blocks of a progress bar; the share stands beside it in words.
_BAR = re.compile("[█▓▒░]+ ?")
#: Small print, headings and quotes: a screen reader reads their signs.
_MARKS = re.compile(r"^(?:-# |#{1,3} |> )+", re.MULTILINE)


def plain_text(content: MessageContent) -> MessageContent:
    """The same message without boxes, signs and bars; a picture is its description, and stays as a file below."""
    parts: list[ui.Item[Any] | str] = []
    for part in _flat(content.layout.children):
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += f"\n{part}"
        else:
            parts.append(part)
    files = [ui.File[ui.LayoutView](file.url) for file in content.files]
    return replace(content, layout=layout(*parts, *files))


def _flat(items: list[ui.Item[Any]]) -> Iterator[ui.Item[Any] | str]:
    """Texts, descriptions of pictures, and rows of buttons, in their order."""
    for item in items:
        match item:
            case ui.TextDisplay():
                if text := _without_signs(item.content):
                    yield text
            case ui.MediaGallery():
                yield from (_picture_words(each.description) for each in item.items)
            case ui.Container():
                yield from _flat(item.children)
            case ui.Section():
                yield from _flat([*item.children, item.accessory])
            case ui.Thumbnail():
                yield _picture_words(item.description)
            case ui.Button():
                yield ui.ActionRow(_named(item))
            case ui.ActionRow():
                yield ui.ActionRow(*map(_named, item.children))
            case _:
                # Lines between parts; files are listed at the end, each once.
                pass


def _picture_words(description: str | None) -> str:
    if not description:
        return _("A picture without description.")
    return _("Picture: {description}", description=escape(description, 2 * MAX_ALT_TEXT))


def _without_signs(text: str) -> str:
    text = _BAR.sub("", _MARKS.sub("", text))
    lines = (_after_signs(line) for line in text.splitlines())
    return "\n".join(line for line in lines if line.strip())


def _after_signs(line: str) -> str:
    """A line from its first word on: the signs before it repeat what it says."""
    bare = line.lstrip(" *_")
    marks, end = line[: len(line) - len(bare)], 0
    while end < len(bare) and (unicodedata.category(bare[end]) == "So" or bare[end] in "\ufe0f\u200d "):
        end += 1
    # A line of signs alone is no repetition, nor is a sign that is counted: "👍 3".
    rest = bare[end:]
    return line if not rest or rest[0].isdigit() else marks + rest


def _named(item: ui.Item[Any]) -> ui.Item[Any]:
    """A button with a word in place of a sign alone."""
    button = item.item if isinstance(item, ui.DynamicItem) else item
    if isinstance(button, ui.Button) and button.emoji is not None:
        button.label = button.label or _button_words(str(button.emoji)) or None
        button.emoji = None if button.label else button.emoji
    return item


def _button_words(sign: str) -> str:
    words = {
        "◀️": _("Page before"),
        "▶️": _("Next page"),
        "🖼️": _("Samples"),
        "🎨": _("Try prompts"),
        "🔔": _("Follow, or stop following"),
        "🔄": _("Show again"),
        "👍": _("Like"),
    }
    return words.get(sign, "")
