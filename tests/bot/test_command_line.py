"""`python -m bot`: every bad input is one sentence and exit status 2."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.__main__ import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DARKROOM_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`run` logs to this test's standard error, which is closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_no_token_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "DARKROOM_TOKEN is not set" in capsys.readouterr().err


def test_a_config_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "nope.toml"]) == 2
    assert "There is no such file" in capsys.readouterr().err


def test_a_config_that_does_not_parse_names_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("[queue]\nslotss = 1\n[limits]\nmin_images = 0\n")
    assert main(["run"]) == 2
    told = capsys.readouterr().err
    assert "did you mean queue.slots?" in told
    assert "limits.min_images is 0" in told
    assert "Traceback" not in told


def test_a_demo_without_its_pictures_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--headless", "--dataset", "nope.zip"]) == 2
    assert "The demo's dataset cannot be read" in capsys.readouterr().err


def test_a_dry_sync_says_what_would_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--dry-run"]) == 1
    told = capsys.readouterr().out
    assert "all servers: changed" in told
    assert "/finetune dataset from_dataset preset" in told
