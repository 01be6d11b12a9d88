"""What people change in a dataset without touching a file: keep, drop, captions. Read by `trainer prepare --edits`.

Pictures go by the SHA-256 of their pixels (`Image.pixels_sha256`), so that an edit holds however files are named,
numbered or added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

EDITS_VERSION: Literal[1] = 1


class EditsError(ValueError):
    """Edits that cannot be read; the message is a sentence for a person."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replacement(_Frozen):
    """Text that is put in the place of another in every caption; letter case does not count."""

    old: str = Field(min_length=1, max_length=200)
    new: str = Field(default="", max_length=200)


class CaptionRules(_Frozen):
    """What is done to every caption, in this order: replace, strip, prefix, suffix, trigger."""

    replace: tuple[Replacement, ...] = Field(default=(), max_length=50)
    #: Words or tags taken out wherever they stand as whole words: an old trigger, `masterpiece`.
    strip: tuple[str, ...] = Field(default=(), max_length=50)
    prefix: str = Field(default="", max_length=200)
    suffix: str = Field(default="", max_length=200)
    #: Put in front of every caption that does not hold it.
    trigger: str = Field(default="", max_length=50)


class Edits(_Frozen):
    """All that people decided about one dataset."""

    version: Literal[1] = EDITS_VERSION
    #: By pixel hash: `keep` overrules every finding that dropped the picture, `drop` takes it out.
    decisions: dict[str, Literal["keep", "drop"]] = {}
    #: By pixel hash: the caption instead of the one that was handed in, before `rules`; empty means none.
    captions: dict[str, str] = {}
    #: By pixel hash: captions that `captioner` wrote; used where none was handed in and none is in `captions`.
    automatic: dict[str, str] = {}
    #: The model that wrote them, for the record.
    captioner: str = ""
    #: By pixel hash: automatic captions that a person has looked at and left as they are.
    reviewed: tuple[str, ...] = ()
    rules: CaptionRules = CaptionRules()

    def write(self, path: Path) -> None:
        """Write them by rename."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def read_edits(path: Path) -> Edits:
    """The edits in a file.

    Raises:
        EditsError: it is missing, or holds something else.
    """
    try:
        return Edits.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EditsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise EditsError(f"{path} does not hold edits ({error.errors()[0]['msg'].lower()}).") from error
