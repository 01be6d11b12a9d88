"""`trainer prepare`: turns sources into a dataset folder with `report.json`, or raises one error that says why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.console import Progress, ignore_progress
from trainer.dataset.dataset_folder import (
    DROPPED,
    EDITS_NAME,
    IMAGES,
    REPORT_NAME,
    SHEETS,
    THUMBNAILS,
    publish_folder,
)
from trainer.dataset.images.cropping import crop_images
from trainer.dataset.images.image_record import ImageRecord
from trainer.dataset.input_files import Limits
from trainer.dataset.memory import release_memory, return_large_blocks
from trainer.dataset.preparing.assessment import assess, assess_together, measured_features
from trainer.dataset.preparing.decode_cache import DecodeCache, DecodedImages, previous_splits
from trainer.dataset.preparing.intake import read_images
from trainer.dataset.preparing.reporting import ReportContext, make_report
from trainer.dataset.preparing.summary import nothing_to_train_on
from trainer.dataset.sources.source_readers import Sources
from trainer.dataset.split.group_split import Shares, assign_splits
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report, write_edits, write_report
from trainer.protocol.bucket_shapes import COMMON_RESOLUTIONS
from trainer.protocol.edits import Edits
from trainer.protocol.report import DatasetReport
from trainer.protocol.text import _

#: Raise it when the same input would be prepared differently.
_METHOD_VERSION = 12

#: Only sets of thousands of images have arrays of this size, which are not worth keeping.
_ARRAY_BYTES = 4 * 2**20

#: Draws contact sheets: from a report and its thumbnails by image number into a folder; returns the files.
DrawSheets = Callable[[DatasetReport, Mapping[int, Path], Path], Sequence[Path]]
#: Writes the report for people into the dataset folder; returns the files.
WritePages = Callable[[DatasetReport, Path], Sequence[Path]]


def prepare(
    sources: Sequence[Path | str],
    out: Path,
    *,
    limits: Limits = Limits(),  # noqa: B008  frozen
    resolutions: Sequence[int] = COMMON_RESOLUTIONS,
    shares: Shares = Shares(),  # noqa: B008  frozen
    edits: Edits = Edits(),  # noqa: B008  frozen
    earlier: Sequence[Path] = (),
    draw_sheets: DrawSheets | None = None,
    write_pages: WritePages | None = None,
    progress: Progress = ignore_progress,
) -> DatasetReport:
    """Prepare a dataset folder; preparing the same input again only returns its report.

    Args:
        sources: Archives, folders, image files, and `hf://` names.
        out: The dataset folder. If it was prepared before, its decoded images and splits are reused.
        limits: Limits on what is opened and kept.
        resolutions: Training resolutions that the report tells about, px.
        shares: Shares of the validation and test splits.
        edits: What people decided about the images and captions.
        earlier: Further dataset folders whose decoded images and splits are reused.
        draw_sheets, write_pages: Draw contact sheets, and write the report for people.
        progress: Called with phase, done and total.

    Raises:
        DatasetError: The sources hold nothing to train on, or `out` cannot be written; `out` is unchanged.
    """
    _require_outside(sources, out)
    reused = [*earlier, out]
    with Sources(sources, limits, layout=edits.layout, caption_column=edits.caption_column, out=out) as opened:
        # Without `out`: the same input would get another digest once it is prepared.
        splits, drawn = previous_splits(earlier, shares), [draw_sheets is not None, write_pages is not None]
        settings = _as_json(limits, resolutions, shares, edits) | {"earlier": splits, "drawn": drawn}
        input_digest = _sha256([opened.digest(), settings])
        if (existing := _existing_report(out, input_digest)) is not None:
            return existing
        with publish_folder(out) as root:
            records, features = _assessed(opened, root, reused, limits=limits, edits=edits, progress=progress)
            refused = tuple(sorted(opened.refused, key=lambda entry: entry.source))
            if not any(record.is_kept for record in records):
                raise nothing_to_train_on(sources, records, refused)
            records = crop_images(records, root, edits.crops, limits)
            records = assign_splits(records, shares, previous_splits(reused, shares))
            context = ReportContext(
                input_digest=input_digest,
                resolutions=tuple(resolutions),
                shares=shares,
                trigger=edits.rules.trigger,
                refused=refused,
                recognized=tuple(opened.recognized),
                caption_columns=tuple(opened.caption_columns),
            )
            report = make_report(records, features, context)
            _set_dropped_aside(report, root)
            write_edits(root / EDITS_NAME, edits)
            report = _draw(report, root, draw_sheets, write_pages, progress)
            # The report comes last: a folder with a report is complete.
            write_report(root, report)
    return report


def _assessed(
    sources: Sources, root: Path, reused: Sequence[Path], *, limits: Limits, edits: Edits, progress: Progress
) -> tuple[list[ImageRecord], dict[int, bytes]]:
    """Read and assess the images; return them, and the features of those that are kept, by number."""
    with DecodedImages(root, limits) as decoded:
        cached = DecodeCache(reused, limits).link
        records = read_images(sources, root, limits, progress, cached=cached, decoded=decoded.add)
        # What was read of the sources takes more memory than the records.
        del cached
        release_memory()
        # Else the heap keeps the arrays in which candidates for duplicates are looked for: 71 MiB of 20,000 images.
        return_large_blocks(_ARRAY_BYTES)
        records = assess(records, decoded, root / THUMBNAILS, limits=limits, edits=edits, progress=progress)
        features = measured_features(records, decoded)
    return assess_together(records, features, edits), features


def _as_json(limits: Limits, resolutions: Sequence[int], shares: Shares, edits: Edits) -> dict[str, Any]:
    return {
        "method": _METHOD_VERSION,
        "limits": asdict(limits),
        "resolutions": list(resolutions),
        "shares": asdict(shares),
        "edits": edits.model_dump(mode="json"),
    }


def _require_outside(sources: Sequence[Path | str], out: Path) -> None:
    """Refuse to replace the folder that a source is in."""
    for source in sources:
        path = Path(source).resolve()
        if path.exists() and path.is_relative_to(out.resolve()) and (out / REPORT_NAME).is_file():
            message = _("{source} is in the dataset folder {out}, which would be replaced.", source=source, out=out)
            raise DatasetError(message, _("Choose another --out."))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _existing_report(out: Path, input_digest: str) -> DatasetReport | None:
    """The report in `out` if it was made from the same input and its files exist."""
    try:
        report = read_report(out)
    except (OSError, ValidationError):
        return None
    kept = [file for image in report.images for file in (image.path, image.mask, image.uncropped) if file]
    is_complete = all((out / file).is_file() for file in (*kept, *report.sheets, *report.pages))
    return report if report.input_digest == input_digest and is_complete else None


def _set_dropped_aside(report: DatasetReport, root: Path) -> None:
    """Move dropped images to their own folder: a later decision can keep them without decoding."""
    kept = {root / image.path for image in report.images if image.path}
    (root / DROPPED).mkdir()
    for path in list((root / IMAGES).iterdir()):
        if path not in kept:
            path.rename(root / DROPPED / path.name)


def _draw(
    report: DatasetReport,
    root: Path,
    draw_sheets: DrawSheets | None,
    write_pages: WritePages | None,
    progress: Progress,
) -> DatasetReport:
    """Draw the sheets, write the pages, and return the report that lists them."""
    progress("drawing", 0, 1)
    if draw_sheets is not None:
        folder = root / SHEETS
        folder.mkdir()
        thumbnails = {n: root / image.thumbnail for n, image in enumerate(report.images, 1) if image.thumbnail}
        sheets = draw_sheets(report, thumbnails, folder)
        report = report.model_copy(update={"sheets": tuple(path.relative_to(root).as_posix() for path in sheets)})
    if write_pages is not None:
        pages = write_pages(report, root)
        report = report.model_copy(update={"pages": tuple(path.relative_to(root).as_posix() for path in pages)})
    progress("drawing", 1, 1)
    return report
