"""A trainer that is killed at any named point and started again ends as one that never was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainer.crashing import POINTS
from trainer.protocol.events import EXIT_FINISHED, EpochEnded, Event, Failed, Finished, Stopped
from trainer.protocol.presets import spec_from_preset
from trainer.reporter import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

#: As small as a run can be that has two epochs, a test and an export.
SHORT: dict[str, Any] = {
    "training": {"epochs": 2, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 4, "repeats": 1},
    "method": {"rank": 2, "alpha": 2.0},
    "validation": {"timesteps": 1, "draws": 1},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": []},
}
Start = Callable[..., int]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """`start(job_dir, "event_written:3")`: a real trainer, run to its end; its exit status."""
    argv = [sys.executable, "-m", "tests.trainer.training.fork_trainer"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        told, answers = server.stdin, server.stdout

        def start(job_dir: Path, crash_at: str = "") -> int:
            told.write(json.dumps([str(job_dir), crash_at]) + "\n")
            told.flush()
            return int(answers.readline())

        yield start
        told.close()


@pytest.fixture(scope="module")
def undisturbed(start: Start, dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = tmp_path_factory.mktemp("undisturbed") / "job"
    spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=SHORT).write(job_dir)
    assert start(job_dir) == EXIT_FINISHED, (job_dir / "trainer.log").read_text(encoding="utf-8")
    return job_dir


def told(job_dir: Path) -> Counter[tuple[str, int]]:
    """How often what must be told once was told."""
    once = ("base_validated", "stage_began", "sampled", "epoch_ended", "tested", "finished")
    return Counter((event.type, getattr(event, "epoch", 0)) for event in read_events(job_dir) if event.type in once)


def last_words(job_dir: Path) -> list[Event]:
    return [event for event in read_events(job_dir) if isinstance(event, Finished | Stopped | Failed)]


@pytest.mark.parametrize("point", [*POINTS, "event_half_written:6", "checkpoint_half_written:2"])
def test_killed_there_and_started_again_it_ends_as_one_that_never_was(
    start: Start, undisturbed: Path, tmp_path: Path, point: str
) -> None:
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    (job_dir / "spec.json").write_bytes((undisturbed / "spec.json").read_bytes())

    assert start(job_dir, point) == -signal.SIGKILL, (job_dir / "trainer.log").read_text(encoding="utf-8")
    # As the bot does: whoever had a last word is not started again.
    if not last_words(job_dir):
        assert start(job_dir) == EXIT_FINISHED, (job_dir / "trainer.log").read_text(encoding="utf-8")

    assert told(job_dir) == told(undisturbed)
    assert len(last_words(job_dir)) == 1
    seqs = [event.seq for event in read_events(job_dir)]
    assert seqs == list(range(1, len(seqs) + 1))
    ours, theirs = (
        [(e.train_loss, e.validation.loss) for e in read_events(each) if isinstance(e, EpochEnded)]
        for each in (job_dir, undisturbed)
    )
    assert ours == theirs
    exported, expected = (
        load_file(each / "output/diffusers/pytorch_lora_weights.safetensors") for each in (job_dir, undisturbed)
    )
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in exported)
