"""Decides whether trainings may start now, by training windows and free disk space, and wakes the dispatcher."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database
from bot.queue.planning.windows import Windows
from bot.queue.store.queue_control import Admission
from bot.ui.admin_pages import hold_text

#: The disk counts as full until there is so much more than the limit, so that it does not flap.
_HYSTERESIS = 1.1
#: Between two checks of the `WakeupScheduler`.
_CHECK_S = 60.0
_NEXT_START = "SELECT MIN(run_after) AS at FROM job WHERE state = 'queued' AND run_after > ?"


class DiskMonitor:
    """Whether the disk of the data folder is nearly full; asking costs microseconds."""

    def __init__(
        self,
        folder: Path,
        *,
        min_free_bytes: int,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._folder = folder
        self._free = free
        self._is_low = False
        #: 0: never full.
        self.min_free_bytes = min_free_bytes

    @property
    def free_bytes(self) -> int:
        """Free space now."""
        return self._free(self._folder)

    def is_low(self) -> bool:
        """Whether there is too little space to start anything."""
        if not self.min_free_bytes:
            return False
        self._is_low = self.free_bytes < self.min_free_bytes * (_HYSTERESIS if self._is_low else 1.0)
        return self._is_low


class AdmissionControl:
    """What the dispatcher asks at each step; computed at each call, so a clock that jumps needs no correction."""

    def __init__(self, windows: Windows, disk: DiskMonitor, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.windows = windows
        self.disk = disk
        self._clock = clock

    def __call__(self) -> Admission:
        by_windows = self.windows.admission(self._clock.time())
        # A full disk frees no GPU: running trainings continue, and may well be what makes room.
        return Admission.HOLD if by_windows is Admission.ALLOW and self.disk.is_low() else by_windows

    def hold_reason(self) -> str:
        """Why nothing starts now, as a sentence; empty if trainings may start."""
        if self() is Admission.ALLOW:
            return ""
        opening = self.windows.next_opening(self._clock.time())
        if opening is None or self.windows.is_open(self._clock.time()):
            return hold_text(free_bytes=self.disk.free_bytes)
        return hold_text(opens_at=datetime.fromtimestamp(opening, self.windows.zone))


class WakeupScheduler:
    """Wakes the dispatcher at window edges and delayed starts; by itself it would notice them at its next poll."""

    def __init__(
        self,
        db: Database,
        changed: asyncio.Event,
        admission: Callable[[], Admission],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._changed = changed
        self._admission = admission
        self._clock = clock
        self._previous: Admission | None = None

    async def check(self) -> None:
        """Wake the dispatcher if the admission changed, and plan the wake-ups until the next check in a minute."""
        admission = self._admission()
        if admission is not self._previous:
            self._previous = admission
            self._changed.set()
        now = self._clock.time()
        row = await self._db.one(_NEXT_START, (now,))
        assert row is not None
        if row["at"] is not None and row["at"] <= now + _CHECK_S:
            asyncio.get_running_loop().call_later(row["at"] - now, self._changed.set)
