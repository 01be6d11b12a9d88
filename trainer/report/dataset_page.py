"""The pages of a dataset report for people: `report.md`, and `report.html` with images, which opens from disk."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from trainer.exchange.files import write_text
from trainer.protocol.report import Bucket, DatasetReport, Finding, FindingKind, Image, Split
from trainer.report.finding_labels import LABELS, FindingLabel, short_labels
from trainer.report.templating import markdown_template, read_template_file, render_html

IMAGES_PER_PAGE = 500
#: What a page shows at most; the rest is counted.
LIMITS = {"rows": 200, "groups": 48, "in_group": 12}
_MAX_FINDINGS, _MAX_NUMBERS = 48, 300
_MAX_CROPPED, _MIN_CROPPED = 24, 0.10
#: Most images of a set may have these, and looking at them tells nothing more: their numbers are listed.
_BY_NUMBER = frozenset(
    {
        FindingKind.UPSCALED,
        FindingKind.CAPTION_MISSING,
        FindingKind.CAPTION_EMPTY,
        FindingKind.CAPTION_WITHOUT_TRIGGER,
    }
)
_SIDES = (*map(str, Split), "dropped")


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """One finding in one image."""

    at: NumberedImage
    finding: Finding
    #: The other image of a duplicate.
    other: NumberedImage | None

    @property
    def gauge(self) -> float | None:
        """Position of the measure on a line from 0 to 100 with the threshold in its middle; None without a measure."""
        measure, threshold = self.finding.measure, self.finding.threshold
        if measure is None or not threshold or threshold < 0:
            return None
        return round(100 * min(max(measure / (2 * threshold), 0.0), 1.0), 1)


@dataclass(frozen=True, kw_only=True)
class FindingSection:
    """All findings of one kind: some with their images, the rest by number."""

    kind: FindingKind
    label: FindingLabel
    dropped: int
    kept: int
    shown: Sequence[FoundImage]
    numbers: Sequence[NumberedImage]
    #: Instead of both for identical captions: the images of each caption.
    captions: Mapping[str, Sequence[NumberedImage]]

    @property
    def unlisted(self) -> int:
        listed = len(self.shown) + len(self.numbers) + sum(map(len, self.captions.values()))
        return self.dropped + self.kept - listed


def write_pages(report: DatasetReport, folder: Path) -> list[Path]:
    """Write `report.md`, `report.html` and, past 500 images, `report-2.html` and so on into the dataset folder.

    Sheets and thumbnails are linked by their paths in the report, relative to `folder`.

    Returns:
        The files.
    """
    pages = _paginate(report.images)
    images = sorted((image for page in pages.values() for image in page), key=lambda image: image.number)
    script = read_template_file("report.js")
    values = {
        "report": report,
        "title": _title(report.images),
        "pages": pages,
        "totals": Counter(image.side for image in images),
        "sides": _SIDES,
        "sections": _sections(images),
        "groups": _groups(images),
        "classes": _classes(report.images),
        "different": len({image.group for image in report.images if image.status == "kept"}),
        "crops": _crops(images, report.buckets),
        "diverse": [images[number - 1] for number in report.diverse if number <= len(images)],
        "isolated": [images[number - 1] for number in report.isolated if number <= len(images)],
        "most": LIMITS,
    }
    files = [folder / "report.md"]
    write_text(files[0], markdown_template("report.md.j2").render(values))
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
    return files


def _title(images: Sequence[Image]) -> str:
    archives = list(dict.fromkeys(image.source.partition("!")[0] for image in images if "!" in image.source))
    return ", ".join(archives) if 1 <= len(archives) <= 3 else "Dataset"


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
    """Findings by kind, those that dropped images first; near duplicates are shown as groups instead."""
    by_source = {image.image.source: image for image in images}
    by_kind: dict[FindingKind, list[FoundImage]] = {}
    for image in images:
        for finding in image.image.findings:
            found = FoundImage(at=image, finding=finding, other=by_source.get(finding.other or ""))
            by_kind.setdefault(finding.kind, []).append(found)
    kinds = [kind for kind in LABELS if kind in by_kind and kind is not FindingKind.NEAR_DUPLICATE]
    return sorted((_section(kind, by_kind[kind]) for kind in kinds), key=lambda section: not section.dropped)


def _section(kind: FindingKind, found: Sequence[FoundImage]) -> FindingSection:
    order = sorted(found, key=lambda each: each.finding.action != "dropped")
    captions = _images_by_caption(found) if kind is FindingKind.CAPTION_IDENTICAL else {}
    shown = [] if kind in _BY_NUMBER or captions else order[:_MAX_FINDINGS]
    rest = [] if captions else [each.at for each in order[len(shown) :]]
    return FindingSection(
        kind=kind,
        label=LABELS[kind],
        dropped=sum(each.finding.action == "dropped" for each in found),
        kept=sum(each.finding.action == "kept" for each in found),
        shown=shown,
        numbers=rest[:_MAX_NUMBERS],
        captions=captions,
    )


def _images_by_caption(found: Iterable[FoundImage]) -> dict[str, Sequence[NumberedImage]]:
    """The most frequent captions first."""
    by_caption: dict[str, list[NumberedImage]] = {}
    for each in found:
        by_caption.setdefault(each.at.image.caption, []).append(each.at)
    frequent = sorted(by_caption.items(), key=lambda item: -len(item[1]))[: LIMITS["groups"]]
    return {caption: images[:_MAX_NUMBERS] for caption, images in frequent}


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


def _crops(images: Iterable[NumberedImage], buckets: Sequence[Bucket]) -> list[tuple[NumberedImage, str]]:
    """The images of which most is cropped, and in which direction: `across`, `down`, or empty if that is not known."""
    losing = [
        (cropped, image)
        for image in images
        if (cropped := image.image.cropped or 0.0) > _MIN_CROPPED and image.image.status == "kept"
    ]
    losing.sort(key=lambda pair: -pair[0])
    return [(image, _crop_direction(image.image, cropped, buckets)) for cropped, image in losing[:_MAX_CROPPED]]


def _crop_direction(image: Image, cropped: float, buckets: Sequence[Bucket]) -> str:
    """Find the bucket that explains this crop, and compare its shape with the image's."""
    if not image.width or not image.height:
        return ""
    aspect = image.width / image.height
    for bucket in buckets:
        shape = bucket.width / bucket.height
        # The report rounds shares to four digits.
        if abs(1 - min(aspect / shape, shape / aspect) - cropped) < 0.001:
            return "across" if shape < aspect else "down"
    return ""
