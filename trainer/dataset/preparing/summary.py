"""The report in words: one paragraph for people, and the sentence that tells why nothing can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainer.dataset.captions.caption_checks import MAX_TOKENS
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.split.group_split import MIN_GROUPS_PER_CLASS
from trainer.errors import DatasetError
from trainer.protocol.report import CaptionStatistics, Counts, DatasetReport, FindingKind, Image, RefusalKind, Refused
from trainer.protocol.text import _, listed, ngettext

#: Below this number of groups, one image more or less in validation changes the result.
_FEW_GROUPS = 10
#: Cropped shares that are mentioned: of all images on average, and of single ones.
_MENTIONED_MEAN_CROP, _MENTIONED_CROP = 0.10, 0.25
#: If one class is seen so many times as often as another, the model draws it in place of the other.
_IMBALANCE = 5
#: Names in one sentence: the paragraph is read on a phone.
_MAX_NAMED = 5

#: Findings that ask for a look; missing and long captions, enlarging and near duplicates have their own sentences.
_TO_REVIEW = {
    *(FindingKind.BLUR, FindingKind.TOO_DARK, FindingKind.WASHED_OUT, FindingKind.BLANK, FindingKind.SCREENSHOT),
    *(FindingKind.OUTLIER, FindingKind.EXTREME_ASPECT, FindingKind.MASK),
    *(FindingKind.CAPTION_MOJIBAKE, FindingKind.CAPTION_CONTRADICTORY),
}


def summarize(report: DatasetReport) -> str:
    """Summarize a report in one paragraph: the counts, and what should be looked at. Only findings are mentioned."""
    kept = [image for image in report.images if image.status == "kept"]
    sentences = [
        _counts(report, kept),
        *_missing_captions(kept),
        *_doubtful_captions(kept, report.counts, report.captions),
        *_masks(kept),
        *_refused(report.refused),
        *_near_duplicates(kept),
        *_upscaled(kept, report.resolution),
        *_cropped(report),
        *_classes(kept),
        *_split(kept, report.advised_folds),
    ]
    return " ".join(sentences)


def nothing_to_train_on(
    sources: Sequence[Path | str], records: Sequence[ImageRecord], refused: Sequence[Refused]
) -> DatasetError:
    """The error for sources without a usable image: why, and what to do."""
    name = _source_name(sources[0]) if len(sources) == 1 else _("The upload")
    drops = [[f for f in record.assessment.findings if f.action == "dropped"] for record in records]
    if len(records) == 1:
        message = _("{name} has one image, and it cannot be used: {reason}.", name=name, reason=drops[0][0].message)
        return DatasetError(message, _("Add other images."))
    if records:
        reasons = _tally(finding.kind for findings in drops for finding in findings)
        message = _(
            "{name} has {n} images, and none of them can be used: {reasons}.",
            name=name,
            n=len(records),
            reasons=reasons,
        )
        return DatasetError(message, _("Add images of at least 64 px a side, as PNG, JPEG, WebP or HEIC."))
    if len(refused) == 1:
        message = _("{name} was refused: {reason}.", name=refused[0].source, reason=refused[0].reason)
        return DatasetError(message, _refusal_hint(refused[0].kind))
    if refused:
        kinds = [entry.kind for entry in refused]
        message = _(
            "{name} has no image that can be opened; {n} files were refused: {reasons}.",
            name=name,
            n=len(refused),
            reasons=_tally(kinds),
        )
        return DatasetError(message, _refusal_hint(Counter(kinds).most_common(1)[0][0]))
    return DatasetError(_("{name} is empty.", name=name), _("Put PNG, JPEG, WebP or HEIC images into it."))


def _source_name(source: Path | str) -> str:
    return str(source) if str(source).startswith("hf:") else Path(source).name


def _refusal_hint(kind: RefusalKind) -> str:
    match kind:
        case RefusalKind.ENCRYPTED:
            return _("Make the archive without a password.")
        case RefusalKind.DAMAGED:
            return _("Make the archive again, or upload it again.")
        case RefusalKind.TOO_LARGE | RefusalKind.TOO_MANY | RefusalKind.RATIO | RefusalKind.OVERLAP:
            return _("Make an ordinary zip, tar or 7z of fewer or smaller images.")
        case _other:
            return _("Upload images (PNG, JPEG, WebP, HEIC), or a zip, tar or 7z of them with captions in .txt files.")


def _counts(report: DatasetReport, kept: Sequence[Image]) -> str:
    counts = report.counts
    kept_part = _("{n} kept", n=counts.kept)
    if notes := list(_kept_notes(kept)):
        kept_part += f" ({'; '.join(notes)})"
    parts = [kept_part]
    if counts.dropped:
        parts.append(_("{n} dropped ({reasons})", n=counts.dropped, reasons=_tally(_drop_reasons(report.images))))
    return _(
        "{images}: {parts}; split {train}/{validation}/{test} (train/validation/test).",
        images=ngettext("{n} image", "{n} images", counts.images),
        parts=", ".join(parts),
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
    )


def _kept_notes(kept: Sequence[Image]) -> Iterator[str]:
    if by_hand := sum(image.decision == "keep" for image in kept):
        yield _("{n} by hand", n=by_hand)
    # An image that a person chose to keep has been reviewed.
    doubtful = [_kinds_to_review(image) for image in kept if image.decision is None]
    if number := sum(map(bool, doubtful)):
        yield _("{n} to look at: {reasons}", n=number, reasons=_tally(kind for kinds in doubtful for kind in kinds))


def _kinds_to_review(image: Image) -> list[FindingKind]:
    return list(dict.fromkeys(finding.kind for finding in image.findings if finding.kind in _TO_REVIEW))


def _drop_reasons(images: Iterable[Image]) -> Iterator[FindingKind]:
    """The first reason of each dropped image, so that the numbers add up."""
    for image in images:
        if image.status == "dropped":
            yield from [finding.kind for finding in image.findings if finding.action == "dropped"][:1]


def _missing_captions(kept: Sequence[Image]) -> list[str]:
    kinds = (FindingKind.CAPTION_MISSING, FindingKind.CAPTION_EMPTY, FindingKind.CAPTION_UNREADABLE)
    parts = [_kind_count(kind, number) for kind in kinds if (number := _number_with(kept, kind))]
    return [f"{', '.join(parts)}."] if parts else [_("Each has a caption.")]


def _doubtful_captions(kept: Sequence[Image], counts: Counts, captions: CaptionStatistics | None) -> Iterator[str]:
    if counts.automatic:
        yield ngettext(
            "{n} caption is automatic and not reviewed yet.",
            "{n} captions are automatic and not reviewed yet.",
            counts.automatic,
        )
    if captions is not None and captions.too_long:
        yield ngettext(
            "{n} caption is longer than the {most} tokens that are read.",
            "{n} captions are longer than the {most} tokens that are read.",
            captions.too_long,
            most=MAX_TOKENS,
        )
    if identical := _number_with(kept, FindingKind.CAPTION_IDENTICAL):
        yield _("{n} share their caption with a different image.", n=identical)
    if captions is not None and captions.trigger and counts.captioned:
        if captions.with_trigger == counts.captioned:
            yield _("Each caption contains “{trigger}”.", trigger=captions.trigger)
        else:
            yield _(
                "{n} of {all} captions contain “{trigger}”.",
                n=captions.with_trigger,
                all=counts.captioned,
                trigger=captions.trigger,
            )


def _masks(kept: Sequence[Image]) -> Iterator[str]:
    if masked := sum(image.mask is not None for image in kept):
        yield ngettext("{n} has a mask, for a masked loss.", "{n} have a mask, for a masked loss.", masked)


def _refused(refused: Sequence[Refused]) -> Iterator[str]:
    if refused:
        yield ngettext(
            "{n} other file was refused ({reasons}).",
            "{n} other files were refused ({reasons}).",
            len(refused),
            reasons=_tally(entry.kind for entry in refused),
        )


def _near_duplicates(kept: Sequence[Image]) -> Iterator[str]:
    groups = [size for size in Counter(image.group for image in kept).values() if size > 1]
    if groups:
        yield ngettext(
            "{images} are near duplicates of one another (one group, kept in one split).",
            "{images} are near duplicates of one another ({n} groups, each kept in one split).",
            len(groups),
            images=sum(groups),
        )


def _upscaled(kept: Sequence[Image], resolution: int) -> Iterator[str]:
    upscaled = _number_with(kept, FindingKind.UPSCALED)
    if upscaled == len(kept) > 1:
        yield _("All {n} are smaller than {px} px and will be enlarged.", n=upscaled, px=resolution)
    elif upscaled:
        yield ngettext(
            "{n} is smaller than {px} px and will be enlarged.",
            "{n} are smaller than {px} px and will be enlarged.",
            upscaled,
            px=resolution,
        )


def _cropped(report: DatasetReport) -> Iterator[str]:
    mean = sum(bucket.images * bucket.mean_cropped for bucket in report.buckets) / max(report.counts.kept, 1)
    if mean > _MENTIONED_MEAN_CROP:
        yield _("Cropping to the training shapes removes {share:.0%} of an image on average.", share=mean)
    shares = {number: image.cropped or 0.0 for number, image in enumerate(report.images, start=1)}
    much = sorted((n for n, share in shares.items() if share > _MENTIONED_CROP), key=lambda n: -shares[n])
    if len(much) == 1:
        yield _("No. {n} loses {share:.0%} of its area by cropping.", n=much[0], share=shares[much[0]])
    elif much:
        numbers = listed(map(str, much), most=_MAX_NAMED)
        yield _("{n} lose more than a quarter by cropping (no. {numbers}).", n=len(much), numbers=numbers)


def _classes(kept: Sequence[Image]) -> Iterator[str]:
    """The size of each class, and the one that is seen too rarely."""
    sizes = Counter(image.class_name for image in kept if image.class_name)
    if len(sizes) < 2:
        return
    names = [f"{name} {count}" for name, count in sizes.most_common()]
    yield _("Classes: {names}.", names=listed(names, most=_MAX_NAMED))
    views: Counter[str] = Counter()
    for image in kept:
        if image.class_name:
            views[image.class_name] += image.repeats
    (most, often), *_rest, (least, rarely) = views.most_common()
    if often > _IMBALANCE * rarely:
        yield _("“{most}” is seen {n:.0f} times as often as “{least}”.", most=most, n=often / rarely, least=least)


def _split(kept: Sequence[Image], advised_folds: int | None) -> Iterator[str]:
    groups = len({image.group for image in kept})
    images = ngettext("one image", "{n} different images", groups)
    if groups < 3:
        yield _("With {images} there is nothing to validate on: all train, without early stopping.", images=images)
    elif groups < _FEW_GROUPS and advised_folds:
        yield _(
            "With {images} the split is rough: read the validation loss with care, or compare with {folds}-fold "
            "cross-validation.",
            images=images,
            folds=advised_folds,
        )
    elif groups < _FEW_GROUPS:
        yield _("With {images} the split is rough: read the validation loss with care.", images=images)
    else:
        yield from _small_classes(kept)


def _small_classes(kept: Sequence[Image]) -> Iterator[str]:
    """Classes that the split had to pool with others."""
    by_class: dict[str, set[int | None]] = {}
    for image in kept:
        by_class.setdefault(image.class_name, set()).add(image.group)
    small = [name for name, groups in sorted(by_class.items()) if name and len(groups) < MIN_GROUPS_PER_CLASS]
    if len(by_class) > 1 and small:
        names = listed(f"“{name}”" for name in small) if len(small) < 3 else ""
        yield ngettext(
            "{names} has fewer than {least} different images: too few for a share in each split.",
            "{names} have fewer than {least} different images: too few for a share in each split.",
            len(small),
            names=names or _("{n} classes", n=len(small)),
            least=MIN_GROUPS_PER_CLASS,
        )


def _number_with(kept: Sequence[Image], kind: FindingKind) -> int:
    return sum(any(finding.kind is kind for finding in image.findings) for image in kept)


def _tally(kinds: Iterable[FindingKind | RefusalKind]) -> str:
    """`2 exact duplicates, 1 corrupt`, the most frequent first."""
    # Both are called a zip bomb.
    merged = Counter(RefusalKind.RATIO if kind is RefusalKind.OVERLAP else kind for kind in kinds)
    return ", ".join(_kind_count(kind, count) for kind, count in merged.most_common())


def _kind_count(kind: FindingKind | RefusalKind, n: int) -> str:
    names: dict[FindingKind | RefusalKind, str] = {
        FindingKind.EXACT_DUPLICATE: ngettext("{n} exact duplicate", "{n} exact duplicates", n),
        FindingKind.NEAR_DUPLICATE: ngettext("{n} near duplicate", "{n} near duplicates", n),
        FindingKind.BLUR: _("{n} perhaps blurred", n=n),
        FindingKind.TOO_DARK: _("{n} too dark", n=n),
        FindingKind.WASHED_OUT: _("{n} washed out", n=n),
        FindingKind.BLANK: _("{n} blank", n=n),
        FindingKind.TOO_SMALL: _("{n} too small", n=n),
        FindingKind.EXTREME_ASPECT: _("{n} extreme aspect", n=n),
        FindingKind.CORRUPT: _("{n} corrupt", n=n),
        FindingKind.TOO_MANY_PIXELS: _("{n} too many pixels", n=n),
        FindingKind.SCREENSHOT: ngettext("{n} screenshot or page of text", "{n} screenshots or pages of text", n),
        FindingKind.OUTLIER: _("{n} unlike the others", n=n),
        FindingKind.BY_HAND: _("{n} by hand", n=n),
        FindingKind.CAPTION_MISSING: _("{n} without caption", n=n),
        FindingKind.CAPTION_EMPTY: _("{n} with an empty caption", n=n),
        FindingKind.CAPTION_UNREADABLE: _("{n} with an unreadable caption", n=n),
        FindingKind.CAPTION_MOJIBAKE: ngettext("{n} garbled caption", "{n} garbled captions", n),
        FindingKind.CAPTION_CONTRADICTORY: ngettext("{n} contradictory caption", "{n} contradictory captions", n),
        FindingKind.MASK: ngettext("{n} doubtful mask", "{n} doubtful masks", n),
        RefusalKind.UNSAFE_PATH: ngettext("{n} unsafe path", "{n} unsafe paths", n),
        RefusalKind.LINK: ngettext("{n} link", "{n} links", n),
        RefusalKind.ENCRYPTED: _("{n} encrypted", n=n),
        RefusalKind.DAMAGED: _("{n} damaged", n=n),
        RefusalKind.TOO_LARGE: _("{n} too large", n=n),
        RefusalKind.TOO_MANY: ngettext("{n} with too many entries", "{n} with too many entries", n),
        RefusalKind.RATIO: ngettext("{n} zip bomb", "{n} zip bombs", n),
        RefusalKind.COLLISION: ngettext("{n} name used twice", "{n} names used twice", n),
        RefusalKind.NESTED_ARCHIVE: ngettext("{n} archive in an archive", "{n} archives in an archive", n),
    }
    return names.get(kind) or _("{n} unsupported", n=n)
