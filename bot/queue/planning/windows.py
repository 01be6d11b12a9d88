"""Training windows: the hours of the week in which trainings may start, by the clock on somebody's wall.

Everything is computed from the moment that is asked about, so a clock that jumps mends itself at the next question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.config import AtClose, WindowSettings
from bot.errors import ConfigError
from bot.queue.domain.admission import Gate

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WINDOW = re.compile(r"(?:(?P<days>[a-z,\- ]*[a-z])\s+)?(?P<opens>\d{1,2}:\d{2})\s*-\s*(?P<closes>\d{1,2}:\d{2})")
#: How far ahead edges are looked for: a window of one day a week may be skipped once, by a change to summer time.
_AHEAD_DAYS = 15


@dataclass(frozen=True, kw_only=True)
class Window:
    """Hours on some days of the week."""

    #: Days on which it opens, 0 is Monday.
    days: frozenset[int]
    #: Minutes after midnight, 0 to 1439.
    opens: int
    #: 1 to 1440; no more than `opens`: it closes on the next day.
    closes: int

    @property
    def is_over_midnight(self) -> bool:
        return self.closes <= self.opens

    def holds(self, weekday: int, minute: int) -> bool:
        """Whether that minute of that day lies within."""
        if not self.is_over_midnight:
            return weekday in self.days and self.opens <= minute < self.closes
        yesterday = (weekday - 1) % 7
        return (weekday in self.days and minute >= self.opens) or (yesterday in self.days and minute < self.closes)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All windows of a machine; none: always open."""

    windows: tuple[Window, ...]
    zone: ZoneInfo
    at_close: AtClose = AtClose.FINISH


def parse_windows(texts: Sequence[str], *, timezone: str, at_close: AtClose = AtClose.FINISH) -> Windows:
    """The windows of `["mon-fri 20:00-08:00", "sat,sun 00:00-24:00"]`; no days: every day.

    Raises:
        ConfigError: it names everything that is not understood.
    """
    problems: list[str] = []
    windows = [_parsed(text, problems) for text in texts]
    zone = _zone(timezone, problems)
    if problems:
        raise ConfigError(path=Path("The setting windows"), problems=problems)
    return Windows(windows=tuple(window for window in windows if window), zone=zone, at_close=at_close)


def windows_of(settings: WindowSettings) -> Windows:
    """The configured windows.

    Raises:
        ConfigError: it names everything that is not understood.
    """
    return parse_windows(settings.open, timezone=settings.timezone, at_close=settings.at_close)


def gate_at(windows: Windows, now: float) -> Gate:
    """Whether trainings may start at that moment (seconds since the epoch), and whether what runs may go on."""
    if _is_open(windows, now):
        return Gate.OPEN
    return Gate.EMPTY if windows.at_close is AtClose.REQUEUE else Gate.CLOSED


def next_opening(windows: Windows, now: float) -> float | None:
    """The next moment at which a closed gate opens; None: it is open for ever."""
    return _next_edge(windows, now, opens=True)


def next_closing(windows: Windows, now: float) -> float | None:
    """The next moment at which an open gate closes; None: it is open for ever."""
    return _next_edge(windows, now, opens=False)


def _is_open(windows: Windows, now: float) -> bool:
    if not windows.windows:
        return True
    local = datetime.fromtimestamp(now, windows.zone)
    minute = local.hour * 60 + local.minute
    return any(window.holds(local.weekday(), minute) for window in windows.windows)


def _next_edge(windows: Windows, now: float, *, opens: bool) -> float | None:
    was_open = _is_open(windows, now)
    for moment in sorted({edge for edge in _edges(windows, now) if edge > now}):
        is_open = _is_open(windows, moment)
        if is_open is opens and was_open is not opens:
            return moment
        was_open = is_open
    return None


def _edges(windows: Windows, now: float) -> Iterator[float]:
    """Moments at which the answer may change: edges of windows, midnights, and changes of the clock."""
    if not windows.windows:
        return
    today = datetime.fromtimestamp(now, windows.zone).date()
    minutes = {0} | {edge for window in windows.windows for edge in (window.opens, window.closes % _DAY_MINUTES)}
    for day in range(_AHEAD_DAYS + 1):
        for minute in minutes:
            yield from moments_of(today + timedelta(days=day), time(*divmod(minute, 60)), windows.zone)
    yield from _changes(windows.zone, now)


def moments_of(day: date, clock: time, zone: ZoneInfo) -> Iterator[float]:
    """When the wall shows that time on that day: once, twice (the clock is set back), or never (it is set forward)."""
    for fold in (0, 1):
        local = datetime.combine(day, clock, zone).replace(fold=fold)
        moment = local.timestamp()
        if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) == local.replace(tzinfo=None):
            yield moment
            if local.utcoffset() == local.replace(fold=1).utcoffset():
                return


def _changes(zone: ZoneInfo, now: float) -> Iterator[float]:
    """Moments at which the clocks of a zone are changed, to the second."""
    step_s = 12 * 3600
    start = int(now)
    for early in range(start, start + _AHEAD_DAYS * 86_400, step_s):
        late = early + step_s
        before = _offset(zone, early)
        if before == _offset(zone, late):
            continue
        while late - early > 1:
            middle = (early + late) // 2
            early, late = (middle, late) if _offset(zone, middle) == before else (early, middle)
        yield float(late)


def _offset(zone: ZoneInfo, moment: int) -> timedelta | None:
    return datetime.fromtimestamp(moment, UTC).astimezone(zone).utcoffset()


def _parsed(text: str, problems: list[str]) -> Window | None:
    match = _WINDOW.fullmatch(" ".join(text.lower().split()))
    if match is None:
        problems.append(f'"{text}" is no window. Write days and hours: "mon-fri 20:00-08:00", "sat,sun 00:00-24:00".')
        return None
    known = len(problems)
    days = _days(text, match["days"], problems)
    opens, closes = (_minute(text, match[name], problems) for name in ("opens", "closes"))
    if opens == closes:
        problems.append(f'"{text}" opens and closes at the same time. The whole day is 00:00-24:00.')
    elif opens == _DAY_MINUTES:
        problems.append(f'"{text}" opens at 24:00. Write 00:00 of the next day.')
    return None if len(problems) > known else Window(days=days, opens=opens, closes=closes)


def _days(text: str, words: str | None, problems: list[str]) -> frozenset[int]:
    if words is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in words.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        unknown = [word for word in ((first, last) if dash else (first,)) if word not in _DAYS]
        if unknown:
            problems.append(f'"{text}": "{unknown[0]}" is no day. Days are {", ".join(_DAYS)}.')
            continue
        begin, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)


def _minute(text: str, clock: str, problems: list[str]) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if hours > 24 or minutes > 59 or (hours == 24 and minutes):
        problems.append(f'"{text}": {clock} is no time of day. They go from 00:00 to 24:00.')
        # Distinct from every time of day, so that nothing further is said of it.
        return -1 - len(problems)
    return hours * 60 + minutes


def _zone(name: str, problems: list[str]) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        problems.append(f'"{name}" is no time zone that this machine knows. Write one such as "Europe/Berlin".')
        return ZoneInfo("UTC")
