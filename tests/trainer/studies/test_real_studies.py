"""Studies with the real trainer, on a random base: what the folds, the candidates and the winner really do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob
from tests.trainer.studies.studying import epochs_of, events_of
from trainer.protocol import events
from trainer.protocol.events import Finished, Started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

THIN = {
    "method": {"text_encoder": False},
    "samples": {"steps": 1, "prompts": ["a red egg"]},
    "validation": {"timesteps": 2, "draws": 1, "train_images": 2},
}


def study(*arguments: str) -> str:
    """What the command said at its end."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_folds_and_a_final_run_on_all_pictures(make_job: MakeJob) -> None:
    job = make_job("kfold", **THIN, training={"epochs": 2, "repeats": 1})
    said = study("kfold", str(job), "--folds", "3")

    assert "Over 3 folds the best validation loss is" in said
    started = [events_of(job / "folds" / str(fold), Started)[0] for fold in (1, 2, 3)]
    final = events_of(job / "final", Started)[0]
    # 12 pictures, of which 2 or so are apart for the test.
    assert sum(one.validation_images for one in started) == final.train_images
    assert all(one.train_images + one.validation_images == final.train_images for one in started)
    assert final.test_images == started[0].test_images > 0
    assert [len(events_of(job / "folds" / str(fold), events.Tested)) for fold in (1, 2, 3)] == [0, 0, 0]
    assert len(events_of(job / "final", events.Tested)) == 1
    assert len(events_of(job / "final", Finished)) == 1
    assert (job / "results.html").exists()


def test_three_rates_one_of_which_ends_early_and_the_winner_is_finished(make_job: MakeJob) -> None:
    job = make_job("compare", **THIN, training={"epochs": 3, "repeats": 1})
    said = study(
        *("compare", str(job), "--vary", "training.learning_rate=1e-6,3e-3,1e-2"),
        *("--first-look", "2", "--finish"),
    )

    assert "wins" in said.splitlines()[0]
    assert "On the test pictures its loss is" in said
    [rung] = json.loads((job / "study.json").read_bytes())["rungs"]
    assert rung["epoch"] == 2
    assert rung["ended"] == ["c01"], "a rate that learns nothing"
    assert [epochs_of(folder_of(job, name)) for name in ("c01", "c02", "c03")] == [[1, 2], [1, 2, 3], [1, 2, 3]]
    assert len(events_of(job / "winner", events.Tested)) == 1
    assert epochs_of(job / "winner") == [1, 2, 3]


def folder_of(job: Path, name: str) -> Path:
    return job / "candidates" / name
