"""Reads and writes the files of a prepared dataset: `report.json`, its edits, and the progress of its preparation."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.exchange.files import atomic_write, write_text
from trainer.protocol.edits import Edits, EditsError
from trainer.protocol.progress import PrepareProgress
from trainer.protocol.report import DatasetReport, Image
from trainer.protocol.text import _

REPORT_FILE = "report.json"
#: The report as one page with its images in it, so that it can be sent alone; missing for large datasets.
SHARED_PAGE = "report-shared.html"


def read_report(dataset_dir: Path) -> DatasetReport:
    """Read the report of a prepared dataset.

    Raises:
        FileNotFoundError: The folder was not written by `trainer prepare`.
        pydantic.ValidationError: The report has another version or is damaged.
    """
    return DatasetReport.model_validate_json((dataset_dir / REPORT_FILE).read_bytes())


def write_report(dataset_dir: Path, report: DatasetReport) -> None:
    """Write a report, durably; an image a line, since as one text it would be in memory four times."""
    images = TypeAdapter(Image)
    before, after = report.model_copy(update={"images": ()}).model_dump_json().split('"images":[]')
    with atomic_write(dataset_dir / REPORT_FILE, durable=True) as partial, partial.open("wb") as file:
        file.write(before.encode() + b'"images":[')
        for number, image in enumerate(report.images):
            file.write((b",\n" if number else b"\n") + images.dump_json(image))
        file.write(b"\n]" + after.encode() + b"\n")


def write_edits(path: Path, edits: Edits) -> None:
    """Write edits to a file, atomically."""
    write_text(path, edits.model_dump_json(indent=1) + "\n")


def read_edits(path: Path) -> Edits:
    """Read edits from a file.

    Raises:
        EditsError: The file is missing or does not hold edits.
    """
    try:
        return Edits.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EditsError(_("{path} cannot be read: {why}.", path=path, why=error.strerror)) from error
    except ValidationError as error:
        why = error.errors()[0]["msg"].lower()
        raise EditsError(_("{path} does not hold edits ({why}).", path=path, why=why)) from error


def write_progress(path: Path, progress: PrepareProgress) -> None:
    """Write how far a preparation has come, atomically."""
    write_text(path, progress.model_dump_json() + "\n")


def read_progress(path: Path) -> PrepareProgress | None:
    """Read how far a preparation has come; None if it has not said yet."""
    try:
        return PrepareProgress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
