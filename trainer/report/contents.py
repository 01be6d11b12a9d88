"""What the pages of a report show, in which order and how much of it: worked out once for two templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.protocol.report import Bucket, DatasetReport, Finding, FindingKind, Image, Split
from trainer.report.wording import WORDING, Wording, signs_of

PICTURES_PER_PAGE = 500
#: Pictures shown of one kind of finding, groups and pictures in one of them, and rows of a table; the rest is counted.
_MOST_FOUND, _MOST_GROUPS, _MOST_IN_GROUP, MOST_ROWS = 48, 48, 12, 200
_MOST_CROPPED, _WORTH_SHOWING_CROPPED = 24, 0.10
#: Numbers of pictures listed in a row.
_MOST_NUMBERS = 300
#: Most pictures of a set may have these, and a look at them tells nothing more: their numbers do.
_BY_NUMBER = frozenset(
    {
        FindingKind.UPSCALED,
        FindingKind.CAPTION_MISSING,
        FindingKind.CAPTION_EMPTY,
        FindingKind.CAPTION_WITHOUT_TRIGGER,
    }
)
#: Side of the largest shape as drawn, px.
_LARGEST_SHAPE = 84


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture, by the number that people call it."""

    number: int
    image: Image
    #: The page that shows it among all others.
    page: str = ""

    @property
    def name(self) -> str:
        return self.image.source.rpartition("!")[2].rpartition("/")[2]

    @property
    def place(self) -> str:
        """Its path inside the archive it came in."""
        return self.image.source.partition("!")[2] or self.image.source

    @property
    def side(self) -> str:
        """`train`, `validation`, `test` or `dropped`."""
        return str(self.image.split or "dropped")

    @property
    def size(self) -> str:
        return f"{self.image.width}×{self.image.height}" if self.image.width else ""

    @property
    def signs(self) -> tuple[str, ...]:
        return signs_of(self.image)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One finding in one picture."""

    picture: Picture
    finding: Finding
    other: Picture | None

    @property
    def gauge(self) -> float | None:
        """Where the measure stands on a line with the threshold in its middle, 0 to 100."""
        measure, threshold = self.finding.measure, self.finding.threshold
        if measure is None or not threshold or threshold < 0:
            return None
        return round(100 * min(max(measure / (2 * threshold), 0.0), 1.0), 1)


@dataclass(frozen=True, kw_only=True)
class SharedCaption:
    """One caption of several different pictures."""

    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class FoundKind:
    """All findings of one kind: some with their pictures, the rest by number."""

    kind: FindingKind
    wording: Wording
    dropped: int
    kept: int
    shown: tuple[Found, ...] = ()
    numbers: tuple[Picture, ...] = ()
    #: Instead of both for identical captions.
    captions: tuple[SharedCaption, ...] = ()

    @property
    def unlisted(self) -> int:
        listed = len(self.shown) + len(self.numbers) + sum(len(shared.pictures) for shared in self.captions)
        return self.dropped + self.kept - listed


@dataclass(frozen=True, kw_only=True)
class Group:
    """Near duplicates of one another."""

    pictures: tuple[Picture, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How one class is split."""

    name: str
    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A bucket as a rectangle to scale, px on the page."""

    bucket: Bucket
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What training sees of a picture: `strip` of it, 0 to 1, is cut off at two opposite ends."""

    picture: Picture
    cropped: float
    #: True if left and right are cut, False if top and bottom; None if the bucket is not known.
    is_across: bool | None

    @property
    def strip(self) -> float:
        return self.cropped / 2


@dataclass(frozen=True, kw_only=True)
class Section:
    """Pictures of one side on one page."""

    side: str
    #: All of that side, on other pages too.
    total: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A file of the report; the first one holds more than pictures."""

    name: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that the pages show."""

    report: DatasetReport
    #: What was handed in, by name.
    title: str
    pages: tuple[Page, ...]
    found: tuple[FoundKind, ...]
    groups: tuple[Group, ...]
    unshown_groups: int
    #: Different pictures among the kept.
    different: int
    classes: tuple[ClassRow, ...]
    shapes: tuple[Shape, ...]
    crops: tuple[Crop, ...]
    diverse: tuple[Picture, ...]
    isolated: tuple[Picture, ...]


def contents_of(report: DatasetReport) -> Contents:
    """Everything that the pages of a report show."""
    pages = _pages([Picture(number=number, image=image) for number, image in enumerate(report.images, start=1)])
    by_number = {p.number: p for page in pages for section in page.sections for p in section.pictures}
    pictures = [by_number[number] for number in sorted(by_number)]
    groups = _groups(pictures)
    return Contents(
        report=report,
        title=_title(report.images),
        pages=pages,
        found=_found(pictures),
        groups=groups[:_MOST_GROUPS],
        unshown_groups=max(0, len(groups) - _MOST_GROUPS),
        different=len({image.group for image in report.images if image.status == "kept"}),
        classes=_classes(report.images),
        shapes=_shapes(report.buckets),
        crops=_crops(pictures, report.buckets),
        diverse=tuple(by_number[number] for number in report.diverse if number in by_number),
        isolated=tuple(by_number[number] for number in report.isolated if number in by_number),
    )


def _title(images: Sequence[Image]) -> str:
    archives = list(dict.fromkeys(image.source.partition("!")[0] for image in images if "!" in image.source))
    return ", ".join(archives) if 1 <= len(archives) <= 3 else "Dataset"


