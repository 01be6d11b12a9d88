"""The bot's one clock, and the back-off between two tries."""

from __future__ import annotations

import random
import time as system_time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Wall-clock time for what is stored and shown, monotonic time for what is measured. Tests pass their own."""

    time: Callable[[], float] = system_time.time
    monotonic: Callable[[], float] = system_time.monotonic

    def now(self) -> datetime:
        """The current moment, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)


SYSTEM_CLOCK = Clock()


def backoff_s(tries: int, first_s: float, most_s: float) -> float:
    """Return the exponential back-off after `tries` failures: `first_s`, twice that, four times …, at most `most_s`."""
    # No power of two beyond what fits into a float.
    return min(first_s * 2.0 ** min(max(0, tries - 1), 64), most_s)


def jittered(pause_s: float) -> float:
    """Return half to all of a pause, so that what failed together is not tried again together."""
    return pause_s * random.uniform(0.5, 1.0)
