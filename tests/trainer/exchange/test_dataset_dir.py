"""A report of many images is written, read and held in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.trainer.report.sample_reports import found, report_image, report_of
from trainer.exchange.dataset_dir import REPORT_FILE, read_report, write_report
from trainer.protocol.report import FindingKind

IMAGES = 1_000
T = TypeVar("T")


def memory_of(action: Callable[[], T]) -> tuple[T, int, int]:
    """The result of an action, the memory that it leaves, and the most that it takes, in bytes for an image."""
    tracemalloc.start()
    try:
        result = action()
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, left // IMAGES, most // IMAGES


def test_a_report_is_read_as_it_was_written_with_an_image_a_line(tmp_path: Path) -> None:
    quoting = '"images":[] \\ \n'
    images = [report_image(1, caption=quoting), report_image(2, None), report_image(3, group=1)]
    report = report_of(images, summary=quoting)
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert len((tmp_path / REPORT_FILE).read_text(encoding="utf-8").splitlines()) == len(images) + 2


def test_a_report_without_images_can_be_read(tmp_path: Path) -> None:
    write_report(tmp_path, report_of([]))
    assert read_report(tmp_path) == report_of([])


def test_an_image_of_a_report_takes_less_than_a_kilobyte_or_two(tmp_path: Path) -> None:
    findings = tuple(found(kind, measure=1.5, threshold=1.0) for kind in (FindingKind.BLUR, FindingKind.OUTLIER))
    report = report_of(report_image(number, findings=findings) for number in range(1, IMAGES + 1))
    # Written as one text, it was in memory several times: 4 KB.
    assert memory_of(lambda: write_report(tmp_path, report))[2] < 500
    _report, left, most = memory_of(lambda: read_report(tmp_path))
    # As pydantic models, an image and two findings took 5 KB.
    assert left < 1_800
    # With the file.
    assert most < 2_800
