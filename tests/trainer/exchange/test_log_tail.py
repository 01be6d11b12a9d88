"""The end of a trainer's log as people read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.exchange.job_dir import LOG_FILE, log_tail


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("one\ntwo\n", "one\ntwo"),
        ("\n\none\n\n", "one"),
        ("0 %\r50 %\r99 %\ndone\n", "99 %\ndone"),
        ("\x1b[31mred\x1b[0m\x07\n", "red"),
        ("/srv/jobs/7/spec.json and /srv/jobs\n", "…/spec.json and …"),
        ("", ""),
    ],
)
def test_a_log_is_shown_without_control_characters_and_paths(tmp_path: Path, log: str, shown: str) -> None:
    (tmp_path / LOG_FILE).write_text(log)
    assert log_tail(tmp_path, hide=("/srv/jobs", "/srv/jobs/7", "")) == shown


def test_of_a_long_log_the_last_whole_lines_are_shown(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_bytes(b"\xff" * 2**20 + b"".join(b"line %d\n" % number for number in range(1000)))
    lines = log_tail(tmp_path).splitlines()
    assert lines[-1] == "line 999"
    assert lines[0].startswith("line ")
    assert len("\n".join(lines)) <= 1500


def test_a_log_that_is_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    assert log_tail(job_dir) == ""
    (job_dir / LOG_FILE).symlink_to(tmp_path / "secret")
    assert log_tail(job_dir) == ""
