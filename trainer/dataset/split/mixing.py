"""The datasets of a job: which images each contributes to which split, and how often they are seen in an epoch."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pydantic import ValidationError

from trainer.dataset.images.decoding import UnreadableFilesError
from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.group_split import apply_split
from trainer.dataset.split.overlap import JobImage, same_images, without_overlap
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.job_dir import dataset_path
from trainer.protocol.report import DatasetReport, Split
from trainer.protocol.settings import MethodKind, MixRole, SplitChoice, SplitKind
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, listed, ngettext, percent
from trainer.protocol.training_settings import Training
from trainer.trigger import has_trigger, with_trigger

#: The bot names the folders of datasets by their content.
_IS_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class MixSource:
    """One dataset of a job."""

    folder: Path
    report: DatasetReport
    role: MixRole = MixRole.TRAIN
    trigger: str = ""
    repeats: int = 1
    #: Share of an epoch, instead of `repeats`.
    weight: float | None = None
    #: Index of the source of which its images are the regularization images.
    part_of: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder, or of the parent of a folder `prepared…`; of its archives where the bot keeps it."""
        is_prepared = self.folder.name.partition("-")[0] == "prepared"
        name = self.folder.parent.name if is_prepared else self.folder.name
        if _IS_HASH.fullmatch(name):
            name = self.report.title or _("your images")
        return name if self.part_of is None else f"{name}/reg"

    def job_images(self, index: int) -> Iterator[JobImage]:
        """Its usable images, in the order of the report; `index` is its own in the job."""
        for image in self.report.images:
            # In a regularization dataset all images are class images.
            is_whole = self.part_of is None and self.role is MixRole.REGULARIZATION
            is_own = is_whole or image.is_regularization is (self.part_of is not None)
            if image.status == "kept" and image.split is not None and is_own:
                split = Split.TRAIN if self.role is MixRole.REGULARIZATION else image.split
                yield JobImage(image=image, source=index, split=split)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All images of a job, from all of its datasets, the main one first."""

    sources: tuple[MixSource, ...]
    members: tuple[JobImage, ...]
    #: Left out because another dataset validates or tests with an image that shows the same.
    left_out: tuple[JobImage, ...] = ()

    def of(self, split: Split) -> tuple[JobImage, ...]:
        return tuple(member for member in self.members if member.split is split)

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets' names; equal ones are numbered."""
        names = [source.name for source in self.sources]
        return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1))

    def source_of(self, member: JobImage) -> MixSource:
        return self.sources[member.source]

    def files_of(self, member: JobImage) -> set[Path]:
        """The stored files of an image: the image, and its mask."""
        folder = self.source_of(member).folder
        return {folder / path for path in (member.image.path, member.image.mask) if path}

    def captions_of(self, member: JobImage) -> tuple[str, ...]:
        """The captions of an image, each preceded by its dataset's trigger unless it contains it."""
        trigger = self.source_of(member).trigger
        captions = (with_trigger(caption, trigger) for caption in (member.image.caption, *member.image.other_captions))
        return tuple(dict.fromkeys(captions))


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Images that share a fixed number of views."""

    #: Index of their dataset in the job.
    source: int
    #: Views of all of them together, in every epoch.
    views: int
    #: Relative frequency of each image, by its index.
    repeats: Mapping[int, int]

    @property
    def _units(self) -> int:
        return sum(self.repeats.values())

    def of_epoch(self, sizes: Sequence[Hashable], seed: int, epoch: int) -> dict[int, int]:
        """Views of each image by index: its exact share, rounded up or down at random.

        Systematic sampling (Madow 1949): the images are laid in a row, each as long as its share, and sampled at equal
        distances from a random start. Each gets its share on average; all together, and every stretch of the row, get
        theirs in every epoch to within one view. Images of a size are adjacent, so their number hardly changes.
        """
        random = Random(derive_seed("mix", seed, epoch, self.source))
        row = sorted(self.repeats, key=lambda index: (repr(sizes[index]), random.random()))
        # In integers: an image is `views * repeats` long, and the samples are `_units` apart.
        end, distance = random.randrange(self._units), self._units
        views = {}
        for index in row:
            start, end = end, end + self.views * self.repeats[index]
            views[index] = end // distance - start // distance
        return views


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often each training image is seen in each epoch of a job."""

    #: By index of the image; 0 for those in a portion.
    fixed: tuple[int, ...]
    portions: tuple[Portion, ...] = ()
    seed: int = 0

    @property
    def views(self) -> int:
        """Views in an epoch, the same in each."""
        return sum(self.fixed) + sum(portion.views for portion in self.portions)

    def of_epoch(self, sizes: Sequence[Hashable], epoch: int) -> list[int]:
        """Views of each image in an epoch; `sizes` are their buckets."""
        views = list(self.fixed)
        for portion in self.portions:
            for index, count in portion.of_epoch(sizes, self.seed, epoch).items():
                views[index] = count
        return views


