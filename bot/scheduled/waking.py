"""Wakes the dispatcher when something may start by the clock: a window's edge, a delayed start.

It would notice by itself at its next look; this only saves it the wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bot.db import Database
from bot.queue.domain.admission import Gate

#: Pause between two looks.
LOOK_S = 60.0

_NEXT_START = "SELECT MIN(run_after) AS at FROM job WHERE state = 'queued' AND run_after > ?"


class Waking:
    """`look` each minute, at its full minute: that is where windows have their edges."""

    def __init__(
        self, db: Database, changed: asyncio.Event, gate: Callable[[], Gate], *, now: Callable[[], float] = time.time
    ) -> None:
        self._db = db
        self._changed = changed
        self._gate = gate
        self._now = now
        self._was: Gate | None = None

    async def look(self) -> None:
        """Wake it if the gate moved, and at the next delayed start if that is before the next look."""
        gate = self._gate()
        if gate is not self._was:
            self._was = gate
            self._changed.set()
        row = await self._db.one(_NEXT_START, (self._now(),))
        assert row is not None
        if row["at"] is not None and row["at"] <= self._now() + LOOK_S:
            asyncio.get_running_loop().call_later(row["at"] - self._now(), self._changed.set)
