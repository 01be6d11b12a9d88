"""`ImageRecord`: an image of the input on its way from decoding to the report, and the groups of facts about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict

from trainer.dataset.images.image_quality import Quality
from trainer.dataset.images.perceptual_hash import BYTES_AS_BASE64, ImageHashes
from trainer.protocol.edits import Crop
from trainer.protocol.report import Finding, Split

if TYPE_CHECKING:
    # Not in the processes that decode images: the readers of captions take a seventh of their start.
    from trainer.dataset.captions.labels import ImageLabels
    from trainer.dataset.captions.sidecars import Caption


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePixels:
    """The stored files of a decoded image, and what was measured of its pixels. Cached for the next preparation."""

    __pydantic_config__: ClassVar[ConfigDict] = BYTES_AS_BASE64
    #: SHA-256 of the input file.
    file_sha256: str = ""
    #: SHA-256 of the decoded pixels and their size.
    pixels_sha256: str
    #: File names of the stored image and of its thumbnail, each in its folder.
    image: str
    thumbnail: str
    #: Upright size of the original, px.
    width: int
    height: int
    #: When it was taken, by the camera's clock: seconds from an arbitrary time; None if unknown.
    captured_at: float | None = None
    #: What the decoder ignored, as clauses.
    notes: tuple[str, ...]
    hashes: ImageHashes
    quality: Quality
    #: `image_feature` of the thumbnail.
    feature: bytes
    #: SHA-256 of the mask file in the input; file name of the stored mask, which may come from the transparency.
    mask_file_sha256: str = ""
    mask: str | None = None
    #: What is wrong with the mask, as a clause.
    mask_problem: str = ""

    @property
    def input_key(self) -> tuple[str, str]:
        """SHA-256 of the input files that it was decoded from: image and mask."""
        return self.file_sha256, self.mask_file_sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What was found in an image, what a person decided about it, and the caption that it is trained with."""

    #: None without any caption.
    caption: Caption | None = None
    is_caption_automatic: bool = False
    decision: Literal["keep", "drop"] | None = None
    findings: tuple[Finding, ...] = ()
    #: The lowest number of the images that are near duplicates of each other.
    group: int | None = None

    @property
    def is_dropped(self) -> bool:
        return any(finding.action == "dropped" for finding in self.findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class CroppedFiles:
    """The part of an image that a person chose, stored under the names of the whole one, which is moved aside."""

    crop: Crop
    #: Upright size of the part in the original, px.
    width: int
    height: int
    #: File name of its mask.
    mask: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of the input; each step of the preparation adds a group of facts."""

    #: From 1, in natural order of the sources; users refer to the image by it.
    number: int
    #: Path below the input; `archive.zip!member` inside an archive.
    source: str
    #: Caption, class and repeats as handed in.
    labels: ImageLabels
    #: None if it could not be decoded; a finding says why.
    pixels: ImagePixels | None = None
    assessment: Assessment = Assessment()
    #: None if it is dropped, or not assigned yet.
    split: Split | None = None
    #: None if the whole image is trained on.
    cropped: CroppedFiles | None = None

    @property
    def is_kept(self) -> bool:
        return self.pixels is not None and not self.assessment.is_dropped

    def with_findings(self, *findings: Finding) -> ImageRecord:
        """The record with further findings."""
        if not findings:
            return self
        found = (*self.assessment.findings, *findings)
        return replace(self, assessment=replace(self.assessment, findings=found))
