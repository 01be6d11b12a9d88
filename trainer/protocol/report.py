"""What a prepared dataset holds: `report.json`, written by `trainer prepare`, read by the trainer and the bot."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

REPORT_VERSION: Literal[1] = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FindingKind(StrEnum):
    """The one vocabulary of what can be found in a picture or its caption."""

    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    BLUR = "blur"
    TOO_DARK = "too_dark"
    WASHED_OUT = "washed_out"
    BLANK = "blank"
    TOO_SMALL = "too_small"
    UPSCALED = "upscaled"
    EXTREME_ASPECT = "extreme_aspect"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    TOO_MANY_PIXELS = "too_many_pixels"
    OUTLIER = "outlier"
    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_UNREADABLE = "caption_unreadable"


class RefusalKind(StrEnum):
    """Why an entry or a whole source was not opened."""

    UNSAFE_PATH = "unsafe_path"
    LINK = "link"
    ENCRYPTED = "encrypted"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    RATIO = "ratio"
    OVERLAP = "overlap"
    COLLISION = "collision"
    NESTED_ARCHIVE = "nested_archive"
    UNSUPPORTED = "unsupported"


class Finding(_Frozen):
    """One thing found in one picture: what was measured, against what, and what was done."""

    kind: FindingKind
    #: The measured value and its threshold, in the unit that `message` names; None where nothing was measured.
    measure: float | None = None
    threshold: float | None = None
    action: Literal["dropped", "kept"]
    message: str
    #: Source of the other picture, for duplicates.
    other: str | None = None


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Image(_Frozen):
    """One picture that was handed in."""

    #: The path below the input; `archive.zip!member` inside an archive.
    source: str
    status: Literal["kept", "dropped"]
    findings: tuple[Finding, ...] = ()
    #: Pictures of one group never sit in two splits; None if dropped before grouping.
    group: int | None = None
    split: Split | None = None
    caption: str = ""
    #: Where the caption comes from (a sidecar's source), None if there is none.
    caption_source: str | None = None
    #: SHA-256 of the stored picture's pixels (upright RGB) and their size; None if it could not be decoded.
    pixels_sha256: str | None = None
    #: Upright size as handed in, px; the stored picture is smaller where this passes about 2048² px.
    width: int | None = None
    height: int | None = None
    #: The decoded picture, relative to the dataset folder; kept pictures only.
    path: str | None = None


class Refused(_Frozen):
    """An entry or a source that was not opened."""

    source: str
    kind: RefusalKind
    reason: str


class Bucket(_Frozen):
    """Pictures that are trained at the same size."""

    width: int
    height: int
    images: int
    #: Mean share of a picture that is cropped away.
    mean_cropped: float


class Counts(_Frozen):
    images: int
    kept: int
    dropped: int
    refused: int
    train: int
    validation: int
    test: int
    captioned: int


class DatasetReport(_Frozen):
    """A prepared dataset, whole."""

    version: Literal[1] = REPORT_VERSION
    #: SHA-256 over the kept pictures, captions and splits: two datasets of one digest train alike.
    digest: str
    #: SHA-256 over everything handed in and the settings: preparing the same again is a look-up.
    input_digest: str = ""
    counts: Counts
    #: One paragraph in plain words.
    summary: str
    images: tuple[Image, ...]
    refused: tuple[Refused, ...] = ()
    #: At `resolution`.
    buckets: tuple[Bucket, ...] = ()
    resolution: int
    #: Contact sheets (PNG) relative to the dataset folder: kept pictures by split, then the dropped.
    sheets: tuple[str, ...] = ()

    def kept(self, split: Split) -> tuple[Image, ...]:
        return tuple(image for image in self.images if image.status == "kept" and image.split == split)


def read_report(dataset_dir: Path) -> DatasetReport:
    """The report of a prepared dataset folder.

    Raises:
        FileNotFoundError: the folder was not written by `trainer prepare`.
        pydantic.ValidationError: the report is of another version or damaged.
    """
    return DatasetReport.model_validate_json((dataset_dir / "report.json").read_bytes())
