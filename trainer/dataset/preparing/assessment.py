"""Assesses the images: findings, exact copies and near duplicates, the effective caption, and what a person decided.

Each step takes records and returns new ones. Findings either drop an image or warn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from trainer.console import Progress
from trainer.dataset.captions.caption_checks import check_captions
from trainer.dataset.captions.caption_rules import apply_rules
from trainer.dataset.captions.sidecars import Caption
from trainer.dataset.images.decode_workers import usable_cores
from trainer.dataset.images.duplicate_candidates import burst_pairs
from trainer.dataset.images.image_agreement import MAX_DIFFERENCE
from trainer.dataset.images.image_features import find_outliers
from trainer.dataset.images.image_quality import quality_findings
from trainer.dataset.images.image_record import Assessment, ImagePixels, ImageRecord
from trainer.dataset.images.image_registration import ThumbnailComparer
from trainer.dataset.images.mask_files import probable_masks
from trainer.dataset.images.near_duplicates import ExactCopy, UnionFind, exact_copies, near_pairs
from trainer.dataset.images.perceptual_hash import HashTable
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing.decode_cache import DecodedImages
from trainer.protocol.edits import CaptionRules, Crop, Edits, Layout
from trainer.protocol.report import CAPTION_BY_HAND, CAPTION_BY_RULE, Finding, FindingKind
from trainer.protocol.text import _


def assess(
    records: Sequence[ImageRecord],
    decoded: DecodedImages,
    thumbnails: Path,
    *,
    limits: Limits,
    edits: Edits,
    progress: Progress,
) -> list[ImageRecord]:
    """Return the records, in order, with the findings of each alone, and in groups of near duplicates.

    Args:
        records: Decoded images.
        decoded: What was measured of them.
        thumbnails: The folder of their thumbnails.
        limits: For the smallest side and the largest aspect ratio.
        edits: Decisions and captions by a person.
        progress: Called while images are compared.
    """
    alone = [_assess_alone(record, limits, edits) for record in records]
    if edits.layout is Layout.AUTO:
        alone = _without_probable_masks(alone, thumbnails)
    return _group_duplicates(alone, decoded, thumbnails, progress)


def kept_pixels(records: Iterable[ImageRecord]) -> dict[int, ImagePixels]:
    """The pixels of the kept images by number."""
    return {record.number: record.pixels for record in records if record.pixels is not None and record.is_kept}


def _assess_alone(record: ImageRecord, limits: Limits, edits: Edits) -> ImageRecord:
    """Everything that does not depend on other images."""
    pixels, handed_in = record.pixels, record.labels.caption
    if pixels is None:
        return replace(record, assessment=replace(record.assessment, caption=handed_in))
    caption, is_automatic = _choose_caption(handed_in, pixels.pixels_sha256, edits)
    decision = edits.decisions.get(pixels.pixels_sha256)
    findings = [*_decoder_findings(pixels), *_size_findings(pixels, edits, limits), *quality_findings(pixels.quality)]
    assessment = Assessment(
        caption=caption if record.labels.is_regularization else _with_rules(caption, edits.rules),
        is_caption_automatic=is_automatic,
        decision=decision,
        findings=tuple(_with_decision(findings, decision)),
    )
    return replace(record, assessment=assessment)


def _without_probable_masks(records: Sequence[ImageRecord], thumbnails: Path) -> list[ImageRecord]:
    """Drop what is probably a mask in a folder that does not say so, unless a person decided to keep it."""
    kept = kept_pixels(records)
    sources = {record.number: record.source for record in records if record.number in kept}
    files = {number: thumbnails / pixels.thumbnail for number, pixels in kept.items()}
    masks = dict(probable_masks(sources, files))

    def checked(record: ImageRecord) -> ImageRecord:
        if record.number not in masks:
            return record
        other = sources[masks[record.number]]
        message = _("it is black and white and has the name of {other}: probably its mask", other=other)
        finding = Finding(kind=FindingKind.MASK, action="dropped", message=message, other=other)
        return record.with_findings(*_with_decision([finding], record.assessment.decision))

    return [checked(record) for record in records]


def _choose_caption(handed_in: Caption | None, pixels_sha256: str, edits: Edits) -> tuple[Caption | None, bool]:
    """The caption by a person, else the one handed in, else a model's; and whether it still needs a review."""
    if pixels_sha256 in edits.captions:
        text = edits.captions[pixels_sha256].strip()
        return (Caption(source=CAPTION_BY_HAND, text=text) if text else None), False
    if handed_in is not None and handed_in.text:
        return handed_in, False
    if text := edits.automatic.get(pixels_sha256, "").strip():
        return Caption(source=edits.captioner or "a captioning model", text=text), pixels_sha256 not in edits.reviewed
    return handed_in, False


