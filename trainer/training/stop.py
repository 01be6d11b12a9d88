"""SIGTERM and Ctrl-C as a request that is looked at where it is safe to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequestedError(Exception):
    """Raised by `StopRequest.check` where a long piece of work may be left without loss."""


class StopRequest:
    """Whether somebody asked this process to stop; a context manager that holds the signal handlers."""

    def __init__(self) -> None:
        self.is_set = False
        #: With several processes a signal counts once all of them know of it: none may stop where others wait for it.
        self.is_shared = False
        self.is_agreed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises: StopRequestedError."""
        if self.is_agreed if self.is_shared else self.is_set:
            raise StopRequestedError

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            # A second Ctrl-C is from a person who does not want to wait.
            raise KeyboardInterrupt
        self.is_set = True
