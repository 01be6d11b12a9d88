"""Delayed starts: what people write for "not before", as a moment."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from bot.errors import JobRefused
from bot.queue.planning.windows import moments_of

MAX_DELAY_DAYS = 30

_DAY_S = 86_400
_UNITS_S = {"m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": _DAY_S, "day": _DAY_S}
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AMOUNT = re.compile(r"(?P<number>\d{1,5}(?:\.\d{1,2})?)\s*(?P<unit>minute|min|m|hour|h|day|d)s?")
_CLOCK = re.compile(r"(?:(?P<day>today|tomorrow|[a-z]{3}|\d{4}-\d{2}-\d{2})[ t]\s*)?(?P<clock>\d{1,2}:\d{2})")
_EXAMPLES = "Write 22:00, tomorrow 06:30, sat 22:00, in 2 h, in 90 min, or 2026-11-25 22:00."


def parse_start(text: str, now: float, timezone: ZoneInfo) -> float:
    """The moment that `text` means, seconds since the epoch; a time of day is the next one of that time zone.

    Raises:
        JobRefused: it is not understood, is over, does not exist, or is more than 30 days away.
    """
    words = " ".join(text.lower().split())
    moment = _after(words.removeprefix("in "), now) if words.startswith("in ") else _at(words, now, timezone)
    if moment is None:
        raise JobRefused(f'"{text}" is no time that I understand. {_EXAMPLES} Nothing was queued.')
    if moment > now + MAX_DELAY_DAYS * _DAY_S:
        raise JobRefused(
            f'"{text}" is more than {MAX_DELAY_DAYS} days away. Nothing was queued; choose an earlier time.'
        )
    if moment <= now:
        raise JobRefused(f'"{text}" is over. Nothing was queued; choose a later time, or none to start at once.')
    return moment


def _after(words: str, now: float) -> float | None:
    """`2 h`, `90 min`, `1 h 30 min`."""
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
        # 25:00, or the 31st of November.
        return None
    moments = [list(moments_of(day, clock, zone)) for day in days]
    if days and not any(moments):
        raise JobRefused(
            f"There is no {clock:%H:%M} on {days[0]} in {zone}: the clocks are set forward. "
            "Nothing was queued; choose another time."
        )
    known = [moment for of_day in moments for moment in of_day]
    return next((moment for moment in known if moment > now), known[-1] if known else None)


def _days(word: str | None, today: date) -> list[date]:
    """Days that are meant, the first whose time is not over counts."""
    match word:
        case None:
            return [today, today + timedelta(days=1)]
        case "today":
            return [today]
        case "tomorrow":
            return [today + timedelta(days=1)]
        case _ if word in _WEEKDAYS:
            next_one = today + timedelta(days=(_WEEKDAYS.index(word) - today.weekday()) % 7)
            return [next_one, next_one + timedelta(days=7)]
        case _:
            return [date.fromisoformat(word)]
