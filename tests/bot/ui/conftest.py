"""Folders with the files that messages show."""

from __future__ import annotations

from pathlib import Path

import pytest

_JOB_FILES = (
    "charts/loss.png",
    "samples/e0/sheet.png",
    "samples/e3/sheet.png",
    "output/cmp.png",
    "output/a.safetensors",
)
_DATASET_FILES = (
    "sheets/1.png",
    "sheets/2.png",
    "sheets/3.png",
    "thumbnails/1.jpg",
    "thumbnails/2.jpg",
    "report.md",
)


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    return _with_files(tmp_path / "jobs" / "42", _JOB_FILES)


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    return _with_files(tmp_path / "prepared", _DATASET_FILES)


def _with_files(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    return folder
