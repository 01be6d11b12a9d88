"""Makes the report of a dataset folder from the image records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.dataset.captions.caption_checks import caption_statistics
from trainer.dataset.dataset_folder import IMAGES, MASKS, THUMBNAILS, UNCROPPED
from trainer.dataset.images.image_features import diverse, isolated
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.preparing.summary import summarize
from trainer.dataset.split.group_split import Shares
from trainer.protocol.report import CaptionColumn, Counts, DatasetReport, Image, RecognizedFiles, Refused, Split

#: With fewer different images, the validation loss depends on which of them validate: cross-validation is advised.
_MIN_GROUPS_FOR_ONE_SPLIT, _MAX_ADVISED_FOLDS = 10, 5


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """The parts of a report that do not come from the images."""

    input_digest: str
    resolutions: tuple[int, ...]
    shares: Shares
    trigger: str
    refused: tuple[Refused, ...]
    recognized: tuple[RecognizedFiles, ...] = ()
    caption_columns: tuple[CaptionColumn, ...] = ()


def make_report(records: Iterable[ImageRecord], features: Mapping[int, bytes], context: ReportContext) -> DatasetReport:
    """Make the report of split records; sheets and pages are added when they are drawn."""
    images = tuple(map(_image, records))
    kept_captions = {
        number: image.caption
        for number, image in enumerate(images, 1)
        if image.status == "kept" and not image.is_regularization
    }
    groups = {number: image.group or 0 for number, image in enumerate(images, 1)}
    report = DatasetReport(
        digest=_digest(images),
        input_digest=context.input_digest,
        counts=_counts(images, len(context.refused)),
        summary="",
        images=images,
        refused=context.refused,
        recognized=context.recognized,
        caption_columns=context.caption_columns,
        resolutions=context.resolutions,
        captions=caption_statistics(kept_captions, context.trigger),
        diverse=diverse(features),
        isolated=isolated(features, groups),
        advised_folds=_advised_folds(images),
        shares=(context.shares.validation, context.shares.test),
        split_seed=context.shares.seed,
    )
    return report.model_copy(update={"summary": summarize(report)})


def _image(record: ImageRecord) -> Image:
    """The report's view of a record."""
    assessment, caption, pixels = record.assessment, record.assessment.caption, record.pixels
    image = Image(
        source=record.source,
        status="kept" if record.is_kept else "dropped",
        findings=assessment.findings,
        group=assessment.group,
        split=record.split,
        caption=caption.text if caption else "",
        other_captions=caption.others if caption else (),
        caption_source=caption.source if caption else None,
        is_caption_automatic=assessment.is_caption_automatic,
        class_name=record.labels.class_name,
        repeats=record.labels.repeats,
        is_regularization=record.labels.is_regularization,
        decision=assessment.decision,
    )
    if pixels is None:
        return image
    decoded: dict[str, Any] = {
        "pixels_sha256": pixels.pixels_sha256,
        "width": pixels.width,
        "height": pixels.height,
        "thumbnail": f"{THUMBNAILS}/{pixels.thumbnail}",
    }
    if record.is_kept:
        decoded["path"] = f"{IMAGES}/{pixels.image}"
        decoded["mask"] = f"{MASKS}/{pixels.mask}" if pixels.mask else None
    if (cropped := record.cropped) is not None:
        decoded |= {
            "crop": cropped.crop,
            "uncropped": f"{UNCROPPED}/{pixels.image}",
            "width": cropped.width,
            "height": cropped.height,
            "mask": f"{MASKS}/{cropped.mask}" if cropped.mask else None,
        }
    return replace(image, **decoded)


def _counts(images: Sequence[Image], refused: int) -> Counts:
    kept = [image for image in images if image.status == "kept"]
    by_split = {split.value: sum(image.split is split for image in kept) for split in Split}
    return Counts(
        images=len(images),
        kept=len(kept),
        dropped=len(images) - len(kept),
        refused=refused,
        captioned=sum(bool(image.caption) for image in kept),
        automatic=sum(image.is_caption_automatic for image in kept),
        **by_split,
    )


def _advised_folds(images: Sequence[Image]) -> int | None:
    groups = len({image.group for image in images if image.status == "kept" and not image.is_regularization})
    return min(groups, _MAX_ADVISED_FOLDS) if 3 <= groups < _MIN_GROUPS_FOR_ONE_SPLIT else None


def _digest(images: Sequence[Image]) -> str:
    """SHA-256 over everything that training depends on."""
    kept = sorted(
        [
            *(i.pixels_sha256, i.caption, *i.other_captions, i.split, i.repeats, i.mask or "", i.is_regularization),
            *([] if i.crop is None else [i.crop.model_dump_json()]),
        ]
        for i in images
        if i.status == "kept"
    )
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
