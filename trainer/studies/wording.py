"""Numbers of a study as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def percent(ratio: float) -> str:
    """A share of the base's loss: 61.2 %."""
    return f"{100 * ratio:.1f} %"


def change(ratio: float) -> str:
    """A ratio of two losses as what is more or less: +1.2 %, −0.4 %, ±0.0 %."""
    value = round(100 * (ratio - 1), 1)
    sign = "+" if value > 0 else "\u2212" if value < 0 else "±"
    return f"{sign}{abs(value):.1f} %"


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """1 epoch, 2 epochs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(items[:-1]) + " and " + items[-1] if items[1:] else items[0]
