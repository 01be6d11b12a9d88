"""What a captioning model is to the rest: pictures in, one caption for each out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from PIL import Image


class Detail(StrEnum):
    """How much a caption says, where the model has a choice (Florence-2); 75 tokens are all that is read later."""

    SHORT = "short"
    DETAILED = "detailed"


class Captioner(Protocol):
    """A loaded model. `name` is what it was loaded from."""

    @property
    def name(self) -> str: ...

    def write(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One caption for each RGB picture, computed as one batch; empty where the model has nothing to say."""
        ...
