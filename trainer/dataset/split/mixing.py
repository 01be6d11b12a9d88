"""Several datasets in one job: what each is for, what its pictures are used for, and how often they are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from trainer.dataset.split.folds import apply_split
from trainer.dataset.split.overlap import Member, same_pictures, without_overlap
from trainer.dataset.split.repeats import Portion, Repeats
from trainer.errors import DatasetError
from trainer.protocol.mix import MixRole
from trainer.protocol.places import folder_of
from trainer.protocol.report import DatasetReport, Split, read_report
from trainer.protocol.settings import SplitChoice, SplitKind
from trainer.protocol.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset of a job."""

    folder: Path
    report: DatasetReport
    role: MixRole = MixRole.TRAIN
    trigger: str = ""
    repeats: int = 1
    #: Share of an epoch, instead of `repeats`.
    weight: float | None = None

    @property
    def name(self) -> str:
        """What people know it by: its folder's name, or the one above where that says nothing."""
        return self.folder.parent.name if self.folder.name == "prepared" else self.folder.name

    def members(self, place: int) -> Iterator[Member]:
        """Its usable pictures, in the order of the report."""
        for image in self.report.images:
            if image.status == "kept" and image.split is not None:
                is_class_picture = self.role is MixRole.REGULARIZATION
                yield Member(image=image, source=place, split=Split.TRAIN if is_class_picture else image.split)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All pictures of a job, from all of its datasets, the main one first."""

    sources: tuple[Source, ...]
    members: tuple[Member, ...]
    #: Pictures that show the same as one that another dataset validates or tests with.
    left_out: tuple[Member, ...] = ()

    def of(self, split: Split) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.split is split)

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets' names; where two have one name, with their place behind it."""
        names = [source.name for source in self.sources]
        return tuple(f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1))

    def source_of(self, member: Member) -> Source:
        return self.sources[member.source]

    def caption_of(self, member: Member) -> str:
        """The caption of a picture, with its dataset's trigger in front where it does not hold it."""
        caption, trigger = member.image.caption, self.source_of(member).trigger
        if trigger and trigger.lower() not in caption.lower():
            return f"{trigger}, {caption}" if caption else trigger
        return caption


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How often the training pictures of one dataset are seen in an epoch."""

    dataset: str
    role: MixRole
    pictures: int
    #: Views of all of them; the same in every epoch.
    views: int
    #: Share of all views of an epoch.
    share: float

    @property
    def per_picture(self) -> float:
        return self.views / self.pictures if self.pictures else 0.0


def read_mixture(spec: Spec) -> Mixture:
    """All pictures of a job, read from the reports of its datasets.

    Raises:
        DatasetError: a folder is no prepared dataset, or nothing is left to train on or to validate with.
    """
    training = spec.training
    main = _read(spec.dataset, spec.split)
    sources = [
        Source(folder=folder_of(spec.dataset), report=main, trigger=training.trigger, repeats=training.repeats),
        *(
            Source(
                folder=folder_of(part.dataset),
                report=_read(part.dataset, SplitChoice() if part.role is MixRole.REGULARIZATION else spec.split),
                role=part.role,
                trigger=part.trigger,
                repeats=part.repeats or 1,
                weight=part.weight,
            )
            for part in spec.mix
        ),
    ]
    return mix(sources, needs_validation=spec.split.kind is not SplitKind.ALL)


def mix(sources: Sequence[Source], *, needs_validation: bool = True) -> Mixture:
    """The pictures of several datasets, none of which trains where it, or one that shows the same, is measured.

    Without `needs_validation` no picture need be left to measure with.

    Raises:
        DatasetError: nothing is left to train on or to validate with.
    """
    members = tuple(member for place, source in enumerate(sources) for member in source.members(place))
    left_out: tuple[Member, ...] = ()
    if len(sources) > 1:
        pairs = same_pictures(members, [source.folder for source in sources])
        members, left_out = without_overlap(members, pairs)
    mixture = Mixture(sources=tuple(sources), members=members, left_out=left_out)
    _check_splits(mixture, (Split.TRAIN, Split.VALIDATION) if needs_validation else (Split.TRAIN,))
    return mixture


def with_source(mixture: Mixture, source: Source) -> Mixture:
    """The mixture with a further dataset, which is known to show nothing that another one measures with."""
    members = (*mixture.members, *source.members(len(mixture.sources)))
    return replace(mixture, sources=(*mixture.sources, source), members=members)


def plan_repeats(mixture: Mixture, seed: int, shares: Sequence[float] = ()) -> Repeats:
    """How often each training picture is seen, by its place in `mixture.of(Split.TRAIN)`.

    A dataset with a weight gets that share of an epoch, rounded to a whole number of views, at least one. `shares`, one
    for each dataset that a spec names, go before weights and repeats; an epoch stays as long as without them, and class
    pictures keep their share of it.
    """
    train = mixture.of(Split.TRAIN)
    fixed = [
        0 if mixture.source_of(member).weight else mixture.source_of(member).repeats * member.image.repeats
        for member in train
    ]
    present = {member.source for member in train}
    weights = {place: source.weight for place, source in enumerate(mixture.sources) if source.weight}
    weights = {place: weight for place, weight in weights.items() if place in present}
    total = sum(fixed) / (1 - sum(weights.values()))
    if shares:
        fixed = [0] * len(train)
        unnamed = {place: weight for place, weight in weights.items() if place >= len(shares)}
        rest = 1 - sum(unnamed.values())
        weights = {place: share * rest for place, share in enumerate(shares) if share and place in present} | unnamed
    portions = tuple(
        Portion(
            source=place,
            views=max(1, round(weight * total)),
            repeats={i: member.image.repeats for i, member in enumerate(train) if member.source == place},
        )
        for place, weight in weights.items()
    )
    return Repeats(fixed=tuple(fixed), portions=portions, seed=seed)


def seen_per_epoch(mixture: Mixture, repeats: Repeats) -> tuple[Seen, ...]:
    """How often the training pictures of each dataset are seen in an epoch."""
    train = mixture.of(Split.TRAIN)
    rows = []
    for place, source in enumerate(mixture.sources):
        views = sum(count for member, count in zip(train, repeats.fixed, strict=True) if member.source == place)
        views += sum(portion.views for portion in repeats.portions if portion.source == place)
        pictures = sum(member.source == place for member in train)
        share = views / repeats.views
        rows.append(Seen(dataset=mixture.names[place], role=source.role, pictures=pictures, views=views, share=share))
    return tuple(rows)


def seen_in_words(rows: Sequence[Seen]) -> str:
    """The same as one sentence."""
    parts = [f"{_count(row)} {_often(row.per_picture)}" + (f" ({row.share:.0%})" if rows[1:] else "") for row in rows]
    listed = ", ".join(parts[:-1]) + " and " + parts[-1] if parts[1:] else parts[0]
    return f"An epoch shows {listed}."


def seen_as_table(rows: Sequence[Seen]) -> str:
    """The same as a Markdown table."""
    lines = ["| dataset | role | pictures | seen in an epoch | each | share |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {row.dataset} | {row.role} | {row.pictures} | {row.views} | {row.per_picture:.3g}× | {row.share:.1%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def overlap_in_words(mixture: Mixture) -> str | None:
    """What was left out because it would leak, as a sentence; None if nothing was."""
    counts = [(sum(member.split is split for member in mixture.left_out), split) for split in Split]
    listed = " and ".join(
        f"{count} {'picture' if count == 1 else 'pictures'} of the {split} split" for count, split in counts if count
    )
    if not listed:
        return None
    return (
        f"{listed[0].upper()}{listed[1:]} left out: another dataset of the mix validates or tests with the same "
        "pictures, so the loss would have looked better than it is."
    )


def _read(folder: str, choice: SplitChoice) -> DatasetReport:
    """A dataset's report, with the sides that `choice` gives its pictures."""
    try:
        report = read_report(folder_of(folder))
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{folder} is not a prepared dataset.", "Make it with `python -m trainer prepare`."
        ) from error
    return report.model_copy(update={"images": apply_split(report.images, choice, report.split_seed)})


def _check_splits(mixture: Mixture, needed: Sequence[Split]) -> None:
    for split in needed:
        if not any(member.source == 0 for member in mixture.of(split)):
            kept = mixture.sources[0].report.counts.kept
            why = "; other datasets of the mix measure with the same ones" if mixture.left_out else ""
            raise DatasetError(
                f"The dataset has {kept} usable pictures and none for the {split} split{why}.",
                "An honest validation needs at least 3 different pictures; 15 or more are better.",
            )


def _count(row: Seen) -> str:
    kind = "class pictures" if row.role is MixRole.REGULARIZATION else "pictures"
    return f"{row.pictures} {kind if row.pictures != 1 else kind.removesuffix('s')} of {row.dataset}"


def _often(times: float) -> str:
    return {1.0: "once", 2.0: "twice"}.get(times, f"{times:.3g} times")