@dataclass(frozen=True, kw_only=True)
class EpochExposure:
    """How often the training images of one dataset are seen in an epoch."""

    dataset: str
    role: MixRole
    images: int
    #: Views of all of them; the same in every epoch.
    views: int
    #: Share of all views of an epoch.
    share: float

    @property
    def per_image(self) -> float:
        return self.views / self.images if self.images else 0.0


def read_mixture(spec: Spec) -> Mixture:
    """Read the images of a job from the reports of its datasets.

    Raises:
        DatasetError: A folder is not a prepared dataset, nothing is left to train on or to validate with, or no caption
            teaches the new word of textual inversion.
    """
    training = spec.training
    main = _read_report(spec.dataset, spec.split)
    sources = [
        MixSource(
            folder=dataset_path(spec.dataset), report=main, trigger=training.trigger, repeats=max(1, training.repeats)
        ),
        *(
            MixSource(
                folder=dataset_path(part.dataset),
                report=_read_report(part.dataset, SplitChoice() if part.role is MixRole.REGULARIZATION else spec.split),
                role=part.role,
                trigger=part.trigger,
                repeats=part.repeats or 1,
                weight=part.weight,
            )
            for part in spec.mix
        ),
    ]
    mixture = mix([*sources, *_class_images(sources)], needs_validation=spec.split.kind is not SplitKind.ALL)
    if spec.method.kind is MethodKind.TEXTUAL_INVERSION and training.trigger:
        _require_word(mixture, training.trigger, spec.base.max_token_length)
    return mixture if training.repeats else _with_chosen_repeats(mixture, training)


def _with_chosen_repeats(mixture: Mixture, training: Training) -> Mixture:
    """Repeat all datasets, each as often as the others, until an epoch is long enough."""
    times = training.repeats_of(plan_repeats(mixture, training.seed).views)
    sources = tuple(replace(source, repeats=times * source.repeats) for source in mixture.sources)
    return replace(mixture, sources=sources)


def _class_images(sources: Sequence[MixSource]) -> Iterator[MixSource]:
    """The regularization images in training datasets (kohya's `reg`), each folder's as a source of its own."""
    for index, source in enumerate(sources):
        if source.role is MixRole.TRAIN and any(image.is_regularization for image in source.report.images):
            yield replace(source, role=MixRole.REGULARIZATION, trigger="", weight=None, part_of=index)


def _require_word(mixture: Mixture, trigger: str, most: int) -> None:
    """Refuse a job whose new word stands in no part of a caption that the model reads."""
    # Imported here: CLIP's vocabulary takes 0.2 s to load.
    from trainer.dataset.captions.caption_checks import truncated_part

    captions = {caption for member in mixture.of(Split.TRAIN) for caption in mixture.captions_of(member)}
    if not any(has_trigger(caption.removesuffix(truncated_part(caption, most)), trigger) for caption in captions):
        raise DatasetError(
            _("No caption has {trigger} among the {n} tokens that are read.", trigger=trigger, n=most),
            _("Put {trigger} first in each caption, or shorten the captions.", trigger=trigger),
        )


