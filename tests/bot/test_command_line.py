"""`python -m bot`: every invalid input is one sentence and exit status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bot.__main__ import main

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DARKROOM_TOKEN", raising=False)


def test_no_token_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "DARKROOM_TOKEN is not set" in capsys.readouterr().err


def test_a_missing_config_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "nope.toml"]) == 2
    assert "There is no such file" in capsys.readouterr().err


def test_an_invalid_config_names_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("[queue]\nslotss = 1\n[limits]\nmin_images = 0\n")
    assert main(["run"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean queue.slots?" in shown
    assert "limits.min_images is 0" in shown
    assert "Traceback" not in shown


def test_a_demo_without_its_dataset_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--headless", "--dataset", "nope.zip"]) == 2
    assert "The demo's dataset cannot be read" in capsys.readouterr().err


def test_a_sync_needs_the_token_because_only_discord_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--dry-run"]) == 2
    assert "DARKROOM_TOKEN is not set" in capsys.readouterr().err


#: What `python -m bot run` makes before it connects, with a trainer that writes a file.
MAKES = """
import asyncio, pathlib, sys
import bot.__main__ as command_line
from bot.db import DATABASE_FILE, back_up, hold_data_folder, open_db
from bot.runners.child_process import run_and_capture

async def make(data_dir):
    with hold_data_folder(data_dir):
        async with open_db(data_dir / DATABASE_FILE):
            pass
        await back_up(data_dir / DATABASE_FILE, data_dir / "backups", keep=1)
        (data_dir / "jobs" / "1").mkdir(parents=True)
        trainer = "import os; os.chdir('data/jobs/1'); open('trainer.log', 'w').close(); os.mkdir('output')"
        await run_and_capture([sys.executable, "-c", trainer], {}, timeout_s=30)
    return 0

command_line._run_command = lambda options: asyncio.run(make(pathlib.Path("data")))
sys.argv[1:] = ["run"]
sys.exit(command_line.main())
"""


def test_what_the_bot_writes_is_for_its_user_alone(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    # As most shells have it.
    subprocess.run([sys.executable, "-c", MAKES], cwd=tmp_path, env=environ, umask=0o022, check=True, timeout=60)

    made = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    assert {"darkroom.db", "backups", "trainer.log", "output"} <= {path.name for path in made}
    assert {path.stat().st_mode & 0o077 for path in made} == {0}
