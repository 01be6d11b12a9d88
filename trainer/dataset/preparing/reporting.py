"""From verdicts and splits to the report: what is counted, how pictures fill the buckets, which are alike and alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.dataset.buckets import Size, bucket_for, cropped_share, default_step
from trainer.dataset.captions.caption_checks import caption_statistics
from trainer.dataset.images.outliers import diverse, isolated
from trainer.dataset.layout import MASKS, PICTURES, THUMBNAILS
from trainer.dataset.preparing.assessment import Verdict
from trainer.dataset.preparing.summary import summarize
from trainer.dataset.split.group_split import Shares
from trainer.protocol.report import Bucket, Counts, DatasetReport, Image, Refused, Split

#: With fewer different pictures, which of them validate decides what the validation loss says: better to let each of
#: them do so in turn.
MIN_GROUPS_FOR_ONE_SPLIT = 10
_MAX_ADVISED_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What a report says beside its pictures."""

    input_digest: str
    resolution: int
    shares: Shares
    trigger: str
    refused: tuple[Refused, ...]


def make_report(
    verdicts: Sequence[Verdict], splits: Mapping[int, Split], circumstances: Circumstances
) -> DatasetReport:
    """The report of a dataset folder, its sheets not drawn yet. `splits` holds kept pictures by number."""
    resolution = circumstances.resolution
    shapes = _shapes([verdict for verdict in verdicts if not verdict.is_dropped], resolution)
    images = tuple(_image(verdict, splits.get(verdict.found.number), shapes) for verdict in verdicts)
    counts = _counts(images, len(circumstances.refused))
    buckets = _buckets(images, shapes)
    captions = caption_statistics(
        {number: image.caption for number, image in enumerate(images, start=1) if image.status == "kept"},
        circumstances.trigger,
    )
    folds = _advised_folds(images)
    usable = [(v.found.number, v.decoded) for v in verdicts if v.decoded is not None and not v.is_dropped]
    shown = {number: decoded.feature for number, decoded in usable if not decoded.look.is_blank}
    groups = {verdict.found.number: verdict.group or 0 for verdict in verdicts}
    return DatasetReport(
        digest=_digest(images),
        input_digest=circumstances.input_digest,
        counts=counts,
        summary=summarize(
            images, circumstances.refused, counts, buckets, resolution, captions=captions, advised_folds=folds
        ),
        images=images,
        refused=circumstances.refused,
        buckets=buckets,
        resolution=resolution,
        captions=captions,
        diverse=diverse(shown),
        isolated=isolated(shown, groups),
        advised_folds=folds,
        shares=(circumstances.shares.validation, circumstances.shares.test),
        split_seed=circumstances.shares.seed,
    )


def _shapes(kept: Sequence[Verdict], resolution: int) -> dict[int, Size]:
    """The bucket of each kept picture, by number."""
    step = default_step(resolution, len(kept))
    return {
        verdict.found.number: bucket_for(verdict.decoded.width, verdict.decoded.height, resolution, step)
        for verdict in kept
        if verdict.decoded is not None
    }


def _image(verdict: Verdict, side: Split | None, shapes: Mapping[int, Size]) -> Image:
    decoded, caption, found = verdict.decoded, verdict.caption, verdict.found
    return Image(
        source=found.source,
        status="dropped" if verdict.is_dropped else "kept",
        findings=tuple(verdict.findings),
        group=verdict.group,
        split=side,
        caption=caption.text if caption else "",
        caption_source=caption.source if caption else None,
        is_caption_automatic=verdict.is_caption_automatic,
        class_name=found.class_name,
        repeats=found.repeats,
        pixels_sha256=decoded.pixels_sha256 if decoded else None,
        width=decoded.width if decoded else None,
        height=decoded.height if decoded else None,
        path=f"{PICTURES}/{decoded.picture}" if decoded and not verdict.is_dropped else None,
        thumbnail=f"{THUMBNAILS}/{decoded.thumbnail}" if decoded else None,
        mask=f"{MASKS}/{decoded.mask}" if decoded and decoded.mask and not verdict.is_dropped else None,
        cropped=_cropped(verdict, shapes),
        decision=verdict.decision,
    )


def _cropped(verdict: Verdict, shapes: Mapping[int, Size]) -> float | None:
    shape = shapes.get(verdict.found.number)
    if shape is None or verdict.decoded is None:
        return None
    return round(cropped_share((verdict.decoded.width, verdict.decoded.height), shape), 4)


def _counts(images: Sequence[Image], refused: int) -> Counts:
    kept = [image for image in images if image.status == "kept"]
    sides = {side: sum(image.split is side for image in kept) for side in Split}
    return Counts(
        images=len(images),
        kept=len(kept),
        dropped=len(images) - len(kept),
        refused=refused,
        train=sides[Split.TRAIN],
        validation=sides[Split.VALIDATION],
        test=sides[Split.TEST],
        captioned=sum(bool(image.caption) for image in kept),
        automatic=sum(image.is_caption_automatic for image in kept),
    )


def _buckets(images: Sequence[Image], shapes: Mapping[int, Size]) -> tuple[Bucket, ...]:
    held: dict[Size, list[float]] = {}
    for number, image in enumerate(images, start=1):
        if image.cropped is not None:
            held.setdefault(shapes[number], []).append(image.cropped)
    return tuple(
        Bucket(width=width, height=height, images=len(crops), mean_cropped=sum(crops) / len(crops))
        for (width, height), crops in sorted(held.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _advised_folds(images: Sequence[Image]) -> int | None:
    groups = len({image.group for image in images if image.status == "kept"})
    return min(groups, _MAX_ADVISED_FOLDS) if 3 <= groups < MIN_GROUPS_FOR_ONE_SPLIT else None


def _digest(images: Sequence[Image]) -> str:
    """Of what training sees."""
    kept = sorted(
        [i.pixels_sha256, i.caption, i.split, i.repeats, *([i.mask] if i.mask else [])]
        for i in images
        if i.status == "kept"
    )
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
