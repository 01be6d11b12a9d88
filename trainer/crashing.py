"""Named points at which a test kills the trainer, as `kill -9` would: to see that nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

#: Name of one point, or `name:n` for the n-th time that it is reached.
CRASH_VARIABLE = "DARKROOM_TRAINER_CRASH_AT"

#: Every point, in the order of a run.
POINTS = (
    "lock_held",
    "event_half_written",
    "event_written",
    "checkpoint_half_written",
    "checkpoint_written",
    "epoch_said",
    "export_written",
    "before_last_word",
    "after_last_word",
)

_reached: Counter[str] = Counter()


def crash_point(name: str, leave: Callable[[], object] = lambda: None) -> None:
    """Die here if the environment says so, after doing by half (`leave`) what the point is in the middle of."""
    wanted = os.environ.get(CRASH_VARIABLE)
    if not wanted:
        return
    assert name in POINTS, name
    point, _, number = wanted.partition(":")
    if point != name:
        return
    _reached[name] += 1
    if _reached[name] == int(number or 1):
        leave()
        os.kill(os.getpid(), signal.SIGKILL)
