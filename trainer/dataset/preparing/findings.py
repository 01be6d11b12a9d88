"""What is found in each picture, and what follows: dropped, or kept with a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.dataset.buckets import bucket_for, default_step, is_upscaled
from trainer.dataset.captions.caption_checks import check_captions
from trainer.dataset.images.decode_workers import Decoded
from trainer.dataset.images.decoding import PictureError
from trainer.dataset.images.outliers import find_outliers
from trainer.dataset.images.quality import findings_of
from trainer.dataset.limits import Limits
from trainer.dataset.preparing.assessment import Verdict, open_verdict
from trainer.dataset.preparing.grouping import drop_copies, group
from trainer.dataset.preparing.intake import Folder, Found
from trainer.dataset.progress import Progress
from trainer.protocol.edits import Edits
from trainer.protocol.report import Finding, FindingKind


def judge(
    found: Sequence[Found], folder: Folder, limits: Limits, resolution: int, edits: Edits, progress: Progress
) -> list[Verdict]:
    """A verdict for each picture, in order; pictures that show the same share a group (the lowest number in it)."""
    verdicts = [open_verdict(one, edits) for one in found]
    for verdict in verdicts:
        verdict.findings += _of_decoding(verdict.found.outcome)
        if verdict.decoded is not None:
            verdict.findings += _of_size(verdict.decoded, limits)
            verdict.findings += findings_of(verdict.decoded.quality)
            _decide(verdict)
    drop_copies(verdicts)
    group(verdicts, folder, progress)
    kept = {verdict.found.number: verdict for verdict in verdicts if not verdict.is_dropped}
    _judge_together(kept, resolution, edits)
    return verdicts


def _judge_together(kept: Mapping[int, Verdict], resolution: int, edits: Edits) -> None:
    """What can be said of a kept picture only beside the others."""
    step = default_step(resolution, len(kept))
    groups = {number: verdict.group or number for number, verdict in kept.items()}
    # One flat colour is unlike any picture, and said to be blank already.
    shown = {n: v.decoded for n, v in kept.items() if v.decoded is not None and not v.decoded.look.is_blank}
    strangers = find_outliers({number: decoded.feature for number, decoded in shown.items()}, groups)
    captions = {number: verdict.caption.text for number, verdict in kept.items() if verdict.caption}
    sources = {number: verdict.found.source for number, verdict in kept.items()}
    of_captions = check_captions(captions, groups, trigger=edits.rules.trigger, sources=sources)
    for number, verdict in kept.items():
        if number in strangers:
            verdict.findings.append(strangers[number])
        if verdict.decoded is not None:
            verdict.findings += _of_resolution(verdict.decoded, resolution, step)
        verdict.findings += _of_caption(verdict)
        verdict.findings += of_captions.get(number, [])


def _decide(verdict: Verdict) -> None:
    """Let a person's word stand over what was measured."""
    if verdict.decision == "keep":
        verdict.findings = [
            finding.model_copy(update={"action": "kept", "message": f"{finding.message}; kept by hand"})
            if finding.action == "dropped"
            else finding
            for finding in verdict.findings
        ]
    elif verdict.decision == "drop":
        verdict.findings.append(Finding(kind=FindingKind.BY_HAND, action="dropped", message="dropped by hand"))


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
    found = [Finding(kind=FindingKind.UNSUPPORTED, action="kept", message=note) for note in outcome.notes]
    if outcome.mask_problem:
        found.append(Finding(kind=FindingKind.MASK, action="kept", message=outcome.mask_problem))
    return found


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


def _of_caption(verdict: Verdict) -> list[Finding]:
    caption = verdict.caption
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
