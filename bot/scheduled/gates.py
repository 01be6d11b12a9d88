"""Whether trainings may start at this moment: training windows and room on the disk, in one question.

The answer is computed anew each time, by the clock and the disk as they are: nothing has to be mended after a jump.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from bot.queue.domain.admission import Gate
from bot.queue.planning.windows import Windows, gate_at, next_opening
from bot.scheduled.disk import Disk
from bot.ui.text import size


class Gates:
    """What the dispatcher asks at each step: `Dispatcher(gate=gates)`."""

    def __init__(self, windows: Windows, disk: Disk, *, now: Callable[[], float] = time.time) -> None:
        self.windows = windows
        self.disk = disk
        self._now = now

    def __call__(self) -> Gate:
        by_clock = gate_at(self.windows, self._now())
        # A full disk frees no GPU: what runs goes on, and may well be what makes room.
        return Gate.CLOSED if by_clock is Gate.OPEN and self.disk.is_low() else by_clock

    def reason(self) -> str:
        """Why nothing starts, in a sentence; empty while the gate is open."""
        match self():
            case Gate.OPEN:
                return ""
            case _ if gate_at(self.windows, self._now()) is Gate.OPEN:
                return (
                    f"The disk is nearly full ({size(self.disk.free_bytes)} free); nothing starts until there is room."
                )
            case _:
                opening = next_opening(self.windows, self._now())
                assert opening is not None, "a gate that is closed opens within two weeks"
                moment = datetime.fromtimestamp(opening, self.windows.zone)
                return f"The training window opens {moment:%a %H:%M} ({self.windows.zone})."
