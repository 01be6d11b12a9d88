"""Delayed starts: parses what people write for "not before"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from bot.errors import JobRefused
from bot.queue.planning.windows import WEEKDAYS
from trainer.protocol.text import _

MAX_DELAY_DAYS = 30

_DAY_S = 86_400
_UNITS_S = {"m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": _DAY_S, "day": _DAY_S}
_AMOUNT = re.compile(r"(?P<number>\d{1,5}(?:\.\d{1,2})?)\s*(?P<unit>minute|min|m|hour|h|day|d)s?")
_CLOCK = re.compile(r"(?:(?P<day>today|tomorrow|[a-z]{3}|\d{4}-\d{2}-\d{2})[ t]\s*)?(?P<clock>\d{1,2}:\d{2})")
_EXAMPLES = "22:00, tomorrow 06:30, sat 22:00, in 2 h, in 90 min, 2026-11-25 22:00"


def parse_start(text: str, now: float, timezone: ZoneInfo) -> float:
    """Parse a start, in seconds since the epoch; a time of day is its next occurrence in that time zone.

    Raises:
        JobRefused: It is not understood, is past, does not exist, or is more than 30 days away.
    """
    words = " ".join(text.lower().split())
    moment = _after(words.removeprefix("in "), now) if words.startswith("in ") else _at(words, now, timezone)
    if moment is None:
        raise JobRefused(
            _(
                "I can't read “{text}” as a time. Try {examples}. Nothing was queued.",
                text=text,
                examples=_EXAMPLES,
            )
        )
    if moment > now + MAX_DELAY_DAYS * _DAY_S:
        raise JobRefused(
            _(
                "“{text}” is more than {days} days away. Pick an earlier time. Nothing was queued.",
                text=text,
                days=MAX_DELAY_DAYS,
            )
        )
    if moment <= now:
        raise JobRefused(
            _(
                "“{text}” is in the past. Pick a later time, or leave `start` out to start right away. Nothing was "
                "queued.",
                text=text,
            )
        )
    return moment


def _after(words: str, now: float) -> float | None:
    """Parse `2 h`, `90 min`, `1 h 30 min`."""
    amounts = list(_AMOUNT.finditer(words))
    if not amounts or _AMOUNT.sub("", words).replace("and", "").strip():
        return None
    return now + sum(float(amount["number"]) * _UNITS_S[amount["unit"]] for amount in amounts)


def _at(words: str, now: float, zone: ZoneInfo) -> float | None:
    match = _CLOCK.fullmatch(words)
    if match is None:
        return None
    try:
        hours, minutes = match["clock"].split(":")
        clock = time(int(hours), int(minutes))
        days = _days(match["day"], datetime.fromtimestamp(now, zone).date())
    except ValueError:
        # 25:00, or November 31.
        return None
    moments = [list(_moments(day, clock, zone)) for day in days]
    if days and not any(moments):
        raise JobRefused(
            _(
                "{clock} does not exist on {day} in {zone}: the clocks go forward. "
                "Pick another time. Nothing was queued.",
                clock=f"{clock:%H:%M}",
                day=days[0],
                zone=zone,
            )
        )
    known = [moment for of_day in moments for moment in of_day]
    return next((moment for moment in known if moment > now), known[-1] if known else None)


def _moments(day: date, clock: time, zone: ZoneInfo) -> Iterator[float]:
    """When the clock shows that time on that day: once, twice (the clocks go back), or never (they go forward)."""
    for fold in (0, 1):
        local = datetime.combine(day, clock, zone).replace(fold=fold)
        moment = local.timestamp()
        if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) == local.replace(tzinfo=None):
            yield moment
            if local.utcoffset() == local.replace(fold=1).utcoffset():
                return


def _days(word: str | None, today: date) -> list[date]:
    """The days that may be meant; the first whose time is not past counts."""
    match word:
        case None:
            return [today, today + timedelta(days=1)]
        case "today":
            return [today]
        case "tomorrow":
            return [today + timedelta(days=1)]
        case name if name in WEEKDAYS:
            next_one = today + timedelta(days=(WEEKDAYS.index(name) - today.weekday()) % 7)
            return [next_one, next_one + timedelta(days=7)]
        case _:
            return [date.fromisoformat(word)]
