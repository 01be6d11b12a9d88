"""The report in words: one paragraph for people, and the one sentence why nothing can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.dataset.captions.tokens import LIMIT
from trainer.dataset.preparing.assessment import Verdict
from trainer.dataset.split.group_split import MIN_GROUPS_PER_CLASS
from trainer.errors import DatasetError
from trainer.protocol.report import Bucket, CaptionStatistics, Counts, FindingKind, Image, RefusalKind, Refused

#: Below this many groups, one picture more or less in validation changes what it says.
_FEW_GROUPS = 10
#: Shares of a picture that are worth a word when they are cropped away: of all on average, and of one alone.
_WORTH_SAYING_CROPPED, _MUCH_CROPPED = 0.10, 0.25
#: One class seen so many times as often as another is what a model draws when it is asked for the other.
_IMBALANCE = 5
#: Names and numbers in one sentence: the paragraph is read on a telephone.
_MOST_NAMED = 5

#: What one is called, and several of it where that differs.
_KINDS: Mapping[str, tuple[str, ...]] = {
    FindingKind.EXACT_DUPLICATE: ("exact duplicate", "exact duplicates"),
    FindingKind.NEAR_DUPLICATE: ("near duplicate", "near duplicates"),
    FindingKind.BLUR: ("perhaps blurred",),
    FindingKind.TOO_DARK: ("too dark",),
    FindingKind.WASHED_OUT: ("washed out",),
    FindingKind.TOO_SMALL: ("too small",),
    FindingKind.EXTREME_ASPECT: ("extreme aspect",),
    FindingKind.TOO_MANY_PIXELS: ("too many pixels",),
    FindingKind.SCREENSHOT: ("screenshot or page of text", "screenshots or pages of text"),
    FindingKind.OUTLIER: ("unlike the rest",),
    FindingKind.BY_HAND: ("by hand",),
    FindingKind.CAPTION_MOJIBAKE: ("garbled caption", "garbled captions"),
    FindingKind.CAPTION_CONTRADICTORY: ("contradictory caption", "contradictory captions"),
    FindingKind.MASK: ("doubtful mask", "doubtful masks"),
    RefusalKind.UNSAFE_PATH: ("unsafe path", "unsafe paths"),
    RefusalKind.LINK: ("link", "links"),
    RefusalKind.TOO_LARGE: ("too large",),
    RefusalKind.TOO_MANY: ("too many entries",),
    RefusalKind.RATIO: ("zip bomb", "zip bombs"),
    RefusalKind.OVERLAP: ("zip bomb", "zip bombs"),
    RefusalKind.COLLISION: ("name taken twice", "names taken twice"),
    RefusalKind.NESTED_ARCHIVE: ("archive in an archive", "archives in an archive"),
}

#: Worth a person's look; captions that are missing or long, enlarging and near duplicates have sentences of their own.
_TO_LOOK_AT = (
    *(FindingKind.BLUR, FindingKind.TOO_DARK, FindingKind.WASHED_OUT, FindingKind.BLANK, FindingKind.SCREENSHOT),
    *(FindingKind.OUTLIER, FindingKind.EXTREME_ASPECT),
    *(FindingKind.CAPTION_MOJIBAKE, FindingKind.CAPTION_CONTRADICTORY, FindingKind.MASK),
)


def summarize(
    images: Sequence[Image],
    refused: Sequence[Refused],
    counts: Counts,
    buckets: Sequence[Bucket],
    resolution: int,
    captions: CaptionStatistics | None = None,
    advised_folds: int | None = None,
) -> str:
    """One paragraph: what was handed in, what became of it, and what to look at. Only what was measured is said."""
    kept = [image for image in images if image.status == "kept"]
    sentences = [
        _opening(images, kept, counts),
        *_captions(kept),
        *_caption_warnings(kept, counts, captions),
        *_masks(kept),
        *_refused(refused),
        *_near(kept),
        *_upscaled(kept, resolution),
        *_cropped(images, counts, buckets),
        *_classes(kept),
        *_split(kept, advised_folds),
    ]
    return " ".join(sentences)


def nothing_to_train_on(
    sources: Sequence[Path | str], verdicts: Sequence[Verdict], refused: Sequence[Refused]
) -> DatasetError:
    """The error for sources that hold no usable picture: what is wrong, and what to do."""
    name = _name(sources[0]) if len(sources) == 1 else "The upload"
    if verdicts:
        first = verdicts[0].findings
        if len(verdicts) == 1:
            why = next(finding.message for finding in first if finding.action == "dropped")
            return DatasetError(f"{name} holds one picture, and it cannot be used: {why}.", "Add other pictures.")
        why = _tally(f.kind for v in verdicts for f in v.findings if f.action == "dropped")
        message = f"{name} holds {len(verdicts)} pictures, and none of them can be used: {why}."
        return DatasetError(message, "Add pictures of at least 64 px a side, as PNG, JPEG, WebP or HEIC.")
    if len(refused) == 1:
        return DatasetError(f"{refused[0].source} was refused: {refused[0].reason}.", _hint(refused[0].kind))
    if refused:
        message = f"{name} holds no picture that can be opened; {len(refused)} files were refused: {_kinds(refused)}."
        return DatasetError(message, _hint(Counter(entry.kind for entry in refused).most_common(1)[0][0]))
    return DatasetError(f"{name} is empty: it holds no pictures.", "Put PNG, JPEG, WebP or HEIC pictures into it.")


def _name(source: Path | str) -> str:
    return str(source) if str(source).startswith("hf:") else Path(source).name


def _hint(kind: RefusalKind) -> str:
    match kind:
        case RefusalKind.ENCRYPTED:
            return "Make the archive without a password."
        case RefusalKind.UNREACHABLE:
            return "Check the addresses, or download the pictures yourself and hand those in."
        case RefusalKind.DAMAGED:
            return "Make the archive again, or upload it again."
        case RefusalKind.TOO_LARGE | RefusalKind.TOO_MANY | RefusalKind.RATIO | RefusalKind.OVERLAP:
            return "Make an ordinary zip, tar or 7z of fewer or smaller pictures."
        case _:
            return "Upload pictures (PNG, JPEG, WebP, HEIC), or a zip, tar or 7z of them with captions in .txt files."


def _opening(images: Sequence[Image], kept: Sequence[Image], counts: Counts) -> str:
    what = f"{_count(counts.images, 'image', 'images')}: {counts.kept} kept"
    by_hand = sum(image.decision == "keep" for image in kept)
    notes = [f"{by_hand} by hand"] if by_hand else []
    # What a person chose to keep has been looked at.
    doubtful = [_kinds_to_look_at(image) for image in kept if image.decision is None]
    if number := sum(map(bool, doubtful)):
        notes.append(f"{number} to look at: {_tally(kind for kinds in doubtful for kind in kinds)}")
    what += f" ({'; '.join(notes)})" if notes else ""
    if counts.dropped:
        what += f", {counts.dropped} dropped ({_tally(_why_dropped(images))})"
    sides = f"{counts.train}/{counts.validation}/{counts.test}"
    return f"{what}; split {sides} (train/validation/test)."


def _kinds_to_look_at(image: Image) -> set[FindingKind]:
    return {finding.kind for finding in image.findings if finding.kind in _TO_LOOK_AT}


def _why_dropped(images: Sequence[Image]) -> Iterable[FindingKind]:
    """The first reason of each dropped picture, so that the numbers add up."""
    for image in images:
        if image.status == "dropped":
            yield from [finding.kind for finding in image.findings if finding.action == "dropped"][:1]


def _captions(kept: Sequence[Image]) -> list[str]:
    parts = {
        FindingKind.CAPTION_MISSING: "without caption",
        FindingKind.CAPTION_EMPTY: "with an empty caption",
        FindingKind.CAPTION_UNREADABLE: "with a caption that cannot be read",
    }
    said = [f"{number} {words}" for kind, words in parts.items() if (number := _having(kept, kind))]
    return [", ".join(said) + "."] if said else ["Each has a caption."]


def _caption_warnings(kept: Sequence[Image], counts: Counts, captions: CaptionStatistics | None) -> list[str]:
    said = []
    if counts.automatic:
        said.append(f"{_count(counts.automatic, 'caption is', 'captions are')} automatic and not looked at yet.")
    if captions is not None and captions.too_long:
        longer = _count(captions.too_long, "caption is", "captions are")
        said.append(f"{longer} longer than the {LIMIT} tokens that are read.")
    if identical := _having(kept, FindingKind.CAPTION_IDENTICAL):
        said.append(f"{_count(identical, 'has', 'have')} a caption that different pictures have too.")
    if captions is not None and captions.trigger and counts.captioned:
        share = f"{captions.with_trigger} of {counts.captioned}"
        if captions.with_trigger == counts.captioned:
            share = "each" if counts.captioned > 1 else "the only"
        said.append(f"“{captions.trigger}” is in {share} caption{'s' if ' of ' in share else ''}.")
    return said


def _masks(kept: Sequence[Image]) -> list[str]:
    masked = sum(image.mask is not None for image in kept)
    if not masked:
        return []
    return [f"{_count(masked, 'has', 'have')} a mask, for a loss that is to be masked."]


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


def _upscaled(kept: Sequence[Image], resolution: int) -> list[str]:
    upscaled = _having(kept, FindingKind.UPSCALED)
    if not upscaled:
        return []
    which = f"All {upscaled} are" if upscaled == len(kept) > 1 else _count(upscaled, "is", "are")
    return [f"{which} smaller than {resolution} px and will be enlarged."]


def _cropped(images: Sequence[Image], counts: Counts, buckets: Sequence[Bucket]) -> list[str]:
    said = []
    mean = sum(bucket.images * bucket.mean_cropped for bucket in buckets) / max(counts.kept, 1)
    if mean > _WORTH_SAYING_CROPPED:
        said.append(f"Cropping to the training shapes takes {mean:.0%} of a picture away on average.")
    shares = {number: image.cropped or 0.0 for number, image in enumerate(images, start=1)}
    much = sorted((n for n, share in shares.items() if share > _MUCH_CROPPED), key=lambda n: -shares[n])
    if len(much) == 1:
        said.append(f"No. {much[0]} loses {shares[much[0]]:.0%} of its area by cropping.")
    elif much:
        said.append(f"{len(much)} lose more than a quarter by cropping (no. {_named([str(n) for n in much])}).")
    return said


def _classes(kept: Sequence[Image]) -> list[str]:
    """How many pictures each class has, where there are several, and which is seen too rarely."""
    pictures = Counter(image.class_name for image in kept if image.class_name)
    if len(pictures) < 2:
        return []
    said = [f"Classes: {_named([f'{name} {count}' for name, count in pictures.most_common()])}."]
    seen: Counter[str] = Counter()
    for image in kept:
        if image.class_name:
            seen[image.class_name] += image.repeats
    (most, often), *_, (least, rarely) = seen.most_common()
    if often > _IMBALANCE * rarely:
        said.append(f"“{most}” is seen {often / rarely:.0f} times as often as “{least}”.")
    return said


def _split(kept: Sequence[Image], advised_folds: int | None) -> list[str]:
    groups = len({image.group for image in kept})
    pictures = "one picture" if groups == 1 else f"{groups} different pictures"
    if groups < 3:
        return [f"With {pictures} there is nothing to validate on: all train, and early stopping is blind."]
    if groups < _FEW_GROUPS:
        advice = f", or compare with {advised_folds}-fold cross-validation" if advised_folds else ""
        return [f"With {pictures} the split is a rough one: read the validation loss with care{advice}."]
    return _small_classes(kept)


def _small_classes(kept: Sequence[Image]) -> list[str]:
    """Classes that the split had to pool with others."""
    by_class: dict[str, set[int | None]] = {}
    for image in kept:
        by_class.setdefault(image.class_name, set()).add(image.group)
    small = [name for name, held in sorted(by_class.items()) if name and len(held) < MIN_GROUPS_PER_CLASS]
    if len(by_class) < 2 or not small:
        return []
    which = f"{len(small)} classes have" if len(small) > 2 else f"{' and '.join(f'“{n}”' for n in small)} "
    which += "" if len(small) > 2 else "has" if len(small) == 1 else "have"
    return [f"{which} fewer than {MIN_GROUPS_PER_CLASS} different pictures: too few for a share in each split."]


def _having(kept: Sequence[Image], kind: FindingKind) -> int:
    return sum(any(finding.kind is kind for finding in image.findings) for image in kept)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _named(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names) if rest <= 1 else f"{', '.join(names[:_MOST_NAMED])} and {rest} more"


def _kinds(refused: Iterable[Refused]) -> str:
    return _tally(entry.kind for entry in refused)


def _tally(kinds: Iterable[str]) -> str:
    """`2 exact duplicates, 1 corrupt`: the commonest first; what has one name is one thing."""
    names = Counter(_KINDS.get(kind, (str(kind),)) for kind in kinds)
    return ", ".join(f"{count} {name[0 if count == 1 else -1]}" for name, count in names.most_common())
