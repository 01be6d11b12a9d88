"""How a preparation tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Phase, done, total.
Progress: TypeAlias = Callable[[str, int, int], None]


def say_nothing(phase: str, done: int, total: int) -> None:
    """For a preparation that nobody watches."""
