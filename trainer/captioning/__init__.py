"""Captions for images without one, by a local model."""

from enum import StrEnum


class Detail(StrEnum):
    """How long captions are, if the model has a choice (Florence-2)."""

    SHORT = "short"
    DETAILED = "detailed"
