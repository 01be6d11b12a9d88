"""A dataset's report as one file: its pages show pictures by their paths, so they travel together."""

from __future__ import annotations

import zipfile
from pathlib import Path

from trainer.protocol.report import DatasetReport


def pack_report(folder: Path, report: DatasetReport, out: Path) -> Path:
    """Write `out`, a zip of the report's pages, sheets and thumbnails; what is not there is left out."""
    pages = [*report.pages, "report.json"]
    thumbnails = [image.thumbnail for image in report.images if image.thumbnail]
    # Pictures are compressed already.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in dict.fromkeys([*pages, *report.sheets, *thumbnails]):
            if (folder / name).is_file():
                archive.write(folder / name, name)
    return out
