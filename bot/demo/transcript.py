"""The channel in plain text, as it grows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TIME = re.compile(r"<t:(\d+):\w>")
_MENTION = re.compile(r"<@(\d+)>")
_ESCAPE = re.compile(r"\\([\\*_~`|\[\]#>-])")
_MARKUP = re.compile(r"^(#{1,3}|-#) |\*\*|\u200b", re.MULTILINE)


class Transcript:
    """Remembers what it has told, so that each message is told once and a card when its headline changes."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._told: dict[int, str] = {}

    def news(self, messages: list[Any]) -> Iterator[str]:
        """What is new in the channel since the last time."""
        for message in messages:
            text = self.plain("\n".join(texts(message.components)) or message.content)
            headline = "\n".join(text.splitlines()[:2])
            if self._told.get(message.id) == headline:
                continue
            is_edit = message.id in self._told
            self._told[message.id] = headline
            yield self._entry(message, headline if is_edit else text, is_edit=is_edit)

    def plain(self, text: str) -> str:
        """Discord's markup as plain text."""
        text = _MENTION.sub(lambda match: "@" + self._names.get(int(match[1]), "somebody"), text)
        return _ESCAPE.sub(r"\1", _MARKUP.sub("", _TIME.sub("soon", text)))

    def _entry(self, message: Any, text: str, *, is_edit: bool) -> str:
        author = self._names.get(message.author.id, message.author.name)
        seen = " (only you see this)" if message.flags.ephemeral else ""
        files = "" if is_edit else "".join(f"\n  [file] {attachment.filename}" for attachment in message.attachments)
        body = "\n".join(f"  {line}" for line in text.splitlines())
        return f"{author}{' (edited)' if is_edit else ''}{seen}\n{body}{files}"


def texts(components: Any) -> Iterator[str]:
    """All texts of a message, in order."""
    for component in components:
        if text := getattr(component, "content", None):
            yield text
        yield from texts(getattr(component, "children", ()))