def mix(sources: Sequence[MixSource], *, needs_validation: bool = True) -> Mixture:
    """Combine several datasets; no image trains if one that shows the same is measured.

    Raises:
        DatasetError: Nothing is left to train on, or to validate with if `needs_validation`.
    """
    members = tuple(member for index, source in enumerate(sources) for member in source.job_images(index))
    left_out: tuple[JobImage, ...] = ()
    if len(sources) > 1:
        pairs = same_images(members, [source.folder for source in sources])
        members, left_out = without_overlap(members, pairs)
    mixture = Mixture(sources=tuple(sources), members=members, left_out=left_out)
    _require_splits(mixture, (Split.TRAIN, Split.VALIDATION) if needs_validation else (Split.TRAIN,))
    return mixture


def with_source(mixture: Mixture, source: MixSource) -> Mixture:
    """Add a dataset that is known not to overlap with the validation and test images of the others."""
    members = (*mixture.members, *source.job_images(len(mixture.sources)))
    return replace(mixture, sources=(*mixture.sources, source), members=members)


def without_files(mixture: Mixture, error: UnreadableFilesError, *, needs_validation: bool = True) -> Mixture:
    """Leave out the images whose stored file or mask cannot be read.

    Raises:
        UnreadableFilesError: That would be half of the images, or more: the dataset is damaged.
        DatasetError: Nothing is left to train on, or to validate with if `needs_validation`.
    """
    members = tuple(member for member in mixture.members if not mixture.files_of(member) & error.reasons.keys())
    if not len(mixture.members) > len(members) > len(mixture.members) / 2:
        raise error
    mixture = replace(mixture, members=members)
    _require_splits(mixture, (Split.TRAIN, Split.VALIDATION) if needs_validation else (Split.TRAIN,))
    return mixture


def unreadable_sentences(mixture: Mixture, error: UnreadableFilesError) -> Iterator[str]:
    """Tell which images are left out because their files cannot be read, and why."""
    for member in mixture.members:
        for file in sorted(mixture.files_of(member) & error.reasons.keys()):
            yield _(
                "{image} is left out: its file {file} in the prepared dataset can no longer be read ({reason}).",
                image=member.image.source,
                file=file.name,
                reason=error.reasons[file],
            )


def plan_repeats(mixture: Mixture, seed: int, shares: Sequence[float] = ()) -> Repeats:
    """Plan how often each training image is seen, by its index in `mixture.of(Split.TRAIN)`.

    A dataset with a weight gets that share of an epoch, rounded to whole views, at least one. The regularization images
    in a dataset are seen as often as its other images, all together, as in kohya's scripts.

    Args:
        mixture: The images of the job.
        seed: Decides which images of a portion are seen in an epoch.
        shares: Shares of the datasets that the spec names, instead of their weights and repeats. The length of an epoch
            and the share of class images that the base model drew stay the same.
    """
    train = mixture.of(Split.TRAIN)
    in_portions = [source.weight is not None or source.part_of is not None for source in mixture.sources]
    fixed = [
        0 if in_portions[member.source] else mixture.source_of(member).repeats * member.image.repeats
        for member in train
    ]
    present = {member.source for member in train}
    weights = {i: source.weight for i, source in enumerate(mixture.sources) if source.weight and i in present}
    total = sum(fixed) / (1 - sum(weights.values()))
    if shares:
        fixed = [0] * len(train)
        drawn = {index: weight for index, weight in weights.items() if index >= len(shares)}
        rest = 1 - sum(drawn.values())
        weights = {i: share * rest for i, share in enumerate(shares) if share and i in present} | drawn
    views = {index: max(1, round(weight * total)) for index, weight in weights.items()}
    for member, count in zip(train, fixed, strict=True):
        if count:
            views[member.source] = views.get(member.source, 0) + count
    views |= {
        index: views.get(source.part_of, 0)
        for index, source in enumerate(mixture.sources)
        if source.part_of is not None and index in present
    }
    portions = tuple(
        Portion(
            source=index,
            views=count,
            repeats={i: member.image.repeats for i, member in enumerate(train) if member.source == index},
        )
        for index, count in views.items()
        if index in weights or in_portions[index]
    )
    return Repeats(fixed=tuple(fixed), portions=portions, seed=seed)


