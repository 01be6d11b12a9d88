"""Whether trainings may start at this moment, as the dispatcher asks it."""

from __future__ import annotations

from enum import StrEnum


class Gate(StrEnum):
    """What the training windows say."""

    OPEN = "open"
    #: Nothing new starts; what runs goes on.
    CLOSED = "closed"
    #: Nothing new starts; what runs saves its checkpoint and waits for the next window.
    EMPTY = "empty"
