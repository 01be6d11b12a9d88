"""`trainer prepare`: from sources to a dataset folder with `report.json` and sheets, or one reason why not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from trainer.dataset import findings
from trainer.dataset.buckets import bucket_for, cropped_share, default_step
from trainer.dataset.findings import Verdict
from trainer.dataset.intake import Folder, Found, Progress, take_in
from trainer.dataset.limits import Limits
from trainer.dataset.publish import REPORT_NAME, publishing
from trainer.dataset.sources import Sources
from trainer.dataset.split import Member, Shares, split
from trainer.dataset.summary import nothing_to_train_on, summarize
from trainer.protocol.report import Bucket, Counts, DatasetReport, Image, Split, read_report

#: Raise it when the same input would be prepared otherwise.
_METHOD_VERSION = 1

#: Draws contact sheets of a report: thumbnails by picture number (place in `images`, from 1), and the folder to write
#: to; returns the files.
DrawSheets = Callable[[DatasetReport, Mapping[int, Path], Path], Sequence[Path]]


def _silent(phase: str, done: int, total: int) -> None:
    pass


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    limits: Limits = Limits(),  # noqa: B008  frozen
    resolution: int = 512,
    shares: Shares = Shares(),  # noqa: B008  frozen
    known: Mapping[str, Split] | None = None,
    draw_sheets: DrawSheets | None = None,
    progress: Progress | None = None,
) -> DatasetReport:
    """Prepare a dataset folder from zip archives, folders and loose files; the same input again is a look-up.

    `known` holds pictures of an earlier preparation in their splits (pixel hash to split).

    Raises:
        DatasetError: nothing in the sources can be trained on, or `out` cannot be written; nothing was made.
    """
    progress = progress or _silent
    with Sources(sources, limits) as opened:
        settings = {
            "method": _METHOD_VERSION,
            "limits": asdict(limits),
            "resolution": resolution,
            "shares": asdict(shares),
            "known": dict(known or {}),
            "sheets": draw_sheets is not None,
        }
        input_digest = _sha256([opened.digest(), settings])
        if (ready := _look_up(out, input_digest)) is not None:
            return ready
        with publishing(out) as root:
            folder = Folder(root=root)
            folder.make()
            found = take_in(opened, folder, limits, progress)
            refused = tuple(sorted(opened.refused, key=lambda entry: entry.source))
            verdicts = findings.judge(found, folder, limits, resolution, progress)
            if all(verdict.is_dropped for verdict in verdicts):
                raise nothing_to_train_on(sources, verdicts, refused)
            images = _images(verdicts, _splits(verdicts, shares, known))
            counts = _counts(images, len(refused))
            buckets = _buckets(images, resolution)
            report = DatasetReport(
                digest=_sha256(
                    sorted([i.pixels_sha256, i.caption, i.split] for i in images if i.status == "kept"),
                ),
                input_digest=input_digest,
                counts=counts,
                summary=summarize(images, refused, counts, buckets, resolution),
                images=images,
                refused=refused,
                buckets=buckets,
                resolution=resolution,
            )
            report = _finish(report, folder, draw_sheets, progress)
    return report


def _look_up(out: Path, input_digest: str) -> DatasetReport | None:
    """The report in `out`, if it was made of the same input in the same way and its files are there."""
    try:
        report = read_report(out)
    except (OSError, ValidationError):
        return None
    files = [image.path for image in report.images if image.path] + list(report.sheets)
    is_whole = all((out / file).is_file() for file in files)
    return report if report.input_digest == input_digest and is_whole else None


def _splits(verdicts: Sequence[Verdict], shares: Shares, known: Mapping[str, Split] | None) -> dict[int, Split]:
    kept = [verdict for verdict in verdicts if not verdict.is_dropped]
    members = [
        Member(content=verdict.decoded.pixels_sha256, group=verdict.group, class_name=verdict.found.class_name)
        for verdict in kept
        if verdict.decoded is not None
    ]
    chosen = split(members, shares, known)
    return {verdict.found.number: side for verdict, side in zip(kept, chosen, strict=True)}


def _images(verdicts: Sequence[Verdict], splits: Mapping[int, Split]) -> tuple[Image, ...]:
    return tuple(_image(verdict, verdict.found, splits.get(verdict.found.number)) for verdict in verdicts)


def _image(verdict: Verdict, found: Found, side: Split | None) -> Image:
    decoded, caption = verdict.decoded, found.caption
    return Image(
        source=found.source,
        status="dropped" if verdict.is_dropped else "kept",
        findings=tuple(verdict.findings),
        group=verdict.group,
        split=side,
        caption=caption.text if caption else "",
        caption_source=caption.source if caption else None,
        pixels_sha256=decoded.pixels_sha256 if decoded else None,
        width=decoded.width if decoded else None,
        height=decoded.height if decoded else None,
        path=None if verdict.is_dropped else f"images/{found.number:04}.png",
    )


def _counts(images: Sequence[Image], refused: int) -> Counts:
    kept = [image for image in images if image.status == "kept"]
    sides = {side: sum(image.split is side for image in kept) for side in Split}
    return Counts(
        images=len(images),
        kept=len(kept),
        dropped=len(images) - len(kept),
        refused=refused,
        train=sides[Split.TRAIN],
        validation=sides[Split.VALIDATION],
        test=sides[Split.TEST],
        captioned=sum(bool(image.caption) for image in kept),
    )


def _buckets(images: Sequence[Image], resolution: int) -> tuple[Bucket, ...]:
    sizes = [(i.width, i.height) for i in images if i.status == "kept" and i.width and i.height]
    step = default_step(resolution, len(sizes))
    held: dict[tuple[int, int], list[float]] = {}
    for size in sizes:
        bucket = bucket_for(*size, resolution, step)
        held.setdefault(bucket, []).append(cropped_share(size, bucket))
    return tuple(
        Bucket(width=width, height=height, images=len(crops), mean_cropped=sum(crops) / len(crops))
        for (width, height), crops in sorted(held.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _finish(report: DatasetReport, folder: Folder, draw_sheets: DrawSheets | None, progress: Progress) -> DatasetReport:
    """Draw the sheets, take away what is dropped, and write the report last."""
    if draw_sheets is not None:
        progress("drawing", 0, 1)
        sheets = folder.root / "sheets"
        sheets.mkdir()
        numbers = range(1, len(report.images) + 1)
        thumbnails = {number: path for number in numbers if (path := folder.thumbnail(number)).is_file()}
        drawn = draw_sheets(report, thumbnails, sheets)
        report = report.model_copy(update={"sheets": tuple(path.relative_to(folder.root).as_posix() for path in drawn)})
        progress("drawing", 1, 1)
    for number, image in enumerate(report.images, start=1):
        if image.path is None:
            folder.picture(number).unlink(missing_ok=True)
    shutil.rmtree(folder.thumbnail(0).parent)
    with (folder.root / REPORT_NAME).open("w", encoding="utf-8") as file:
        file.write(report.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return report


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
