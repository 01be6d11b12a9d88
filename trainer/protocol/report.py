"""The report of a prepared dataset (`report.json`), written by `trainer prepare`, read by the trainer and the bot."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic.dataclasses import dataclass

from trainer.protocol.bucket_shapes import COMMON_RESOLUTIONS, ResolutionFit, fit_images
from trainer.protocol.edits import Crop
from trainer.protocol.frozen import STRICT, Frozen, RelativePath

REPORT_VERSION: Literal[1] = 1


#: Values of `Image.caption_source`: a person replaced the caption; the caption consists only of what the rules add.
CAPTION_BY_HAND, CAPTION_BY_RULE = "by hand", "by rule"


class FindingKind(StrEnum):
    """What can be found in an image or its caption."""

    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    BLUR = "blur"
    TOO_DARK = "too_dark"
    WASHED_OUT = "washed_out"
    BLANK = "blank"
    TOO_SMALL = "too_small"
    EXTREME_ASPECT = "extreme_aspect"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    TOO_MANY_PIXELS = "too_many_pixels"
    #: Text on plain paper, or a capture of a screen.
    SCREENSHOT = "screenshot"
    OUTLIER = "outlier"
    #: Decided by a person, whatever was measured (`Edits`).
    BY_HAND = "by_hand"
    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_UNREADABLE = "caption_unreadable"
    #: Bytes of one encoding that were read as another before the upload: `cafÃ©`.
    CAPTION_MOJIBAKE = "caption_mojibake"
    #: Stable Diffusion reads 77 tokens at most.
    CAPTION_TOO_LONG = "caption_too_long"
    #: Different images with the same caption.
    CAPTION_IDENTICAL = "caption_identical"
    #: Similar images with captions that have little in common.
    CAPTION_CONTRADICTORY = "caption_contradictory"
    CAPTION_WITHOUT_TRIGGER = "caption_without_trigger"
    #: Its mask cannot be used, or is probably no mask.
    MASK = "mask"


class RefusalKind(StrEnum):
    """Why an entry or a source was not opened."""

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
    #: A text, a row of a table or a mask whose image is missing.
    WITHOUT_IMAGE = "without_image"
    UNSUPPORTED = "unsupported"


class FileRole(StrEnum):
    """What a file is in its folder, by the conventions of trainers (`trainer/dataset/folder_layout.py`)."""

    #: An image, or a text about images.
    IMAGE = "image"
    #: An image of the class, of which the subject is one example (kohya's `reg`): trained, never measured.
    REGULARIZATION = "regularization"
    #: A mask of the loss.
    MASK = "mask"
    #: An input of a ControlNet or of an editing model beside its image: not trained.
    CONTROL = "control"
    #: An image that an earlier training or a generator drew.
    SAMPLE = "sample"
    #: Latents and embeddings that a trainer computed.
    CACHE = "cache"
    #: Weights, logs and settings of a trainer.
    TRAINER = "trainer"
    #: In a folder of a dataset or a job of ours.
    OWN_OUTPUT = "own_output"
    #: In a folder of 0 repeats (kohya's `0_name`), or in one such as `backup` or `trash`.
    SKIPPED = "skipped"
    #: Left behind by an operating system or a program that syncs.
    CLUTTER = "clutter"


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Finding:
    """One finding about one image: the measure, its threshold, and the action."""

    kind: FindingKind
    #: The measured value and its threshold; None if nothing was measured.
    measure: float | None = None
    threshold: float | None = None
    action: Literal["dropped", "kept"]
    #: A clause for people.
    message: str
    #: What exactly is damaged in a file, or what a library said, in English.
    detail: str = ""
    #: Source of the other image, for duplicates.
    other: str | None = None


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class Image:
    """One image of the sources."""

    #: Path below the input; `archive.zip!member` inside an archive.
    source: str
    status: Literal["kept", "dropped"]
    findings: tuple[Finding, ...] = ()
    #: Group of near duplicates; a group is never in two splits. None if dropped before grouping.
    group: int | None = None
    split: Split | None = None
    caption: str = ""
    #: Further captions of the same image: each view of a training image has one of all.
    other_captions: tuple[str, ...] = ()
    #: Origin of the caption: a sidecar or table, `CAPTION_BY_HAND`, `CAPTION_BY_RULE`, or the name of a captioning
    #: model; None if there is no caption.
    caption_source: str | None = None
    #: Written by a model and not reviewed yet.
    is_caption_automatic: bool = False
    #: First-level folder, or a table's class or label column; the split is stratified by it.
    class_name: str = ""
    #: How often it is seen for each time that another image is, from kohya's `10_name` folders.
    repeats: int = 1
    #: A class image (kohya's `reg`): it trains with `training.regularization_weight`, and is never measured.
    is_regularization: bool = False
    #: SHA-256 of the decoded pixels (upright RGB) and their size, before a crop; None if it could not be decoded.
    pixels_sha256: str | None = None
    #: Upright size of the source after its crop, px; the stored image is smaller if this exceeds about 2048² px.
    width: int | None = None
    height: int | None = None
    #: The decoded image, relative to the dataset folder; kept images only.
    path: RelativePath | None = None
    #: A small JPEG, relative to the dataset folder, of dropped images too; None if it could not be decoded.
    thumbnail: RelativePath | None = None
    #: Mask of the loss: 8-bit gray PNG in the image's shape, white where the loss counts, relative to the dataset
    #: folder; None without a mask. Kept images only.
    mask: RelativePath | None = None
    #: A person's decision, which overrides all measures.
    decision: Literal["keep", "drop"] | None = None
    #: The part that a person chose, which is what `path`, `thumbnail` and `mask` show; and the file of the whole image,
    #: relative to the dataset folder. Kept images only.
    crop: Crop | None = None
    uncropped: RelativePath | None = None

    @property
    def all_captions(self) -> str:
        """All its captions as one text, for checks that hold if any of them has a word."""
        return "\n".join((self.caption, *self.other_captions))


class RecognizedFiles(Frozen):
    """Files of one folder that are no ordinary images, by the conventions of trainers; `Edits.layout` overrules it."""

    role: FileRole
    #: Path below the input, ending with a slash; `archive.zip!folder/` inside an archive. Empty for clutter.
    folder: str = ""
    files: int


class CaptionColumn(Frozen):
    """A column that captions were taken from because of its content; `Edits.caption_column` overrules it."""

    #: Path of the table below the input.
    table: str
    column: str


class Refused(Frozen):
    """An entry or source that was not opened."""

    source: str
    kind: RefusalKind
    reason: str


class Counts(Frozen):
    images: int
    kept: int
    dropped: int
    refused: int
    train: int
    validation: int
    test: int
    captioned: int
    #: Captions among `captioned` that a model wrote and that are not reviewed yet.
    automatic: int = 0


class WordCount(Frozen):
    """A tag or word of the captions, and the number of kept images that have it."""

    word: str
    images: int


class CaptionStatistics(Frozen):
    """Statistics of the captions of the kept images."""

    distinct: int
    #: CLIP tokens, without the begin and end tokens; SD 1.x, 2.x and SDXL read 75.
    median_tokens: float
    longest_tokens: int
    #: Captions that are longer than that.
    too_long: int
    #: The trigger word, and the number of captions that contain it.
    trigger: str = ""
    with_trigger: int = 0
    #: Most frequent first.
    words: tuple[WordCount, ...] = ()


class DatasetReport(Frozen):
    """A prepared dataset, complete."""

    version: Literal[1] = REPORT_VERSION
    #: SHA-256 over the kept images, captions and splits: datasets with the same digest train alike.
    digest: str
    #: SHA-256 over all sources and settings: preparing the same again is a look-up.
    input_digest: str = ""
    counts: Counts
    #: For the user, one sentence a line.
    summary: str
    images: tuple[Image, ...]
    refused: tuple[Refused, ...] = ()
    #: By role and folder; only what differs from plain images with captions.
    recognized: tuple[RecognizedFiles, ...] = ()
    caption_columns: tuple[CaptionColumn, ...] = ()
    #: Training resolutions that the summary and the pages describe, px; `fit` describes any.
    resolutions: tuple[int, ...] = COMMON_RESOLUTIONS
    #: Contact sheets (JPEG) relative to the dataset folder: kept images by split, then the dropped ones.
    sheets: tuple[RelativePath, ...] = ()
    #: The report as Markdown and HTML pages, relative to the dataset folder.
    pages: tuple[RelativePath, ...] = ()
    captions: CaptionStatistics | None = None
    #: Image numbers (position in `images`, from 1): a few that cover the range of the kept images, and those that are
    #: least similar to any other, both most representative first.
    diverse: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    #: Number of folds of a recommended cross-validation, if there are too few distinct images for one split.
    advised_folds: int | None = None
    #: Shares of validation and test, and the seed of the split.
    shares: tuple[float, float] | None = None
    split_seed: int = 0

    @property
    def title(self) -> str:
        """The names of the archives that the images came in; empty if there are none, or many."""
        archives = dict.fromkeys(image.source.partition("!")[0] for image in self.images if "!" in image.source)
        return ", ".join(archives) if len(archives) <= 3 else ""

    def fit(self, resolution: int) -> ResolutionFit:
        """Return what training at `resolution` px does to the kept images."""
        kept = (image for image in self.images if image.status == "kept")
        return fit_images([(image.width or 1, image.height or 1) for image in kept], resolution)

    def kept(self, split: Split) -> tuple[Image, ...]:
        return tuple(image for image in self.images if image.status == "kept" and image.split == split)
