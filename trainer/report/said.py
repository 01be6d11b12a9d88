"""Events of one kind among all that a trainer said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from trainer.protocol.events import EpochEnded, Event

E = TypeVar("E", bound=Event)


def all_of(events: Sequence[Event], kind: type[E]) -> tuple[E, ...]:
    """Those of a kind, in order."""
    return tuple(event for event in events if isinstance(event, kind))


def last_of(events: Sequence[Event], kind: type[E]) -> E | None:
    """The last of a kind, None if there is none."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def best_of(ended: Sequence[EpochEnded]) -> EpochEnded:
    """The epoch whose weights are kept, of at least one."""
    return next((each for each in ended if each.epoch == ended[-1].best_epoch), ended[-1])
