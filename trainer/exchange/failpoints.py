"""Failpoints: named points at which a test kills the process, to prove that nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence


class Failpoints:
    """The failpoints of one program.

    Its environment variable names one of `points`, or `name:n` for the n-th time that the point is reached.
    """

    def __init__(self, variable: str, points: Sequence[str]) -> None:
        self.variable = variable
        self.points = tuple(points)
        self._reached: Counter[str] = Counter()

    def __call__(self, name: str, before: Callable[[], object] | None = None) -> None:
        """Kill this process (SIGKILL) if the environment names this point, after calling `before`.

        `before` leaves a step half done: it writes half of a line, for instance.
        """
        wanted = os.environ.get(self.variable)
        if not wanted:
            return
        assert name in self.points, name
        point, _, number = wanted.partition(":")
        if point != name:
            return
        self._reached[name] += 1
        if self._reached[name] == int(number or 1):
            if before is not None:
                before()
            os.kill(os.getpid(), signal.SIGKILL)
