"""What is found in each picture, and what follows: dropped, or kept with a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from trainer.dataset.buckets import bucket_for, default_step, is_upscaled
from trainer.dataset.duplicates import Groups, exact_copies, near_pairs
from trainer.dataset.intake import Folder, Found, Progress
from trainer.dataset.likeness import MAX_DIFFERENCE, difference
from trainer.dataset.limits import Limits
from trainer.dataset.picture import PictureError
from trainer.dataset.workers import Decoded
from trainer.protocol.report import Finding, FindingKind


@dataclass(kw_only=True)
class Verdict:
    """One picture and all that was found in it."""

    found: Found
    findings: list[Finding] = field(default_factory=list)
    group: int | None = None

    @property
    def decoded(self) -> Decoded | None:
        return self.found.outcome if isinstance(self.found.outcome, Decoded) else None

    @property
    def is_dropped(self) -> bool:
        return any(finding.action == "dropped" for finding in self.findings)


def judge(found: Sequence[Found], folder: Folder, limits: Limits, resolution: int, progress: Progress) -> list[Verdict]:
    """A verdict for each picture, in order; pictures that show the same share a group (the lowest number in it)."""
    verdicts = [Verdict(found=one) for one in found]
    for verdict in verdicts:
        verdict.findings += _of_decoding(verdict.found.outcome)
        if verdict.decoded is not None:
            verdict.findings += _of_size(verdict.decoded, limits)
            verdict.findings += _of_caption(verdict.found)
    _drop_copies(verdicts)
    _group(verdicts, folder, progress)
    kept = [verdict for verdict in verdicts if not verdict.is_dropped]
    step = default_step(resolution, len(kept))
    for verdict in kept:
        if verdict.decoded is not None:
            verdict.findings += _of_resolution(verdict.decoded, resolution, step)
    return verdicts


def _of_decoding(outcome: Decoded | PictureError) -> list[Finding]:
    if isinstance(outcome, PictureError):
        return [
            Finding(
                kind=outcome.kind,
                measure=outcome.measure,
                threshold=outcome.threshold,
                action="dropped",
                message=outcome.message,
            )
        ]
    return [Finding(kind=FindingKind.UNSUPPORTED, action="kept", message=note) for note in outcome.notes]


def _of_size(decoded: Decoded, limits: Limits) -> list[Finding]:
    short, long = sorted((decoded.width, decoded.height))
    if short < limits.min_side_px:
        message = f"{decoded.width}x{decoded.height} px; at least {limits.min_side_px} px a side are needed"
        return [_finding(FindingKind.TOO_SMALL, short, limits.min_side_px, "dropped", message)]
    aspect = long / short
    if aspect <= limits.max_aspect:
        return []
    is_thin = short < limits.min_short_side_px
    message = f"{decoded.width}x{decoded.height} px is {aspect:.1f}:1"
    message += f", with a short side under {limits.min_short_side_px} px" if is_thin else "; much of it is cropped away"
    return [_finding(FindingKind.EXTREME_ASPECT, aspect, limits.max_aspect, "dropped" if is_thin else "kept", message)]


def _of_resolution(decoded: Decoded, resolution: int, step: int) -> list[Finding]:
    size = decoded.width, decoded.height
    bucket = bucket_for(*size, resolution, step)
    if not is_upscaled(size, bucket):
        return []
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    message = f"{size[0]}x{size[1]} px is enlarged {scale:.1f} times to train at {resolution} px"
    return [_finding(FindingKind.UPSCALED, scale, 1.0, "kept", message)]


def _of_caption(found: Found) -> list[Finding]:
    caption = found.caption
    if caption is None:
        return [Finding(kind=FindingKind.CAPTION_MISSING, action="kept", message="it has no caption")]
    if caption.problem:
        message = f"its caption {caption.source} cannot be read: {caption.problem}"
        return [Finding(kind=FindingKind.CAPTION_UNREADABLE, action="kept", message=message)]
    if not caption.text:
        message = f"its caption {caption.source} is empty"
        return [Finding(kind=FindingKind.CAPTION_EMPTY, action="kept", message=message)]
    return []


def _finding(kind: FindingKind, measure: float, threshold: float, action: str, message: str) -> Finding:
    return Finding.model_validate(
        {"kind": kind, "measure": round(measure, 3), "threshold": threshold, "action": action, "message": message}
    )


def _drop_copies(verdicts: Sequence[Verdict]) -> None:
    usable = [verdict for verdict in verdicts if verdict.decoded is not None and not verdict.is_dropped]
    pixels = [verdict.decoded.pixels_sha256 if verdict.decoded else None for verdict in usable]
    captioned = [bool(verdict.found.caption and verdict.found.caption.text) for verdict in usable]
    for index, kept in exact_copies(pixels, captioned).items():
        other = usable[kept].found
        message = f"the same picture as {other.source}"
        usable[index].findings.append(
            Finding(kind=FindingKind.EXACT_DUPLICATE, action="dropped", message=message, other=other.source)
        )


def _group(verdicts: Sequence[Verdict], folder: Folder, progress: Progress) -> None:
    """Join near-duplicates, which are kept, and exact copies into groups, which the split never tears apart."""
    by_source = {verdict.found.source: verdict for verdict in verdicts}
    by_number = {verdict.found.number: verdict for verdict in verdicts}
    looks = {v.found.number: v.decoded.look for v in verdicts if v.decoded is not None and not v.is_dropped}
    groups = Groups(max(by_number, default=0) + 1)
    progress("comparing", 0, 1)
    for one, other, measure in near_pairs(looks, partial(_likeness, folder)):
        groups.join(one, other)
        for this, that in ((one, other), (other, one)):
            _add_near(by_number[this], by_number[that], measure)
    progress("comparing", 1, 1)
    for number in looks:
        by_number[number].group = groups.find(number)
    for verdict in verdicts:
        for finding in verdict.findings:
            if finding.kind is FindingKind.EXACT_DUPLICATE and finding.other is not None:
                verdict.group = by_source[finding.other].group


def _likeness(folder: Folder, one: int, other: int, mirrored: bool) -> float | None:
    measure = difference(folder.thumbnail(one), folder.thumbnail(other), mirrored=mirrored)
    return measure if measure <= MAX_DIFFERENCE else None


def _add_near(verdict: Verdict, other: Verdict, measure: float) -> None:
    """One finding a picture, of its nearest neighbour: a burst of 20 shots needs no 19 of them."""
    known = next((f for f in verdict.findings if f.kind is FindingKind.NEAR_DUPLICATE), None)
    if known is not None:
        if known.measure is not None and known.measure <= measure:
            return
        verdict.findings.remove(known)
    verdict.findings.append(
        Finding(
            kind=FindingKind.NEAR_DUPLICATE,
            measure=round(measure, 3),
            threshold=MAX_DIFFERENCE,
            action="kept",
            message=f"nearly the same as {other.found.source}; they stay in one split",
            other=other.found.source,
        )
    )
