"""The soak bench at a small size: nothing is lost or sent twice while bot and trainers are killed and frozen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


def test_eight_jobs_end_once_each_while_processes_are_killed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    options = ["--jobs=8", "--users=3", "--seed=7", "--minutes=10", f"--folder={folder}"]

    ran = subprocess.run(
        [sys.executable, "-m", "bench.soak", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    log = folder / "bot.log"
    assert ran.returncode == 0, ran.stdout + ran.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")
    assert "| bot killed |" in ran.stdout
    assert "| trainer killed |" in ran.stdout
