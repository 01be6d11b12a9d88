"""Detects hung trainings: how long their heartbeat or their events have not changed, by the monotonic clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import QueueSettings
from bot.queue.domain.job import ActiveJob, EndReason, EndReasonKind

#: Longest time between two polls that counts: a bot that was itself suspended (SIGSTOP, a closed laptop) saw nothing.
MAX_POLL_S = 10.0
#: Factor on the time limit before the first heartbeat.
_PATIENCE_BEFORE_FIRST_HEARTBEAT = 6
#: Factor on the time limit while the model loads, perhaps from a hub.
_PATIENCE_WHILE_LOADING = 4


class Signal(StrEnum):
    """A value that a healthy process keeps changing."""

    #: The modification time of its heartbeat, which a thread of its own updates.
    HEARTBEAT = "heartbeat"
    #: The end of its event file, which only advances with the work.
    PROGRESS = "progress"


@dataclass(kw_only=True)
class _Watched:
    value: float
    polled_at: float
    stalled_for_s: float = 0.0


class LivenessMonitor:
    """Accumulates, poll by poll, how long a signal has not changed.

    It uses the monotonic clock only, so wall-clock jumps never cause a kill.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._watched: dict[tuple[int, int, Signal], _Watched] = {}

    def stalled_for_s(self, job: ActiveJob, signal: Signal, value: float) -> float:
        """Return for how many seconds polls have seen this same value."""
        now, key = self._clock.monotonic(), (job.id, job.attempt, signal)
        watched = self._watched.get(key)
        if watched is None or watched.value != value:
            self._watched[key] = _Watched(value=value, polled_at=now)
            return 0.0
        watched.stalled_for_s += min(now - watched.polled_at, MAX_POLL_S)
        watched.polled_at = now
        return watched.stalled_for_s

    def hang_of(
        self, job: ActiveJob, settings: QueueSettings, *, heartbeat: float | None, end: int
    ) -> EndReason | None:
        """Return why a running process should be killed; None if it should not.

        Args:
            job: The job.
            settings: The time limits.
            heartbeat: The last heartbeat; None: there was none yet (it may be loading, or stopped).
            end: The byte up to which its event file was read.
        """
        heartbeat_limit_s = settings.heartbeat_timeout_s
        if heartbeat is None:
            heartbeat_limit_s *= _PATIENCE_BEFORE_FIRST_HEARTBEAT
        # Both are polled each time.
        silent_s = self.stalled_for_s(job, Signal.HEARTBEAT, 0.0 if heartbeat is None else heartbeat)
        stalled_s = self.stalled_for_s(job, Signal.PROGRESS, end)
        if silent_s > heartbeat_limit_s:
            return EndReason(kind=EndReasonKind.NO_HEARTBEAT, stalled_for_s=heartbeat_limit_s)
        progress_limit_s = hang_limit_s(job, settings)
        if heartbeat is not None and progress_limit_s is not None and stalled_s > progress_limit_s:
            return EndReason(kind=EndReasonKind.NO_PROGRESS, stalled_for_s=progress_limit_s)
        return None

    def retain(self, jobs: Collection[tuple[int, int]]) -> None:
        """Forget all but these jobs and attempts."""
        self._watched = {key: value for key, value in self._watched.items() if key[:2] in jobs}


def hang_limit_s(job: ActiveJob, settings: QueueSettings) -> float | None:
    """Return how long a live process may send no event; None: any time."""
    if not settings.hang_timeout_s:
        return None
    return settings.hang_timeout_s * (_PATIENCE_WHILE_LOADING if job.is_loading else 1)
