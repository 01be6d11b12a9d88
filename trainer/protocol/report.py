"""What a prepared dataset holds: `report.json`, written by `trainer prepare`, read by the trainer and the bot."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

REPORT_VERSION: Literal[1] = 1


#: `Image.caption_source` of a caption that a person wrote in place of the one that was handed in, and of one that holds
#: nothing but what the rules put into every caption.
CAPTION_BY_HAND, CAPTION_BY_RULE = "by hand", "by rule"


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
    #: Text on plain paper, or a capture of a screen: not what a picture model should learn.
    SCREENSHOT = "screenshot"
    OUTLIER = "outlier"
    #: A person said so, whatever was measured (`Edits`).
    BY_HAND = "by_hand"
    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_UNREADABLE = "caption_unreadable"
    #: Bytes of one encoding read as another, before the caption was handed in: `cafÃ©`.
    CAPTION_MOJIBAKE = "caption_mojibake"
    #: Stable Diffusion reads 77 tokens and no more.
    CAPTION_TOO_LONG = "caption_too_long"
    #: Different pictures under one caption.
    CAPTION_IDENTICAL = "caption_identical"
    #: Pictures that show the same under captions that have little in common.
    CAPTION_CONTRADICTORY = "caption_contradictory"
    CAPTION_WITHOUT_TRIGGER = "caption_without_trigger"
    #: Its mask cannot be used, or is not what it seems to be.
    MASK = "mask"


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
    #: A download that failed.
    UNREACHABLE = "unreachable"
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
    #: Where the caption comes from: a sidecar's or a table's source, `CAPTION_BY_HAND`, `CAPTION_BY_RULE`, a captioning
    #: model's name; None if there is none.
    caption_source: str | None = None
    #: Written by a model, and not looked at by a person yet.
    is_caption_automatic: bool = False
    #: First-level folder, or a table's class or label column: what the split is stratified by.
    class_name: str = ""
    #: How often it is seen for each time that another is, from kohya's `10_name` folders.
    repeats: int = 1
    #: SHA-256 of the stored picture's pixels (upright RGB) and their size; None if it could not be decoded.
    pixels_sha256: str | None = None
    #: Upright size as handed in, px; the stored picture is smaller where this passes about 2048² px.
    width: int | None = None
    height: int | None = None
    #: The decoded picture, relative to the dataset folder; kept pictures only.
    path: str | None = None
    #: A small JPEG of it, relative to the dataset folder, dropped pictures too; None if it could not be decoded.
    thumbnail: str | None = None
    #: Where its loss counts if that is masked: 8-bit grey PNG, white where it does, in the picture's shape, relative to
    #: the dataset folder; None if all of it does. Kept pictures only.
    mask: str | None = None
    #: Share of its area that is cut off at `DatasetReport.resolution`, 0 to 1; None if dropped.
    cropped: float | None = None
    #: What a person decided, whatever was measured.
    decision: Literal["keep", "drop"] | None = None


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
    #: Captions among `captioned` that a model wrote and nobody has looked at.
    automatic: int = 0


class WordCount(_Frozen):
    """A tag or word of the captions, and how many kept pictures have it."""

    word: str
    images: int


class CaptionStatistics(_Frozen):
    """What the captions of the kept pictures have in common."""

    distinct: int
    #: CLIP tokens, without the two that mark begin and end: SD 1.x, 2.x and SDXL read 75 of them.
    median_tokens: float
    longest_tokens: int
    #: Captions that are longer than that.
    too_long: int
    #: The word that should call up what is taught, and how many captions hold it.
    trigger: str = ""
    with_trigger: int = 0
    #: Commonest first.
    words: tuple[WordCount, ...] = ()


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
    #: The report for people, Markdown and HTML, relative to the dataset folder.
    pages: tuple[str, ...] = ()
    captions: CaptionStatistics | None = None
    #: Picture numbers (place in `images`, from 1): few that cover the whole range of the kept pictures, and those that
    #: are least like any other, each the most telling first.
    diverse: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    #: Folds of a cross-validation that is advised instead of one split, where there are too few different pictures.
    advised_folds: int | None = None
    #: Shares of validation and test, and the seed, that the pictures were split by.
    shares: tuple[float, float] | None = None
    split_seed: int = 0

    def kept(self, split: Split) -> tuple[Image, ...]:
        return tuple(image for image in self.images if image.status == "kept" and image.split == split)


def read_report(dataset_dir: Path) -> DatasetReport:
    """The report of a prepared dataset folder.

    Raises:
        FileNotFoundError: the folder was not written by `trainer prepare`.
        pydantic.ValidationError: the report is of another version or damaged.
    """
    return DatasetReport.model_validate_json((dataset_dir / "report.json").read_bytes())