def _with_rules(caption: Caption | None, rules: CaptionRules) -> Caption | None:
    if caption is not None and not caption.problem:
        text, *others = dict.fromkeys(apply_rules(each, rules) for each in (caption.text, *caption.others))
        return Caption(source=caption.source, text=text, others=tuple(others))
    if caption is None and rules != CaptionRules() and (text := apply_rules("", rules)):
        return Caption(source=CAPTION_BY_RULE, text=text)
    return caption


def _with_decision(findings: Sequence[Finding], decision: Literal["keep", "drop"] | None) -> Iterator[Finding]:
    """A person's decision overrules the findings."""
    for finding in findings:
        if decision == "keep" and finding.action == "dropped":
            message = _("{finding}; kept by hand", finding=finding.message)
            yield replace(finding, action="kept", message=message)
        else:
            yield finding
    if decision == "drop":
        yield Finding(kind=FindingKind.BY_HAND, action="dropped", message=_("dropped by hand"))


def _decoder_findings(pixels: ImagePixels) -> Iterator[Finding]:
    for note in pixels.notes:
        yield Finding(kind=FindingKind.UNSUPPORTED, action="kept", message=note)
    if pixels.mask_problem:
        yield Finding(kind=FindingKind.MASK, action="kept", message=pixels.mask_problem)


def _size_findings(pixels: ImagePixels, edits: Edits, limits: Limits) -> Iterator[Finding]:
    # Of what its crop leaves.
    width, height = edits.crops.get(pixels.pixels_sha256, Crop()).size(pixels.width, pixels.height)
    size = f"{width}x{height}"
    short, long = sorted((width, height))
    aspect = long / short
    if short < limits.min_side_px:
        message = _("{size} px; each side must have at least {n} px", size=size, n=limits.min_side_px)
        yield _measured(FindingKind.TOO_SMALL, short, limits.min_side_px, message, action="dropped")
    elif aspect > limits.max_aspect and short < limits.min_short_side_px:
        shortest = limits.min_short_side_px
        message = _("{size} px is {n:.1f}:1 with a short side under {least} px", size=size, n=aspect, least=shortest)
        yield _measured(FindingKind.EXTREME_ASPECT, aspect, limits.max_aspect, message, action="dropped")
    elif aspect > limits.max_aspect:
        message = _("{size} px is {n:.1f}:1; much of it is cropped away", size=size, n=aspect)
        yield _measured(FindingKind.EXTREME_ASPECT, aspect, limits.max_aspect, message)


def _group_duplicates(
    records: Sequence[ImageRecord], decoded: DecodedImages, thumbnails: Path, progress: Progress
) -> list[ImageRecord]:
    """Drop exact copies, and give near duplicates and copies a common group, which the split never divides."""
    sources = {record.number: record.source for record in records}
    copies = _exact_copies(records)
    kept = {number: pixels for number, pixels in kept_pixels(records).items() if number not in copies}
    groups, nearest = _near_duplicates(kept, decoded, sources, thumbnails, progress)

    def with_duplicates(record: ImageRecord) -> ImageRecord:
        original = copies.get(record.number, record.number)
        if original not in kept:
            return record
        record = replace(record, assessment=replace(record.assessment, group=groups.find(original)))
        if record.number in copies:
            return record.with_findings(_copy_finding(sources[original]))
        if record.number in nearest:
            other, difference = nearest[record.number]
            return record.with_findings(_near_finding(sources[other], difference))
        return record

    return [with_duplicates(record) for record in records]


def _exact_copies(records: Sequence[ImageRecord]) -> dict[int, int]:
    """Map the number of each image with the same pixels as another to the number of the one that is kept."""
    kept = [record for record in records if record.pixels is not None and record.is_kept]
    copies = exact_copies([_as_copy(record) for record in kept])
    return {kept[index].number: kept[original].number for index, original in copies.items()}