def _pages(pictures: Sequence[Picture]) -> tuple[Page, ...]:
    """Kept pictures by side, then the dropped, on pages of equal length; each picture knows its page."""
    sides = [*map(str, Split), "dropped"]
    counts = Counter(picture.side for picture in pictures)
    ordered = sorted(pictures, key=lambda picture: sides.index(picture.side))
    pages = []
    for start in range(0, max(len(ordered), 1), PICTURES_PER_PAGE):
        name = f"report-{start // PICTURES_PER_PAGE + 1}.html" if start else "report.html"
        here = [
            Picture(number=each.number, image=each.image, page=name)
            for each in ordered[start : start + PICTURES_PER_PAGE]
        ]
        sections = (
            Section(side=side, total=counts[side], pictures=tuple(each for each in here if each.side == side))
            for side in sides
        )
        pages.append(Page(name=name, sections=tuple(section for section in sections if section.pictures)))
    return tuple(pages)


def _found(pictures: Sequence[Picture]) -> tuple[FoundKind, ...]:
    """Findings by kind, those that dropped something first; near duplicates are shown as groups instead."""
    by_source = {picture.image.source: picture for picture in pictures}
    by_kind: dict[FindingKind, list[Found]] = {}
    for picture in pictures:
        for finding in picture.image.findings:
            other = by_source.get(finding.other or "")
            by_kind.setdefault(finding.kind, []).append(Found(picture=picture, finding=finding, other=other))
    kinds = [_found_kind(kind, by_kind[kind]) for kind in WORDING if kind in by_kind]
    return tuple(sorted((k for k in kinds if k.kind is not FindingKind.NEAR_DUPLICATE), key=lambda k: not k.dropped))


def _found_kind(kind: FindingKind, found: Sequence[Found]) -> FoundKind:
    ordered = sorted(found, key=lambda one: one.finding.action != "dropped")
    shared = _shared_captions(found) if kind is FindingKind.CAPTION_IDENTICAL else ()
    shown = () if kind in _BY_NUMBER or shared else tuple(ordered[:_MOST_FOUND])
    rest = () if shared else tuple(one.picture for one in ordered[len(shown) :])
    return FoundKind(
        kind=kind,
        wording=WORDING[kind],
        dropped=sum(one.finding.action == "dropped" for one in found),
        kept=sum(one.finding.action == "kept" for one in found),
        shown=shown,
        numbers=rest[:_MOST_NUMBERS],
        captions=shared,
    )


def _shared_captions(found: Iterable[Found]) -> tuple[SharedCaption, ...]:
    """The most shared first."""
    by_caption: dict[str, list[Picture]] = {}
    for one in found:
        by_caption.setdefault(one.picture.image.caption, []).append(one.picture)
    most = sorted(by_caption.items(), key=lambda item: -len(item[1]))[:_MOST_GROUPS]
    return tuple(SharedCaption(caption=text, pictures=tuple(held[:_MOST_NUMBERS])) for text, held in most)


def _groups(pictures: Iterable[Picture]) -> tuple[Group, ...]:
    by_group: dict[int, list[Picture]] = {}
    for picture in pictures:
        if picture.image.status == "kept" and picture.image.group is not None:
            by_group.setdefault(picture.image.group, []).append(picture)
    held = [group for group in by_group.values() if len(group) > 1]
    return tuple(Group(pictures=tuple(group[:_MOST_IN_GROUP]), size=len(group)) for group in held)


def _classes(images: Sequence[Image]) -> tuple[ClassRow, ...]:
    """Empty where there are no classes, or one only."""
    counts = Counter((image.class_name, image.split) for image in images if image.status == "kept")
    names = sorted({name for name, _ in counts})
    if len(names) < 2:
        return ()
    rows = [
        ClassRow(
            name=name,
            train=counts[name, Split.TRAIN],
            validation=counts[name, Split.VALIDATION],
            test=counts[name, Split.TEST],
        )
        for name in names
    ]
    return tuple(sorted(rows, key=lambda row: -row.total))


def _shapes(buckets: Sequence[Bucket]) -> tuple[Shape, ...]:
    largest = max((max(bucket.width, bucket.height) for bucket in buckets), default=1)
    scale = _LARGEST_SHAPE / largest
    return tuple(
        Shape(bucket=bucket, width=round(bucket.width * scale), height=round(bucket.height * scale))
        for bucket in buckets
    )


def _crops(pictures: Iterable[Picture], buckets: Sequence[Bucket]) -> tuple[Crop, ...]:
    """The pictures that lose most, the worst first."""
    losing = [
        (cropped, picture)
        for picture in pictures
        if (cropped := picture.image.cropped or 0.0) > _WORTH_SHOWING_CROPPED and picture.image.status == "kept"
    ]
    losing.sort(key=lambda pair: -pair[0])
    return tuple(
        Crop(picture=picture, cropped=cropped, is_across=_is_cut_across(picture.image, cropped, buckets))
        for cropped, picture in losing[:_MOST_CROPPED]
    )


def _is_cut_across(image: Image, cropped: float, buckets: Sequence[Bucket]) -> bool | None:
    """Whether the bucket that explains this crop is narrower than the picture."""
    if not image.width or not image.height:
        return None
    aspect = image.width / image.height
    for bucket in buckets:
        shape = bucket.width / bucket.height
        # The report rounds shares to four places.
        if abs(1 - min(aspect / shape, shape / aspect) - cropped) < 0.001:
            return shape < aspect
    return None
