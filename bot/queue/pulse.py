"""How long processes have given no sign of life, by a clock that nobody can set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Longest time between two looks that counts: a bot that slept itself (SIGSTOP, a closed laptop) has seen nothing.
MAX_LOOK_S = 10.0


@dataclass(kw_only=True)
class _Watched:
    beat: float
    looked_at: float
    silent_s: float = 0.0


class Pulse:
    """Sums up the time over which a sign of life did not change, look by look.

    Beats are only compared with each other, never with the time of day: a clock that jumps kills nothing.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._watched: dict[tuple[int, int], _Watched] = {}

    def silent_s(self, job_id: int, attempt: int, beat: float) -> float:
        """Seconds for which we have watched this very beat."""
        now = self._monotonic()
        known = self._watched.get((job_id, attempt))
        if known is None or known.beat != beat:
            self._watched[job_id, attempt] = _Watched(beat=beat, looked_at=now)
            return 0.0
        known.silent_s += min(now - known.looked_at, MAX_LOOK_S)
        known.looked_at = now
        return known.silent_s

    def forget_others(self, busy: set[tuple[int, int]]) -> None:
        """Drop what is no longer watched."""
        self._watched = {key: value for key, value in self._watched.items() if key in busy}