def _as_copy(record: ImageRecord) -> ExactCopy:
    pixels, caption = record.pixels, record.assessment.caption
    assert pixels is not None, "a kept image has pixels"
    return ExactCopy(
        pixels_sha256=pixels.pixels_sha256,
        is_captioned=bool(caption and caption.text),
        area=pixels.width * pixels.height,
        source=record.source,
    )


def _near_duplicates(
    pixels: Mapping[int, ImagePixels],
    decoded: DecodedImages,
    sources: Mapping[int, str],
    thumbnails: Path,
    progress: Progress,
) -> tuple[UnionFind, dict[int, tuple[int, float]]]:
    """Groups of near duplicates, and for each image its nearest duplicate with the difference: one finding suffices."""
    times = {number: each.captured_at for number, each in pixels.items() if each.captured_at is not None}
    bursts = burst_pairs({number: sources[number] for number in pixels}, times)
    comparer = ThumbnailComparer({number: thumbnails / each.thumbnail for number, each in pixels.items()}, bursts)
    hashes = HashTable((number, decoded.read(each).hashes) for number, each in pixels.items())
    groups = UnionFind(max(pixels, default=0) + 1)
    nearest: dict[int, tuple[int, float]] = {}
    for one, other, measured in near_pairs(hashes, comparer.difference, bursts, progress, usable_cores()):
        groups.join(one, other)
        for this, that in ((one, other), (other, one)):
            if this not in nearest or measured < nearest[this][1]:
                nearest[this] = that, measured
    return groups, nearest


def _copy_finding(original: str) -> Finding:
    message = _("the same image as {other}", other=original)
    return Finding(kind=FindingKind.EXACT_DUPLICATE, action="dropped", message=message, other=original)


def _near_finding(other: str, difference: float) -> Finding:
    message = _("nearly the same as {other}; they stay in one split", other=other)
    finding = _measured(FindingKind.NEAR_DUPLICATE, difference, MAX_DIFFERENCE, message)
    return replace(finding, other=other)


def measured_features(records: Iterable[ImageRecord], decoded: DecodedImages) -> dict[int, bytes]:
    """`image_feature` of the kept images by number, without class images, which look different."""
    kept = kept_pixels(record for record in records if not record.labels.is_regularization)
    measured = ((number, decoded.read(pixels)) for number, pixels in kept.items())
    # An image of one flat color differs from all others, and has a finding for it.
    return {number: each.feature for number, each in measured if not each.hashes.is_blank}


def assess_together(records: Sequence[ImageRecord], features: Mapping[int, bytes], edits: Edits) -> list[ImageRecord]:
    """Add the findings of the kept images that depend on the other kept images, and those of their captions."""
    # Class images share their captions.
    kept = [record for record in records if record.is_kept and not record.labels.is_regularization]
    groups = {record.number: record.assessment.group or record.number for record in kept}
    outliers = find_outliers(features, groups)
    of_captions = check_captions(
        {record.number: caption.text for record in kept if (caption := record.assessment.caption)},
        groups,
        others={record.number: caption.others for record in kept if (caption := record.assessment.caption)},
        trigger=edits.rules.trigger,
        sources={record.number: record.source for record in kept},
    )

    def findings(record: ImageRecord) -> Iterator[Finding]:
        if record.number in outliers:
            yield outliers[record.number]
        yield from _caption_findings(record.assessment.caption)
        yield from of_captions.get(record.number, [])

    return [record.with_findings(*findings(record)) if record.is_kept else record for record in records]


def _caption_findings(caption: Caption | None) -> Iterator[Finding]:
    if caption is None:
        yield Finding(kind=FindingKind.CAPTION_MISSING, action="kept", message=_("it has no caption"))
    elif caption.problem:
        message = _("its caption {source} cannot be read: {reason}", source=caption.source, reason=caption.problem)
        yield Finding(kind=FindingKind.CAPTION_UNREADABLE, action="kept", message=message)
    elif not caption.text:
        message = _("its caption {source} is empty", source=caption.source)
        yield Finding(kind=FindingKind.CAPTION_EMPTY, action="kept", message=message)


def _measured(
    kind: FindingKind, measure: float, threshold: float, message: str, action: Literal["dropped", "kept"] = "kept"
) -> Finding:
    return Finding(kind=kind, measure=round(measure, 3), threshold=threshold, action=action, message=message)
