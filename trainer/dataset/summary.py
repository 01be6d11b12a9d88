"""The report in words: one paragraph for people, and the one sentence why nothing can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.dataset.findings import Verdict
from trainer.errors import DatasetError
from trainer.protocol.report import Bucket, Counts, FindingKind, Image, RefusalKind, Refused

#: Below this many groups, one picture more or less in validation changes what it says.
_FEW_GROUPS = 10
_WORTH_SAYING_CROPPED = 0.10

_KINDS: Mapping[str, str] = {
    FindingKind.EXACT_DUPLICATE: "exact duplicate",
    FindingKind.TOO_SMALL: "too small",
    FindingKind.EXTREME_ASPECT: "extreme aspect",
    FindingKind.UNSUPPORTED: "unsupported",
    FindingKind.TOO_MANY_PIXELS: "too many pixels",
    RefusalKind.UNSAFE_PATH: "unsafe path",
    RefusalKind.TOO_LARGE: "too large",
    RefusalKind.TOO_MANY: "too many entries",
    RefusalKind.RATIO: "zip bomb",
    RefusalKind.OVERLAP: "zip bomb",
    RefusalKind.COLLISION: "name taken twice",
    RefusalKind.NESTED_ARCHIVE: "archive in an archive",
}


def summarize(
    images: Sequence[Image], refused: Sequence[Refused], counts: Counts, buckets: Sequence[Bucket], resolution: int
) -> str:
    """One paragraph: what was handed in, what became of it, and what to look at."""
    kept = [image for image in images if image.status == "kept"]
    sentences = [_opening(images, counts), *_captions(kept), *_refused(refused), *_near(kept)]
    upscaled = sum(_has(image, FindingKind.UPSCALED) for image in kept)
    if upscaled:
        sentences.append(f"{_count(upscaled, 'is', 'are')} smaller than {resolution} px and will be enlarged.")
    cropped = sum(bucket.images * bucket.mean_cropped for bucket in buckets) / max(counts.kept, 1)
    if cropped > _WORTH_SAYING_CROPPED:
        sentences.append(f"Cropping to the training shapes takes {cropped:.0%} of a picture away on average.")
    sentences += _small(len({image.group for image in kept}))
    return " ".join(sentences)


def nothing_to_train_on(
    sources: Sequence[Path], verdicts: Sequence[Verdict], refused: Sequence[Refused]
) -> DatasetError:
    """The error for sources that hold no usable picture: what is wrong, and what to do."""
    name = sources[0].name if len(sources) == 1 else "The upload"
    if verdicts:
        first = verdicts[0].findings
        if len(verdicts) == 1:
            why = next(finding.message for finding in first if finding.action == "dropped")
            return DatasetError(f"{name} holds one picture, and it cannot be used: {why}.", "Add other pictures.")
        why = _tally(f.kind for v in verdicts for f in v.findings if f.action == "dropped")
        message = f"{name} holds {len(verdicts)} pictures, and none of them can be used: {why}."
        return DatasetError(message, "Add pictures of at least 64 px a side, as PNG, JPEG or WebP.")
    if len(refused) == 1:
        return DatasetError(f"{refused[0].source} was refused: {refused[0].reason}.", _hint(refused[0].kind))
    if refused:
        message = f"{name} holds no picture that can be opened; {len(refused)} files were refused: {_kinds(refused)}."
        return DatasetError(message, _hint(Counter(entry.kind for entry in refused).most_common(1)[0][0]))
    return DatasetError(f"{name} is empty: it holds no pictures.", "Put PNG, JPEG or WebP pictures into it.")


def _hint(kind: RefusalKind) -> str:
    match kind:
        case RefusalKind.ENCRYPTED:
            return "Make the archive without a password."
        case RefusalKind.DAMAGED:
            return "Make the archive again, or upload it again."
        case RefusalKind.TOO_LARGE | RefusalKind.TOO_MANY | RefusalKind.RATIO | RefusalKind.OVERLAP:
            return "Make an ordinary zip of fewer or smaller pictures."
        case _:
            return "Upload pictures (PNG, JPEG, WebP), or a zip of them with captions in .txt files."


def _opening(images: Sequence[Image], counts: Counts) -> str:
    what = f"{counts.images} image{'s' if counts.images != 1 else ''}: {counts.kept} kept"
    if counts.dropped:
        why = _tally(f.kind for image in images for f in image.findings if f.action == "dropped")
        what += f", {counts.dropped} dropped ({why})"
    sides = f"{counts.train}/{counts.validation}/{counts.test}"
    return f"{what}; split {sides} (train/validation/test)."


def _captions(kept: Sequence[Image]) -> list[str]:
    kinds = Counter(f.kind for image in kept for f in image.findings)
    parts = {
        FindingKind.CAPTION_MISSING: "without caption",
        FindingKind.CAPTION_EMPTY: "with an empty caption",
        FindingKind.CAPTION_UNREADABLE: "with a caption that cannot be read",
    }
    said = [f"{kinds[kind]} {words}" for kind, words in parts.items() if kinds[kind]]
    return [", ".join(said) + "."] if said else ["Each has a caption."]


def _refused(refused: Sequence[Refused]) -> list[str]:
    if not refused:
        return []
    return [f"{len(refused)} other file{'s were' if len(refused) > 1 else ' was'} refused ({_kinds(refused)})."]


def _near(kept: Sequence[Image]) -> list[str]:
    sizes = Counter(image.group for image in kept)
    held = [size for size in sizes.values() if size > 1]
    if not held:
        return []
    groups = "one group" if len(held) == 1 else f"{len(held)} groups"
    return [f"{sum(held)} are near duplicates of one another ({groups}, each kept in one split)."]


def _small(groups: int) -> list[str]:
    pictures = "one picture" if groups == 1 else f"{groups} different pictures"
    if groups < 3:
        return [f"With {pictures} there is nothing to validate on: all train, and early stopping is blind."]
    if groups < _FEW_GROUPS:
        return [f"With {pictures} a 70/15/15 split is a rough one: read the validation loss with care."]
    return []


def _has(image: Image, kind: FindingKind) -> bool:
    return any(finding.kind is kind for finding in image.findings)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _kinds(refused: Iterable[Refused]) -> str:
    return _tally(entry.kind for entry in refused)


def _tally(kinds: Iterable[str]) -> str:
    counted = Counter(_KINDS.get(kind, str(kind)) for kind in kinds)
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())
