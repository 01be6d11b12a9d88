"""Files that another process has named are found inside their folder only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.exchange.files import locate


def test_a_file_of_the_folder_is_found_also_by_a_link_within_it(tmp_path: Path) -> None:
    (tmp_path / "job" / "samples").mkdir(parents=True)
    (tmp_path / "job" / "samples" / "a.png").write_bytes(b"png")
    (tmp_path / "job" / "newest.png").symlink_to("samples/a.png")
    (tmp_path / "link").symlink_to("job")

    for path in ("samples/a.png", "newest.png"):
        assert locate(tmp_path / "link", path) == (tmp_path / "job" / "samples" / "a.png").resolve()


@pytest.mark.parametrize(
    "path",
    ["../secret", "/etc/passwd", "file", "folder/secret", "loop", "pipe", "none", "", "samples", "a\0b", "x" * 5000],
)
def test_no_other_file_is_found(tmp_path: Path, path: str) -> None:
    job = tmp_path / "job"
    (job / "samples").mkdir(parents=True)
    (tmp_path / "secret").write_text("token")
    (job / "file").symlink_to(tmp_path / "secret")
    (job / "folder").symlink_to(tmp_path)
    (job / "loop").symlink_to("loop")
    os.mkfifo(job / "pipe")

    with pytest.raises(FileNotFoundError):
        locate(job, path)
