"""The pages of a dataset report for people: `report.md`, and `report.html` with images, which opens from disk."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from trainer.exchange.dataset_dir import SHARED_PAGE
from trainer.exchange.files import atomic_write, write_text
from trainer.protocol.bucket_shapes import ImageFit, ResolutionFit
from trainer.protocol.finding_labels import (
    KINDS,
    QUIET,
    FindingLabel,
    beyond_limit,
    label,
    limit_words,
    main_kind,
    role_count,
    short_labels,
)
from trainer.protocol.report import DatasetReport, Finding, FindingKind, Image, Split
from trainer.protocol.text import _
from trainer.report.templating import markdown_template, read_template_file, render_html, self_contained

IMAGES_PER_PAGE = 500
#: What a page shows at most; the rest is counted.
LIMITS = {"rows": 200, "groups": 48, "in_group": 12}
_MAX_FINDINGS, _MAX_NUMBERS = 48, 300
_MAX_CROPPED, _MIN_CROPPED = 24, 0.10
#: Most images of a set may have these, and looking at them shows nothing more: their numbers are listed.
_BY_NUMBER = frozenset(
    {
        FindingKind.CAPTION_MISSING,
        FindingKind.CAPTION_EMPTY,
        FindingKind.CAPTION_WITHOUT_TRIGGER,
    }
)
#: Which bases train at the usual resolutions.
_BASES = {512: "SD 1.x", 768: "SD 2.x", 1024: "SDXL, SD 3"}
_SIDES = (*map(str, Split), "dropped")


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberedImage:
    """An image of a report with its number, and the page that shows it among all others."""

    number: int
    image: Image
    page: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.image.source.rpartition("!")[2].rpartition("/")[2]

    @property
    def path_in_archive(self) -> str:
        """Its path inside the archive that it came in."""
        return self.image.source.partition("!")[2] or self.image.source

    @property
    def side(self) -> str:
        """`train`, `validation`, `test` or `dropped`."""
        return str(self.image.split or "dropped")

    @property
    def labels(self) -> tuple[str, ...]:
        """What was found in it, in a word or two each."""
        return short_labels(self.image)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundImage:
    """One finding in one image."""

    at: NumberedImage
    finding: Finding
    #: The other image of a duplicate.
    other: NumberedImage | None

    @property
    def gauge(self) -> float | None:
        """Position of a gradual measure on a line from 0 to 100 with its limit in the middle; None for others."""
        share = beyond_limit(self.finding)
        return None if share is None else round(50 * min(1 + share, 2.0), 1)

    @property
    def limit_words(self) -> str:
        """How far its measure is from the limit."""
        return limit_words(self.finding)

    @property
    def also(self) -> Sequence[str]:
        """What else was found in the image that needs a look."""
        others = (each for each in self.at.image.findings if each.kind not in {self.finding.kind, *QUIET})
        return [label(each.kind).short for each in others]


@dataclass(frozen=True, kw_only=True)
class CroppedImage:
    """An image that loses much by cropping."""

    at: NumberedImage
    fit: ImageFit

    @property
    def direction(self) -> str:
        """Whether its sides (`across`) or its top and bottom (`down`) are cut off."""
        width, height = self.fit.bucket
        is_too_wide = (self.at.image.width or 1) * height > (self.at.image.height or 1) * width
        return "across" if is_too_wide else "down"


@dataclass(frozen=True, kw_only=True)
class FindingSection:
    """The images that count for one kind of finding: some are shown, the rest are listed by number."""

    kind: FindingKind
    label: FindingLabel
    is_dropped: bool
    images: Sequence[NumberedImage]
    shown: Sequence[FoundImage]
    numbers: Sequence[NumberedImage]
    #: Instead of both for identical captions: the images of each caption.
    captions: Mapping[str, Sequence[NumberedImage]]
    #: How many of the images are in none of these.
    unlisted: int

    @property
    def is_quiet(self) -> bool:
        """True if there is nothing to decide: the page counts it, and lists it on demand."""
        return self.kind in QUIET and not self.is_dropped

    @property
    def together(self) -> str:
        """The numbers of its images, as `--keep` and `--drop` take them; empty if there are too many or only one.

        What cannot be decoded cannot be kept.
        """
        numbers = [str(each.number) for each in self.images if each.image.pixels_sha256 is not None]
        return ",".join(numbers) if 1 < len(numbers) <= _MAX_NUMBERS else ""


def write_pages(report: DatasetReport, folder: Path) -> list[Path]:
    """Write `report.md`, `report.html` and, past 500 images, `report-2.html` and so on into the dataset folder.

    Sheets and thumbnails are linked by their paths in the report, relative to `folder`. A report of one page is also
    written with its images in it, as `SHARED_PAGE`.

    Returns:
        The files, without `SHARED_PAGE`.
    """
    pages = _paginate(report.images)
    images = sorted((image for page in pages.values() for image in page), key=lambda image: image.number)
    fits = [report.fit(resolution) for resolution in report.resolutions]
    # As in the summary: class images are trained and never measured.
    measurable = [image for image in report.images if image.status == "kept" and not image.is_regularization]
    script = read_template_file("report.js")
    values = {
        "report": report,
        "title": report.title or _("Dataset"),
        "pages": pages,
        "totals": Counter(image.side for image in images),
        "sides": _SIDES,
        "sections": _sections(images),
        "groups": _groups(images),
        "classes": _classes(report.images),
        "measurable": len(measurable),
        "different": len({image.group for image in measurable}),
        "fits": fits,
        "bases": _BASES,
        "crops": _crops(images, fits[0]),
        "diverse": [images[number - 1] for number in report.diverse if number <= len(images)],
        "isolated": [images[number - 1] for number in report.isolated if number <= len(images)],
        "most": LIMITS,
        "role_count": role_count,
    }
    files = [folder / "report.md"]
    with atomic_write(files[0]) as partial, partial.open("w", encoding="utf-8") as file:
        # A piece at a time: as one text it would take several times its size.
        file.writelines(markdown_template("report.md.j2").generate(values))
    for name in pages:
        html = render_html(
            "report.html.j2",
            **values,
            page=name,
            is_first=name == "report.html",
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        files.append(folder / name)
        write_text(files[-1], html)
    if len(pages) == 1:
        write_text(folder / SHARED_PAGE, self_contained(html, folder))
    return files


def _paginate(images: Sequence[Image]) -> dict[str, list[NumberedImage]]:
    """The images of each page: the kept ones by split, then the dropped ones, on pages of equal length."""
    order = sorted(enumerate(images, 1), key=lambda pair: _SIDES.index(str(pair[1].split or "dropped")))
    pages = {}
    for start in range(0, max(len(order), 1), IMAGES_PER_PAGE):
        name = f"report-{start // IMAGES_PER_PAGE + 1}.html" if start else "report.html"
        pages[name] = [
            NumberedImage(number=number, image=image, page=name)
            for number, image in order[start : start + IMAGES_PER_PAGE]
        ]
    return pages


def _sections(images: Sequence[NumberedImage]) -> list[FindingSection]:
    """What needs a decision, then what was dropped, then what is counted; near duplicates are shown as groups instead.

    An image counts once, for its main finding, as in the summary, or for each of its findings that are only counted.
    """
    by_source = {image.image.source: image for image in images}
    found: dict[tuple[bool, FindingKind], list[FoundImage]] = {}
    for image in images:
        is_dropped, main = image.side == "dropped", main_kind(image.image)
        first_of_kind = {finding.kind: finding for finding in reversed(image.image.findings)}
        for kind, finding in first_of_kind.items():
            if kind is main or (kind in QUIET and kind is not FindingKind.NEAR_DUPLICATE and not is_dropped):
                other = by_source.get(finding.other or "")
                found.setdefault((is_dropped, kind), []).append(FoundImage(at=image, finding=finding, other=other))
    sections = [_section(kind, found[key]) for kind in KINDS for key in ((False, kind), (True, kind)) if key in found]
    return sorted(sections, key=lambda section: (section.is_quiet, section.is_dropped))


def _section(kind: FindingKind, found: Sequence[FoundImage]) -> FindingSection:
    images = [each.at for each in found]
    captions = _images_by_caption(images) if kind is FindingKind.CAPTION_IDENTICAL else {}
    # A pair is shown once, whichever of the two it was found in.
    pairs = {frozenset((each.at.number, each.other.number if each.other else 0)): each for each in reversed(found)}
    shown = [] if kind in _BY_NUMBER or captions else list(reversed(pairs.values()))[:_MAX_FINDINGS]
    seen = {each.number for pair in shown for each in (pair.at, pair.other) if each}
    seen |= {image.number for listed in captions.values() for image in listed}
    rest = [image for image in images if image.number not in seen]
    numbers = [] if captions else rest[:_MAX_NUMBERS]
    return FindingSection(
        kind=kind,
        label=label(kind),
        is_dropped=images[0].side == "dropped",
        images=images,
        shown=shown,
        numbers=numbers,
        captions=captions,
        unlisted=len(rest) - len(numbers),
    )


def _images_by_caption(images: Iterable[NumberedImage]) -> dict[str, Sequence[NumberedImage]]:
    """The most frequent captions first."""
    by_caption: dict[str, list[NumberedImage]] = {}
    for image in images:
        by_caption.setdefault(image.image.caption, []).append(image)
    frequent = sorted(by_caption.items(), key=lambda item: -len(item[1]))[: LIMITS["groups"]]
    return {caption: shown[:_MAX_NUMBERS] for caption, shown in frequent}


def _groups(images: Iterable[NumberedImage]) -> list[list[NumberedImage]]:
    by_group: dict[int, list[NumberedImage]] = {}
    for image in images:
        if image.image.status == "kept" and image.image.group is not None:
            by_group.setdefault(image.image.group, []).append(image)
    return [group for group in by_group.values() if len(group) > 1]


def _classes(images: Sequence[Image]) -> list[tuple[str, Counter[str]]]:
    """The number of images of each class by split, the largest class first; empty with fewer than two classes."""
    classes: dict[str, Counter[str]] = {}
    for image in images:
        if image.status == "kept":
            classes.setdefault(image.class_name, Counter())[str(image.split)] += 1
    return sorted(classes.items(), key=lambda item: (-item[1].total(), item[0])) if len(classes) > 1 else []


def _crops(images: Iterable[NumberedImage], fit: ResolutionFit) -> list[CroppedImage]:
    """The images of which most is cropped."""
    kept = (image for image in images if image.image.status == "kept")
    cropped = (CroppedImage(at=image, fit=each) for image, each in zip(kept, fit.images, strict=True))
    losing = (each for each in cropped if each.fit.cropped > _MIN_CROPPED)
    return sorted(losing, key=lambda each: -each.fit.cropped)[:_MAX_CROPPED]
