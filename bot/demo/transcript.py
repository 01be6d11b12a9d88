"""The channel as plain text, as it grows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

_TIME = re.compile(r"<t:(\d+)(?::([tTdDfFR]))?>")
#: Discord's timestamp styles other than "R", as formats of `time.strftime`; without a style it is "f".
_CLOCKS = {
    "t": "%H:%M",
    "T": "%H:%M:%S",
    "d": "%d/%m/%Y",
    "D": "%d %B %Y",
    "f": "%d %B %Y %H:%M",
    "F": "%A, %d %B %Y %H:%M",
}
_UNITS = {"days": 86_400, "h": 3_600, "min": 60, "s": 1}
_MENTION = re.compile(r"<@(\d+)>")
_ESCAPE = re.compile(r"\\([\\*_~`|\[\]#>-])")
_MARKUP = re.compile(r"^(#{1,3}|-#) |\*\*|\u200b", re.MULTILINE)


class Transcript:
    """Yields each message once, and a card again when its headline changes."""

    def __init__(self, names: dict[int, str], *, now: Callable[[], float] = time.time) -> None:
        self._names = names
        self._now = now
        #: Headlines without their timestamps, which change by themselves.
        self._headlines: dict[int, str] = {}

    def new_entries(self, messages: list[Any]) -> Iterator[str]:
        """Yield what is new in the channel since the last call."""
        for message in messages:
            text = "\n".join(texts(message.components)) or message.content
            headline = "\n".join(text.splitlines()[:2])
            timeless = _TIME.sub("", headline)
            if self._headlines.get(message.id) == timeless:
                continue
            is_edit = message.id in self._headlines
            self._headlines[message.id] = timeless
            yield self._entry(message, self.plain(headline if is_edit else text), is_edit=is_edit)

    def plain(self, text: str) -> str:
        """Convert Discord's markup to plain text."""
        text = _MENTION.sub(lambda match: "@" + self._names.get(int(match[1]), "unknown"), text)
        return _ESCAPE.sub(r"\1", _MARKUP.sub("", _TIME.sub(self._time, text)))

    def _time(self, mark: re.Match[str]) -> str:
        moment = int(mark[1])
        if mark[2] == "R":
            return relative(moment - self._now())
        return time.strftime(_CLOCKS[mark[2] or "f"], time.localtime(moment))

    def _entry(self, message: Any, text: str, *, is_edit: bool) -> str:
        author = self._names.get(message.author.id, message.author.name)
        seen = " (only you see this)" if message.flags.ephemeral else ""
        files = "" if is_edit else "".join(f"\n  [file] {attachment.filename}" for attachment in message.attachments)
        body = "\n".join(f"  {line}" for line in text.splitlines())
        return f"{author}{' (edited)' if is_edit else ''}{seen}\n{body}{files}"


def relative(seconds: float) -> str:
    """`in 2 min`, `3 h ago`, `now`: in one unit, as Discord shows it."""
    whole = abs(round(seconds))
    if not whole:
        return "now"
    amount = next(f"{round(whole / unit)} {name}" for name, unit in _UNITS.items() if whole >= unit)
    return f"in {amount}" if seconds > 0 else f"{amount} ago"


def texts(components: Any) -> Iterator[str]:
    """Yield all texts of a message, in order."""
    for component in components:
        if text := getattr(component, "content", None):
            yield text
        yield from texts(getattr(component, "children", ()))
