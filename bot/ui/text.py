"""Numbers, times and strangers' words as they stand in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

_SPARKS = "▁▂▃▄▅▆▇█"
#: `<@1>`, `<#1>`, `<:emoji:1>`, `<t:1>`, `</command:1>`, `<id:customize>`: everything that Discord draws from a `<`.
_DRAWN_BY_DISCORD = re.compile(r"<(?=[@#:/at]|id:)")
#: Not `discord.utils.escape_markdown`: it leaves a `[…](…` whose end comes from the text around it.
_MARKDOWN = re.compile(r"([\\*_~`|\[\]])|^(?=[#>-])")
#: Letters that turn the reading direction of what follows.
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: A time of day that is further away than this may be taken for today's.
_WITHIN_A_DAY = timedelta(hours=12)
_ZERO_WIDTH_SPACE = "\u200b"


def shorten(text: str, limit: int) -> str:
    """`text` on one line, at most `limit` characters, ending in "…" where something was left out."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def person(user_id: int) -> str:
    """A mention; 0 is whoever has a shell on the machine."""
    return f"<@{user_id}>" if user_id else "somebody at the command line"


def plain(text: str, limit: int = 200) -> str:
    """Words of a stranger (file name, caption, prompt) so that Discord shows them as they are and calls nobody."""
    escaped = _MARKDOWN.sub(r"\\\1", shorten(_TURNING.sub("", text), limit))
    return _DRAWN_BY_DISCORD.sub(f"<{_ZERO_WIDTH_SPACE}", escaped).replace("@", f"@{_ZERO_WIDTH_SPACE}")


def bar(share: float, width: int = 16) -> str:
    """A progress bar of `width` characters; full only at 1."""
    filled = min(width, int(max(0.0, share) * width))
    return "▰" * filled + "▱" * (width - filled)


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The last `width` values as block characters, scaled between their own smallest and largest."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_SPARKS[round((value - low) / span * (len(_SPARKS) - 1))] for value in shown)


def trend(now: float, before: float | None) -> str:
    """ " ▼" where a loss fell, " ▲" where it rose, by more than half a percent; "" where nothing is known."""
    if before is None or before <= 0:
        return ""
    change = now / before - 1
    return " ▼" if change < -0.005 else " ▲" if change > 0.005 else " ▬"


def duration(seconds: float) -> str:
    """`42 s`, `4 min 51 s`, `48 min`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def rough_duration(seconds: float) -> str:
    """What is only estimated, no finer than it is known: `40 s`, `5 min`, `2 h 05 min`."""
    return duration(seconds) if seconds < 60 else duration(round(seconds / 60) * 60).removesuffix(" 00 s")


def size(count: float) -> str:
    """Bytes in the unit that a person would choose: `143 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def ago(moment: datetime) -> str:
    """A time that Discord itself keeps current: "in 5 minutes", "3 minutes ago"."""
    return f"<t:{int(moment.timestamp())}:R>"


def clock(moment: datetime) -> str:
    """A time of day in the reader's own time zone."""
    return f"<t:{int(moment.timestamp())}:t>"


def moment(when: datetime) -> str:
    """A day and a time of day in the reader's own time zone."""
    return f"<t:{int(when.timestamp())}:f>"


def point(when: datetime, now: datetime) -> str:
    """A time of day where that says which one is meant, else with its day."""
    return clock(when) if abs(when - now) < _WITHIN_A_DAY else moment(when)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `11th`."""
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def counted(number: int, noun: str) -> str:
    """`1 image`, `37 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def first_lines(lines: Sequence[str], *, most: int = 20, characters: int = 1200) -> list[str]:
    """As many lines as there is room for, and how many more there are."""
    shown: list[str] = []
    for line in lines[:most]:
        if sum(map(len, shown)) + len(line) > characters:
            break
        shown.append(line)
    rest = len(lines) - len(shown)
    return [*shown, f"… and {rest} more"] if rest else shown
