"""Edits of a dataset: decisions and captions of people, applied by `trainer prepare --edits`; no file is changed.

Images are identified by the SHA-256 of their pixels (`Image.pixels_sha256`), so that an edit stays valid when files are
renamed, renumbered or added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.protocol.frozen import Frozen

EDITS_VERSION: Literal[1] = 1
#: The least share of a side that a crop leaves.
MIN_CROP = 0.02


class EditsError(ValueError):
    """Edits that cannot be read; the message is a sentence for the user."""


class Replacement(Frozen):
    """Text to replace in every caption, ignoring case."""

    old: str = Field(min_length=1, max_length=200)
    new: str = Field(default="", max_length=200)


class CaptionRules(Frozen):
    """Rules for every caption, applied in this order: replace, strip, prefix, suffix, trigger."""

    replace: tuple[Replacement, ...] = Field(default=(), max_length=50)
    #: Whole words or tags to remove: an old trigger, `masterpiece`.
    strip: tuple[str, ...] = Field(default=(), max_length=50)
    prefix: str = Field(default="", max_length=200)
    suffix: str = Field(default="", max_length=200)
    #: Put in front of every caption that does not contain it.
    trigger: str = Field(default="", max_length=50)


class Crop(Frozen):
    """The part of an image that is trained on: shares of its upright width and height, from the left and the top."""

    left: float = Field(default=0.0, ge=0, le=1)
    top: float = Field(default=0.0, ge=0, le=1)
    right: float = Field(default=1.0, ge=0, le=1)
    bottom: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_an_area(self) -> Self:
        if self.right - self.left < MIN_CROP or self.bottom - self.top < MIN_CROP:
            raise ValueError("it leaves nothing of the image")
        return self

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in an image of this size, px; at least one pixel."""
        left, top = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        return left, top, max(round(self.right * width), left + 1), max(round(self.bottom * height), top + 1)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what it leaves of an image of this size, px."""
        left, top, right, bottom = self.box(width, height)
        return right - left, bottom - top


class Layout(StrEnum):
    """How the folders of the sources are read."""

    #: By the conventions of trainers: masks, regularization images, samples and caches are recognized.
    AUTO = "auto"
    #: Each image is an image to train on; folders only name classes and repeats.
    PLAIN = "plain"


class Edits(Frozen):
    """All edits of one dataset."""

    version: Literal[1] = EDITS_VERSION
    layout: Layout = Layout.AUTO
    #: Column of the captions in tables; empty: the one with a well-known name, or the only one with text.
    caption_column: str = Field(default="", max_length=100)
    #: By pixel hash: `keep` overrides every finding that dropped the image, `drop` removes it.
    decisions: dict[str, Literal["keep", "drop"]] = Field(default_factory=dict)
    #: By pixel hash, which is of the whole image: the part of it that is trained on.
    crops: dict[str, Crop] = Field(default_factory=dict)
    #: By pixel hash: captions that replace the uploaded ones, before `rules`; empty means no caption.
    captions: dict[str, str] = Field(default_factory=dict)
    #: By pixel hash: captions that `captioner` wrote, for images without an uploaded caption or one in `captions`.
    automatic: dict[str, str] = Field(default_factory=dict)
    #: The model that wrote them, for the record.
    captioner: str = ""
    #: By pixel hash: automatic captions that were reviewed and left unchanged.
    reviewed: tuple[str, ...] = ()
    rules: CaptionRules = CaptionRules()
