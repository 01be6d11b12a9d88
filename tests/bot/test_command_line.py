"""`python -m bot`: every invalid input is one sentence and exit status 2."""

from __future__ import annotations

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


def test_a_dry_run_of_a_sync_shows_what_would_be_synced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--dry-run"]) == 1
    shown = capsys.readouterr().out
    assert "all servers: changed" in shown
    assert "/finetune dataset from_dataset preset" in shown
