"""The report in words: one paragraph for people, and the sentence about why nothing can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainer.dataset.captions.caption_checks import MAX_TOKENS
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.split.group_split import MIN_GROUPS_PER_CLASS
from trainer.errors import DatasetError
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.finding_labels import kind_count, main_kind, needs_a_look, role_count, tally
from trainer.protocol.report import (
    CaptionColumn,
    CaptionStatistics,
    Counts,
    DatasetReport,
    FileRole,
    FindingKind,
    Image,
    RecognizedFiles,
    RefusalKind,
    Refused,
)
from trainer.protocol.text import _, listed, ngettext, percent

#: Below this number of groups, one image more or less in validation changes the result.
_FEW_GROUPS = 10
#: Cropped shares that are mentioned: of all images on average, and of single ones.
_MENTIONED_MEAN_CROP, _MENTIONED_CROP = 0.10, 0.25
#: If one class is seen so many times as often as another, the model draws it in place of the other.
_IMBALANCE = 5
#: Names in one sentence: the paragraph is read on a phone.
_MAX_NAMED = 5


def summarize(report: DatasetReport) -> str:
    """Summarize a report, one sentence a line: the counts, and what to look at. Only findings are mentioned."""
    kept = [image for image in report.images if image.status == "kept"]
    measurable = [image for image in kept if not image.is_regularization]
    sentences = [
        _counts(report, kept),
        *_missing_captions(kept),
        *_caption_sources(kept, report.caption_columns),
        *_doubtful_captions(kept, report.counts, report.captions),
        *_masks(kept),
        *_recognized(report.recognized),
        *_refused(report.refused),
        *_near_duplicates(kept),
        *_enlarged([report.fit(resolution) for resolution in report.resolutions]),
        *_cropped(report),
        *_classes(measurable),
        *_split(measurable, report.advised_folds),
    ]
    # Class names and captions may hold line breaks.
    return "\n".join(" ".join(sentence.split()) for sentence in sentences)


def nothing_to_train_on(
    sources: Sequence[Path | str], records: Sequence[ImageRecord], refused: Sequence[Refused]
) -> DatasetError:
    """The error for sources without a usable image: why, and what to do."""
    name = _source_name(sources[0]) if len(sources) == 1 else _("The upload")
    drops = [[f for f in record.assessment.findings if f.action == "dropped"] for record in records]
    if len(records) == 1:
        message = _("{name} has one image, and it cannot be used: {reason}.", name=name, reason=drops[0][0].message)
        return DatasetError(message, _("Add other images."))
    if len({finding.message for findings in drops for finding in findings}) == 1:
        message = _(
            "{name} has {n} images, and none of them can be used, all for the same reason: {reason}.",
            name=name,
            n=len(records),
            reason=drops[0][0].message,
        )
        return DatasetError(message, _("Add other images."))
    if records:
        reasons = tally(finding.kind for findings in drops for finding in findings)
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
            reasons=tally(kinds),
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
        parts.append(_("{n} dropped ({reasons})", n=counts.dropped, reasons=tally(_drop_reasons(report.images))))
    return _(
        "{images}: {parts}; {train} for training, {validation} for validation, {test} for the test.",
        images=ngettext("{n} image", "{n} images", counts.images),
        parts=_(", ").join(parts),
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
    )


def _kept_notes(kept: Sequence[Image]) -> Iterator[str]:
    if by_hand := sum(image.decision == "keep" for image in kept):
        yield _("{n} by hand", n=by_hand)
    # An image that a person chose to keep has been reviewed.
    if kinds := [main_kind(image) for image in kept if needs_a_look(image)]:
        yield _("{n} to look at: {reasons}", n=len(kinds), reasons=tally(kinds))


def _drop_reasons(images: Iterable[Image]) -> Iterator[FindingKind | None]:
    """The first reason of each dropped image, so that the numbers add up."""
    return (main_kind(image) for image in images if image.status == "dropped")


def _missing_captions(kept: Sequence[Image]) -> list[str]:
    kinds = (FindingKind.CAPTION_MISSING, FindingKind.CAPTION_EMPTY)
    parts = [kind_count(kind, number) for kind in kinds if (number := _number_with(kept, kind))]
    if all(image.caption for image in kept):
        return [_("Each has a caption.")]
    return [_("{facts}.", facts=_(", ").join(parts))] if parts else []


def _caption_sources(kept: Sequence[Image], columns: Sequence[CaptionColumn]) -> Iterator[str]:
    names = list(dict.fromkeys(_("“{column}” of {table}", column=each.column, table=each.table) for each in columns))
    if names:
        yield ngettext(
            "The captions are from the column {columns}.",
            "The captions are from the columns {columns}.",
            len(names),
            columns=listed(names[:_MAX_NAMED]),
        )
    if several := sum(bool(image.other_captions) for image in kept):
        yield ngettext(
            "{n} image has several captions; one of them is used each time.",
            "{n} images have several captions; one of them is used each time.",
            several,
        )


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
        captioned = counts.captioned - sum(bool(image.caption) for image in kept if image.is_regularization)
        if captions.with_trigger == captioned:
            yield _("Each caption contains “{trigger}”.", trigger=captions.trigger)
        else:
            yield _(
                "{n} of {all} captions contain “{trigger}”.",
                n=captions.with_trigger,
                all=captioned,
                trigger=captions.trigger,
            )


def _masks(kept: Sequence[Image]) -> Iterator[str]:
    if masked := sum(image.mask is not None for image in kept):
        yield ngettext(
            "{n} has a mask: with objective.masked, only what it shows is learned.",
            "{n} have a mask: with objective.masked, only what it shows is learned.",
            masked,
        )


def _recognized(files: Sequence[RecognizedFiles]) -> Iterator[str]:
    counts: Counter[FileRole] = Counter()
    for each in files:
        counts[each.role] += each.files
    if classes := counts[FileRole.REGULARIZATION]:
        folders = listed(each.folder for each in files if each.role is FileRole.REGULARIZATION)
        yield ngettext(
            "{n} image in {folders} is for regularization: it is trained on, and never measured.",
            "{n} images in {folders} are for regularization: they are trained on, and never measured.",
            classes,
            folders=folders,
        )
    left_out = {role: n for role, n in counts.items() if role not in (FileRole.REGULARIZATION, FileRole.MASK)}
    if left_out:
        parts = listed(role_count(role, n) for role, n in left_out.items())
        yield _("Recognized and left out: {files}.", files=parts)


def _refused(refused: Sequence[Refused]) -> Iterator[str]:
    if refused:
        yield ngettext(
            "{n} other file was refused ({reasons}).",
            "{n} other files were refused ({reasons}).",
            len(refused),
            reasons=tally(entry.kind for entry in refused),
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


def _enlarged(fits: Sequence[ResolutionFit]) -> Iterator[str]:
    if len(fits) == 1 and (n := fits[0].enlarged):
        px, images = fits[0].resolution, len(fits[0].images)
        if n == images > 1:
            yield _("All {n} are smaller than {px} px and will be enlarged.", n=n, px=px)
        else:
            yield ngettext(
                "{n} is smaller than {px} px and will be enlarged.",
                "{n} are smaller than {px} px and will be enlarged.",
                n,
                px=px,
            )
    elif any(fit.enlarged for fit in fits):
        counts = [_("{n} at {px} px", n=fit.enlarged, px=fit.resolution) for fit in fits if fit.enlarged]
        yield _("Smaller than the training size, and so enlarged: {counts}.", counts=_(", ").join(counts))


def _cropped(report: DatasetReport) -> Iterator[str]:
    # Of all resolutions the first, the smallest by default, crops most: its shapes are the coarsest.
    fit = report.fit(report.resolutions[0])
    if fit.mean_cropped > _MENTIONED_MEAN_CROP:
        yield _(
            "Cropping to the training shapes removes {share} of an image on average.", share=percent(fit.mean_cropped)
        )
    numbers = [number for number, image in enumerate(report.images, start=1) if image.status == "kept"]
    shares = {number: each.cropped for number, each in zip(numbers, fit.images, strict=True)}
    much = sorted((n for n, share in shares.items() if share > _MENTIONED_CROP), key=lambda n: -shares[n])
    if len(much) == 1:
        yield _("No. {n} loses {share} of its area by cropping.", n=much[0], share=percent(shares[much[0]]))
    elif much:
        listing = listed(map(str, much), most=_MAX_NAMED)
        yield _("{n} lose more than a quarter by cropping (no. {numbers}).", n=len(much), numbers=listing)


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
        yield _(
            "With {images}, none can be held back for checking: all are trained on, and training does not stop early.",
            images=images,
        )
    elif groups < _FEW_GROUPS and advised_folds:
        yield _(
            "With {images}, few can be held back for checking: read the validation loss with care, or compare with "
            "{folds}-fold cross-validation.",
            images=images,
            folds=advised_folds,
        )
    elif groups < _FEW_GROUPS:
        yield _("With {images}, few can be held back for checking: read the validation loss with care.", images=images)
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
