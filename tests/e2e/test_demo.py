"""The demo without a page: the real bot in a simulated Discord, with a trainer that trains nothing."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from bot.app.compose import compose
from bot.demo import show
from tests.bot.cogs.conftest import archive, forked_trainer


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(show, "compose", functools.partial(compose, trainer=forked_trainer()))
    path = tmp_path / "fox.zip"
    path.write_bytes(archive()[1])
    return path


def run(tmp_path: Path, dataset: Path) -> int:
    return show.run_demo(data=tmp_path / "demo-data", dataset=dataset, port=0, is_headless=True)


def test_the_demo_prints_the_channel_and_the_paths_of_the_files(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, dataset) == 0
    output = capsys.readouterr().out
    # The name comes first because the card, posted earlier, may show an epoch too; short epochs are posted together.
    in_thread = ["#1 fox · Before training", "#1 fox · Epoch", "Stopped early after epoch"]
    wanted = ["/finetune dataset:fox.zip", "Queued #1", *in_thread]
    positions = [output.find(text) for text in wanted]
    assert -1 not in positions, output
    assert positions == sorted(positions)
    # The result is in the channel, which does not wait for the thread.
    assert "#1 fox is done" in output
    assert "[file] fox-kohya.safetensors" in output
    assert "output/kohya.safetensors" in output
    assert "<@" not in output


def test_the_demo_fails_if_the_training_fails(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_trouble = ("env", "FAKE_TROUBLE=oom:2", *forked_trainer())
    monkeypatch.setattr(show, "compose", functools.partial(compose, trainer=in_trouble))
    assert run(tmp_path, dataset) == 1
    assert "It ran out of memory at step 9." in capsys.readouterr().out
