"""Pictures that are one picture twice: exact copies are dropped but one, near-duplicates joined into groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trainer.dataset.images.image_similarity import MAX_DIFFERENCE, difference
from trainer.dataset.images.near_duplicates import Groups, exact_copies, near_pairs
from trainer.dataset.layout import THUMBNAILS
from trainer.dataset.preparing.assessment import Verdict
from trainer.dataset.preparing.intake import Folder
from trainer.dataset.progress import Progress
from trainer.protocol.report import Finding, FindingKind


def drop_copies(verdicts: Sequence[Verdict]) -> None:
    """Drop all but one of those whose upright pixels are equal."""
    usable = [verdict for verdict in verdicts if verdict.decoded is not None and not verdict.is_dropped]
    pixels = [verdict.decoded.pixels_sha256 if verdict.decoded else None for verdict in usable]
    captioned = [bool(verdict.caption and verdict.caption.text) for verdict in usable]
    for index, kept in exact_copies(pixels, captioned).items():
        other = usable[kept].found
        message = f"the same picture as {other.source}"
        usable[index].findings.append(
            Finding(kind=FindingKind.EXACT_DUPLICATE, action="dropped", message=message, other=other.source)
        )


def group(verdicts: Sequence[Verdict], folder: Folder, progress: Progress) -> None:
    """Join near-duplicates, which are kept, and exact copies into groups, which the split never tears apart."""
    by_source = {verdict.found.source: verdict for verdict in verdicts}
    by_number = {verdict.found.number: verdict for verdict in verdicts}
    looks = {v.found.number: v.decoded.look for v in verdicts if v.decoded is not None and not v.is_dropped}
    groups = Groups(max(by_number, default=0) + 1)
    for one, other, measure in near_pairs(looks, partial(_likeness, folder, by_number), progress):
        groups.join(one, other)
        for this, that in ((one, other), (other, one)):
            _add_near(by_number[this], by_number[that], measure)
    for number in looks:
        by_number[number].group = groups.find(number)
    for verdict in verdicts:
        for finding in verdict.findings:
            if finding.kind is FindingKind.EXACT_DUPLICATE and finding.other is not None:
                verdict.group = by_source[finding.other].group


def _likeness(folder: Folder, by_number: dict[int, Verdict], one: int, other: int, mirrored: bool) -> float | None:
    files = [folder.root / THUMBNAILS / decoded.thumbnail for n in (one, other) if (decoded := by_number[n].decoded)]
    measure = difference(*files, mirrored=mirrored)
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
