"""Reports that the tests of sheets and pages are fed with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.protocol.report import (
    CaptionStatistics,
    Counts,
    DatasetReport,
    Finding,
    FindingKind,
    Image,
    Split,
    WordCount,
)


def found(kind: FindingKind, action: str = "kept", **given: Any) -> Finding:
    values: dict[str, Any] = {"kind": kind, "action": action, "message": f"it is {kind}"}
    return Finding(**values | given)


def report_image(number: int, side: Split | None = Split.TRAIN, **given: Any) -> Image:
    """A kept image, or a dropped one without `side`."""
    gone = (found(FindingKind.CORRUPT, "dropped"),)
    values: dict[str, Any] = {
        "source": f"a.zip!folder/{number}.png",
        "status": "kept" if side else "dropped",
        "findings": () if side else gone,
        "split": side,
        "group": number if side else None,
        "pixels_sha256": f"{number:064}",
        "caption": f"caption of {number}",
        "width": 100,
        "height": 80,
        "path": f"images/{number:04}.png" if side else None,
        "thumbnail": f"thumbnails/{number:04}.jpg",
    }
    return Image(**values | given)


def count(images: Sequence[Image], refused: int = 0) -> Counts:
    kept = [image for image in images if image.status == "kept"]
    return Counts(
        images=len(images),
        kept=len(kept),
        dropped=len(images) - len(kept),
        refused=refused,
        train=sum(image.split is Split.TRAIN for image in kept),
        validation=sum(image.split is Split.VALIDATION for image in kept),
        test=sum(image.split is Split.TEST for image in kept),
        captioned=sum(bool(image.caption) for image in kept),
        automatic=sum(image.is_caption_automatic for image in kept),
    )


def report_of(images: Iterable[Image], **given: Any) -> DatasetReport:
    held = tuple(images)
    values: dict[str, Any] = {"digest": "d", "counts": count(held), "summary": "In words."}
    return DatasetReport(images=held, **values | given)


def statistics(**given: Any) -> CaptionStatistics:
    values: dict[str, Any] = {"distinct": 3, "median_tokens": 7.5, "longest_tokens": 90, "too_long": 1}
    return CaptionStatistics.model_validate(values | given)


def words(*pairs: tuple[str, int]) -> tuple[WordCount, ...]:
    return tuple(WordCount(word=word, images=images) for word, images in pairs)
