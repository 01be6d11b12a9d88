"""The soak benches at a small size: nothing is lost or sent twice while processes are killed and Discord fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


def soak(module: str, log: Path, *options: str) -> str:
    """Run a soak bench, which must find nothing; return its table."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")
    return ran.stdout


def test_eight_jobs_end_once_each_while_processes_are_killed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    options = ["--jobs=8", "--users=3", "--seed=7", "--minutes=10", f"--folder={folder}"]
    table = soak("bench.soak", folder / "bot.log", *options)
    assert "| bot killed |" in table
    assert "| trainer killed |" in table


def test_four_jobs_are_told_once_each_while_discord_fails(tmp_path: Path) -> None:
    options = ["--jobs=4", "--seed=3", "--minutes=0.6", f"--folder={tmp_path}"]
    table = soak("bench.soak_wire", tmp_path / "bot/bot.log", *options)
    assert re.search(r"\| requests met by: [^|]+ \| [1-9]", table)