def epoch_exposure(mixture: Mixture, repeats: Repeats) -> tuple[EpochExposure, ...]:
    """How often the training images of each dataset are seen in an epoch."""
    train = mixture.of(Split.TRAIN)
    rows = []
    for index, source in enumerate(mixture.sources):
        views = sum(count for member, count in zip(train, repeats.fixed, strict=True) if member.source == index)
        views += sum(portion.views for portion in repeats.portions if portion.source == index)
        rows.append(
            EpochExposure(
                dataset=mixture.names[index],
                role=source.role,
                images=sum(member.source == index for member in train),
                views=views,
                share=views / repeats.views,
            )
        )
    return tuple(rows)


def exposure_sentence(rows: Sequence[EpochExposure]) -> str:
    """Describe the exposure in one sentence."""
    has_shares = len(rows) > 1
    return _("Each epoch shows {datasets}.", datasets=listed(_dataset_exposure(row, has_shares) for row in rows))


def _dataset_exposure(row: EpochExposure, has_shares: bool) -> str:
    if row.role is MixRole.REGULARIZATION:
        images = ngettext(
            "{n} class image of {dataset}", "{n} class images of {dataset}", row.images, dataset=row.dataset
        )
    else:
        images = ngettext("{n} image of {dataset}", "{n} images of {dataset}", row.images, dataset=row.dataset)
    often = {1.0: _("once"), 2.0: _("twice")}.get(row.per_image) or _("{n:.3g} times", n=row.per_image)
    return f"{images} {often}" + (f" ({percent(row.share)})" if has_shares else "")


def exposure_table(rows: Sequence[EpochExposure]) -> str:
    """Describe the exposure as a Markdown table."""
    lines = ["| dataset | role | images | views per epoch | views per image | share |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {row.dataset} | {row.role} | {row.images} | {row.views} | {row.per_image:.3g}× | {row.share:.1%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def overlap_sentence(mixture: Mixture) -> str | None:
    """Describe what was left out because it would leak; None if nothing was."""
    if not mixture.left_out:
        return None
    train, validation, test = (sum(each.split is split for each in mixture.left_out) for split in Split)
    parts = (
        ngettext("{n} training image", "{n} training images", train) if train else None,
        ngettext("{n} validation image", "{n} validation images", validation) if validation else None,
        ngettext("{n} test image", "{n} test images", test) if test else None,
    )
    return _(
        "Left out: {images}. Another dataset of the mix validates or tests with the same images, so the loss would "
        "look better than it is.",
        images=listed(filter(None, parts)),
    )


def _read_report(folder: str, choice: SplitChoice) -> DatasetReport:
    """Read a dataset's report, with the splits that `choice` gives its images."""
    try:
        report = read_report(dataset_path(folder))
    except (OSError, ValidationError) as error:
        message = _("{folder} is not a prepared dataset.", folder=folder)
        raise DatasetError(message, _("Prepare it with `python -m trainer prepare`.")) from error
    return report.model_copy(update={"images": apply_split(report.images, choice, report.split_seed)})


def _require_splits(mixture: Mixture, needed: Sequence[Split]) -> None:
    for split in needed:
        if not any(member.source == 0 for member in mixture.of(split)):
            kept = mixture.sources[0].report.counts.kept
            message = ngettext(
                "The dataset has {n} usable image and none for the {split} split.",
                "The dataset has {n} usable images and none for the {split} split.",
                kept,
                split={Split.TRAIN: _("train"), Split.VALIDATION: _("validation"), Split.TEST: _("test")}[split],
            )
            if mixture.left_out:
                message += " " + _("Other datasets of the mix measure with the same images.")
            raise DatasetError(message, _("Validation needs at least 3 different images; 15 or more are better."))
