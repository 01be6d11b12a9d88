"""`trainer prepare`: from sources to a dataset folder with `report.json` and sheets, or one reason why not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from trainer.dataset.images.decode_workers import Decoded
from trainer.dataset.layout import DROPPED, EDITS_NAME, PICTURES, SHEETS
from trainer.dataset.limits import Limits
from trainer.dataset.preparing import findings
from trainer.dataset.preparing.assessment import Verdict
from trainer.dataset.preparing.decode_cache import Earlier, known_sides, write_decoded
from trainer.dataset.preparing.intake import Folder, take_in
from trainer.dataset.preparing.reporting import Circumstances, make_report
from trainer.dataset.preparing.summary import nothing_to_train_on
from trainer.dataset.progress import Progress, say_nothing
from trainer.dataset.publish import REPORT_NAME, publishing
from trainer.dataset.sources.source_readers import Sources
from trainer.dataset.split.group_split import Member, Shares, split
from trainer.protocol.edits import Edits
from trainer.protocol.report import DatasetReport, Split, read_report

#: Raise it when the same input would be prepared otherwise.
_METHOD_VERSION = 3

#: Draws contact sheets of a report: thumbnails by picture number (place in `images`, from 1), and the folder to write
#: to; returns the files.
DrawSheets = Callable[[DatasetReport, Mapping[int, Path], Path], Sequence[Path]]
#: Writes the report for people into the dataset folder.
WritePages = Callable[[DatasetReport, Path], Sequence[Path]]


def prepare(
    sources: Sequence[Path | str],
    out: Path,
    *,
    limits: Limits = Limits(),  # noqa: B008  frozen
    resolution: int = 512,
    shares: Shares = Shares(),  # noqa: B008  frozen
    edits: Edits = Edits(),  # noqa: B008  frozen
    earlier: Sequence[Path] = (),
    draw_sheets: DrawSheets | None = None,
    write_pages: WritePages | None = None,
    progress: Progress = say_nothing,
) -> DatasetReport:
    """Prepare a dataset folder from archives, folders and loose files; the same input again is a look-up.

    `earlier` names dataset folders whose decoded pictures are taken over instead of decoded, and whose pictures keep
    their splits; what `out` holds counts as one of them.

    Raises:
        DatasetError: nothing in the sources can be trained on, or `out` cannot be written; nothing was made.
    """
    with Sources(sources, limits) as opened:
        settings = {
            "method": _METHOD_VERSION,
            "limits": asdict(limits),
            "resolution": resolution,
            "shares": asdict(shares),
            "edits": edits.model_dump(mode="json"),
            # Not `out`: preparing the same again must be the same input.
            "earlier": known_sides(earlier, shares),
            "drawn": [draw_sheets is not None, write_pages is not None],
        }
        input_digest = _sha256([opened.digest(), settings])
        if (ready := _look_up(out, input_digest)) is not None:
            return ready
        before = [*earlier, out]
        with publishing(out) as root:
            folder = Folder(root=root)
            folder.make()
            found = take_in(opened, folder, limits, progress, known=Earlier(before, limits).put_in_place)
            refused = tuple(sorted(opened.refused, key=lambda entry: entry.source))
            verdicts = findings.judge(found, folder, limits, resolution, edits, progress)
            if all(verdict.is_dropped for verdict in verdicts):
                raise nothing_to_train_on(sources, verdicts, refused)
            circumstances = Circumstances(
                input_digest=input_digest,
                resolution=resolution,
                shares=shares,
                trigger=edits.rules.trigger,
                refused=refused,
            )
            report = make_report(verdicts, _splits(verdicts, shares, known_sides(before, shares)), circumstances)
            edits.write(root / EDITS_NAME)
            write_decoded(root, _decoded_once(verdicts), limits)
            report = _finish(report, folder, draw_sheets, write_pages, progress)
    return report


def _look_up(out: Path, input_digest: str) -> DatasetReport | None:
    """The report in `out`, if it was made of the same input in the same way and its files are there."""
    try:
        report = read_report(out)
    except (OSError, ValidationError):
        return None
    kept = [file for image in report.images for file in (image.path, image.mask) if file]
    files = [*kept, *report.sheets, *report.pages]
    is_whole = all((out / file).is_file() for file in files)
    return report if report.input_digest == input_digest and is_whole else None


def _splits(verdicts: Sequence[Verdict], shares: Shares, known: Mapping[str, Split]) -> dict[int, Split]:
    kept = [verdict for verdict in verdicts if not verdict.is_dropped]
    members = [
        Member(content=verdict.decoded.pixels_sha256, group=verdict.group, class_name=verdict.found.class_name)
        for verdict in kept
        if verdict.decoded is not None
    ]
    chosen = split(members, shares, known)
    return {verdict.found.number: side for verdict, side in zip(kept, chosen, strict=True)}


def _decoded_once(verdicts: Sequence[Verdict]) -> list[Decoded]:
    """What was decoded; files that are equal byte for byte were decoded once."""
    return list({v.decoded.came_as: v.decoded for v in verdicts if v.decoded is not None}.values())


def _finish(
    report: DatasetReport,
    folder: Folder,
    draw_sheets: DrawSheets | None,
    write_pages: WritePages | None,
    progress: Progress,
) -> DatasetReport:
    """Put aside what is dropped, draw the sheets, write the pages, and the report last."""
    root = folder.root
    _put_dropped_aside(report, root)
    progress("drawing", 0, 1)
    if draw_sheets is not None:
        sheets = root / SHEETS
        sheets.mkdir()
        thumbnails = {n: root / image.thumbnail for n, image in enumerate(report.images, start=1) if image.thumbnail}
        drawn = draw_sheets(report, thumbnails, sheets)
        report = report.model_copy(update={"sheets": tuple(path.relative_to(root).as_posix() for path in drawn)})
    if write_pages is not None:
        pages = write_pages(report, root)
        report = report.model_copy(update={"pages": tuple(path.relative_to(root).as_posix() for path in pages)})
    progress("drawing", 1, 1)
    with (root / REPORT_NAME).open("w", encoding="utf-8") as file:
        file.write(report.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return report


def _put_dropped_aside(report: DatasetReport, root: Path) -> None:
    """Pictures that are not trained on move out of `images`; a person may still want them back."""
    kept = {root / image.path for image in report.images if image.path}
    (root / DROPPED).mkdir()
    for picture in list((root / PICTURES).iterdir()):
        if picture not in kept:
            picture.rename(root / DROPPED / picture.name)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
