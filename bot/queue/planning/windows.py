"""Training windows: the hours of the week in which trainings may start, in the configured time zone.

Everything is computed from the moment asked about, so a clock that jumps needs no correction.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.config import AtClose, WindowSettings
from bot.errors import ConfigError
from bot.queue.store.queue_control import Admission
from trainer.protocol.text import _

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WINDOW = re.compile(r"(?:(?P<days>[a-z,\- ]*[a-z])\s+)?(?P<opens>\d{1,2}:\d{2})\s*-\s*(?P<closes>\d{1,2}:\d{2})")
#: Without an edge for so long there is none: a weekly window can be skipped once, by a change to summer time.
_HORIZON_MINUTES = 15 * _DAY_MINUTES


@dataclass(frozen=True, kw_only=True)
class Window:
    """Hours on some days of the week."""

    #: Days on which it opens, 0 is Monday.
    days: frozenset[int]
    #: Minutes after midnight, 0 to 1439.
    opens: int
    #: 1 to 1440; if not after `opens`, it closes on the next day.
    closes: int

    def contains(self, weekday: int, minute: int) -> bool:
        """Whether that minute of that day lies within the window."""
        if self.opens < self.closes:
            return weekday in self.days and self.opens <= minute < self.closes
        yesterday = (weekday - 1) % 7
        return (weekday in self.days and minute >= self.opens) or (yesterday in self.days and minute < self.closes)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All training windows; always open if there are none. Moments are seconds since the epoch."""

    windows: tuple[Window, ...]
    zone: ZoneInfo
    at_close: AtClose = AtClose.FINISH

    def admission(self, now: float) -> Admission:
        """Whether trainings may start at that moment, and whether running ones may continue."""
        if self.is_open(now):
            return Admission.ALLOW
        return Admission.DRAIN if self.at_close is AtClose.REQUEUE else Admission.HOLD

    def is_open(self, now: float) -> bool:
        """Whether that moment lies within a window."""
        if not self.windows:
            return True
        local = datetime.fromtimestamp(now, self.zone)
        minute = local.hour * 60 + local.minute
        return any(window.contains(local.weekday(), minute) for window in self.windows)

    def edges(self, now: float) -> Iterator[float]:
        """Yield the moments after `now` at which the windows open or close; end when they never do again.

        It looks at each minute: clock changes need no special case, and 15 days take about 15 ms.
        """
        if not self.windows:
            return
        was_open, quiet, minute = self.is_open(now), 0, now // 60
        while quiet < _HORIZON_MINUTES:
            minute, quiet = minute + 1, quiet + 1
            if self.is_open(minute * 60) is not was_open:
                yield minute * 60
                was_open, quiet = not was_open, 0

    def next_opening(self, now: float) -> float | None:
        """The next moment at which the windows open; None if they never do."""
        return next((moment for moment in self.edges(now) if self.is_open(moment)), None)


ALWAYS_OPEN = Windows(windows=(), zone=ZoneInfo("UTC"))


class OpenHours:
    """The hours of `windows` from a moment on; each edge is computed once, when it is needed."""

    def __init__(self, windows: Windows, since: float) -> None:
        self._at_close = windows.at_close
        self._opens_first = windows.is_open(since)
        self._source = windows.edges(since)
        self._edges: list[float] = []

    def span(self, moment: float) -> tuple[bool, float]:
        """Whether it is open at `moment`, and until when that lasts (`inf`: forever)."""
        while not self._edges or self._edges[-1] <= moment:
            self._edges.append(next(self._source, inf))
        passed = bisect_right(self._edges, moment)
        return self._opens_first is (passed % 2 == 0), self._edges[passed]

    def finish(self, start: float, seconds: float) -> float:
        """When `seconds` of training are done; only open hours count if trainings are requeued at closing time."""
        if self._at_close is AtClose.FINISH:
            return start + seconds
        moment, left = start, seconds
        while moment < inf:
            is_open, until = self.span(moment)
            if is_open and moment + left <= until:
                return moment + left
            if is_open:
                left -= until - moment
            moment = until
        return inf


def parse_windows(texts: Sequence[str], *, zone: ZoneInfo, at_close: AtClose = AtClose.FINISH) -> Windows:
    """Parse `["mon-fri 20:00-08:00", "sat,sun 00:00-24:00"]`; a window without days holds every day.

    Raises:
        ConfigError: It names everything that is not understood.
    """
    problems: list[str] = []
    windows = [_parse(text, problems) for text in texts]
    if problems:
        raise ConfigError(path=Path("The setting windows"), problems=problems)
    return Windows(windows=tuple(window for window in windows if window), zone=zone, at_close=at_close)


def windows_of(settings: WindowSettings) -> Windows:
    """Parse the configured windows.

    Raises:
        ConfigError: It names everything that is not understood.
    """
    return parse_windows(settings.open, zone=settings.zone, at_close=settings.at_close)


def _parse(text: str, problems: list[str]) -> Window | None:
    match = _WINDOW.fullmatch(" ".join(text.lower().split()))
    if match is None:
        form = '"mon-fri 20:00-08:00", "sat,sun 00:00-24:00"'
        problems.append(_('"{text}" is not a window. Write days and hours: {form}.', text=text, form=form))
        return None
    known = len(problems)
    days = _parse_days(text, match["days"], problems)
    opens, closes = (_parse_minute(text, match[name], problems) for name in ("opens", "closes"))
    if opens == closes:
        problems.append(_('"{text}" opens and closes at the same time. Write 00:00-24:00 for a whole day.', text=text))
    elif opens == _DAY_MINUTES:
        problems.append(_('"{text}" opens at 24:00. Write 00:00 of the next day.', text=text))
    return None if len(problems) > known else Window(days=days, opens=opens, closes=closes)


def _parse_days(text: str, words: str | None, problems: list[str]) -> frozenset[int]:
    if words is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in words.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        unknown = [word for word in ((first, last) if dash else (first,)) if word not in WEEKDAYS]
        if unknown:
            known = ", ".join(WEEKDAYS)
            problems.append(
                _('"{text}": "{day}" is not a day. Days are {known}.', text=text, day=unknown[0], known=known)
            )
            continue
        begin, end = WEEKDAYS.index(first), WEEKDAYS.index(last if dash else first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)


def _parse_minute(text: str, clock: str, problems: list[str]) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if hours > 24 or minutes > 59 or (hours == 24 and minutes):
        problems.append(
            _('"{text}": {clock} is not a time of day. They go from 00:00 to 24:00.', text=text, clock=clock)
        )
        # Distinct from every time of day, so that no further problem is reported for it.
        return -1 - len(problems)
    return hours * 60 + minutes
