"""How long processes have given no sign of life, or said no word, by a clock that nobody can set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bot.config import QueueSettings
from bot.queue.store.job_rows import Busy

#: Longest time between two looks that counts: a bot that slept itself (SIGSTOP, a closed laptop) has seen nothing.
MAX_LOOK_S = 10.0
#: A process that has given no sign of life yet gets so many times as long as one that gave some.
_PATIENCE_BEFORE_FIRST_BEAT = 6
#: As a process that loads its model, from a hub perhaps, over one that works.
_PATIENCE_WHILE_LOADING = 4


class Sign(StrEnum):
    """What a process that is well changes again and again."""

    #: Its heartbeat: a thread of its own gives it.
    BEAT = "beat"
    #: The end of its events: only work that goes on moves it.
    WORD = "word"


@dataclass(kw_only=True)
class _Watched:
    value: float
    looked_at: float
    still_s: float = 0.0


class Pulse:
    """Sums up the time over which a sign did not change, look by look.

    Signs are only compared with each other, never with the time of day: a clock that jumps kills nothing.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._watched: dict[tuple[int, int, Sign], _Watched] = {}

    def still_s(self, busy: Busy, sign: Sign, value: float) -> float:
        """Seconds for which we have watched this very value."""
        now, key = self._monotonic(), (busy.job_id, busy.attempt, sign)
        known = self._watched.get(key)
        if known is None or known.value != value:
            self._watched[key] = _Watched(value=value, looked_at=now)
            return 0.0
        known.still_s += min(now - known.looked_at, MAX_LOOK_S)
        known.looked_at = now
        return known.still_s

    def why_kill(self, busy: Busy, settings: QueueSettings, *, beat: float | None, end: int) -> str | None:
        """Why a process should be killed that runs and is to go on, None if it should not.

        `beat` is its last sign of life, None while there was none; `end` the byte up to which it has spoken.
        """
        beat_limit_s = settings.heartbeat_timeout_s * (_PATIENCE_BEFORE_FIRST_BEAT if beat is None else 1)
        # None: it may be fetching its dataset from a store; it may also be stopped.
        silent_s = self.still_s(busy, Sign.BEAT, 0.0 if beat is None else beat)
        mute_s = self.still_s(busy, Sign.WORD, end)
        if silent_s > beat_limit_s:
            return f"it gave no sign of life for {_in_words(beat_limit_s)}"
        word_limit_s = hang_limit_s(busy, settings)
        if beat is not None and word_limit_s is not None and mute_s > word_limit_s:
            return f"it hung: no word for {_in_words(word_limit_s)} although its process lived"
        return None

    def forget_others(self, busy: set[tuple[int, int]]) -> None:
        """Drop what is no longer watched: all but these jobs and attempts."""
        self._watched = {key: value for key, value in self._watched.items() if key[:2] in busy}


def hang_limit_s(busy: Busy, settings: QueueSettings) -> float | None:
    """For how long a process that lives may say nothing; None: for ever."""
    if not settings.hang_timeout_s:
        return None
    return settings.hang_timeout_s * (_PATIENCE_WHILE_LOADING if busy.is_loading else 1)


def _in_words(seconds: float) -> str:
    """`30 s`, `10 min`, `4 h`."""
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= length_s and seconds % length_s == 0:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
