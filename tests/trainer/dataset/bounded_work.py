"""Ends work that costs more than it may: by Python and C calls, not by the clock of a busy machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TooMuchWorkError(BaseException):
    """Not an `Exception`: code under test handles those."""


@contextmanager
def at_most_calls(most: int) -> Iterator[None]:
    """Raise TooMuchWorkError once the body has made more calls of Python or C functions than `most`."""
    left, depth = most, 0

    def count(_frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, depth
        # With `--coverage` there are calls of SlipCover between ours, and what they call.
        if getattr(argument, "__module__", None) == "slipcover.probe":
            depth += 1 if event == "c_call" else -1
        elif not depth:
            left -= event in ("call", "c_call")
        if left < 0:
            sys.setprofile(None)
            raise TooMuchWorkError(f"more than {most:,} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
