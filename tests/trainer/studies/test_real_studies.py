"""Studies with the real trainer, on a random base: what the folds, the candidates and the winner really do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob, job_maker
from tests.trainer.studies.studying import epochs_of, events_of
from trainer.protocol import events
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, Finished, Started
from trainer.protocol.study import CompareOrder, KfoldOrder, StudyStep, write_study_order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

THIN = {
    "method": {"text_encoder": False},
    "samples": {"steps": 1, "prompts": ["a red egg"]},
    "validation": {"timesteps": 2, "draws": 1, "train_images": 2},
}


RATES = "training.learning_rate=1e-6,3e-3,1e-2"


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


@pytest.fixture(scope="module")
def make_study(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    return job_maker(dataset, random_base, tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def folds(make_study: MakeJob) -> tuple[Path, str]:
    """A cross-validation that ran its folds itself, and what it said."""
    job = make_study("kfold", **THIN, training={"epochs": 2, "repeats": 1})
    return job, study("kfold", str(job), "--folds", "2")


@pytest.fixture(scope="module")
def rates(make_study: MakeJob) -> tuple[Path, str]:
    """A comparison that ran its candidates itself, and what it said."""
    job = make_study("compare", **THIN, training={"epochs": 3, "repeats": 1})
    return job, study("compare", str(job), "--vary", RATES, "--first-look", "2", "--finish")


def test_two_folds_and_a_final_run_on_all_pictures(folds: tuple[Path, str]) -> None:
    job, said = folds

    assert "Over 2 folds the best validation loss is" in said
    started = [events_of(job / "folds" / str(fold), Started)[0] for fold in (1, 2)]
    final = events_of(job / "final", Started)[0]
    # 12 pictures, of which 2 or so are apart for the test.
    assert sum(one.validation_images for one in started) == final.train_images
    assert all(one.train_images + one.validation_images == final.train_images for one in started)
    assert final.test_images == started[0].test_images > 0
    assert [len(events_of(job / "folds" / str(fold), events.Tested)) for fold in (1, 2)] == [0, 0]
    assert len(events_of(job / "final", events.Tested)) == 1
    assert len(events_of(job / "final", Finished)) == 1
    assert (job / "results.html").exists()


def test_three_rates_one_of_which_ends_early_and_the_winner_is_finished(rates: tuple[Path, str]) -> None:
    job, said = rates

    assert "wins" in said.splitlines()[0]
    assert "On the test pictures its loss is" in said
    [rung] = json.loads((job / "study.json").read_bytes())["rungs"]
    assert rung["epoch"] == 2
    assert rung["ended"] == ["c01"], "a rate that learns nothing"
    assert [epochs_of(folder_of(job, name)) for name in ("c01", "c02", "c03")] == [[1, 2], [1, 2, 3], [1, 2, 3]]
    assert len(events_of(job / "winner", events.Tested)) == 1
    assert epochs_of(job / "winner") == [1, 2, 3]


def test_folds_that_a_queue_runs_give_the_same_numbers(make_job: MakeJob, folds: tuple[Path, str]) -> None:
    itself, _ = folds
    queue = make_job("queue", **THIN, training={"epochs": 2, "repeats": 1})
    write_study_order(queue, KfoldOrder(folds=2))
    while not (step := StudyStep.model_validate_json(study("study", str(queue)).splitlines()[-1])).is_over:
        for goal in step.goals:
            study("run", str(queue / goal.folder))

    assert step.result == "final"
    assert (queue / step.result / "output").is_dir()
    for folder in ("folds/1", "folds/2", "final"):
        assert numbers_of(queue / folder) == numbers_of(itself / folder)
    assert set(step.verdict) <= set((itself / "results.md").read_text(encoding="utf-8").splitlines())


def test_a_candidate_that_is_stopped_at_a_look_goes_on_to_the_same_numbers(
    make_job: MakeJob, rates: tuple[Path, str]
) -> None:
    itself, _ = rates
    queue = make_job("queue", **THIN, training={"epochs": 3, "repeats": 1})
    write_study_order(queue, CompareOrder(vary=(RATES,), first_look=2))
    while not (step := StudyStep.model_validate_json(study("study", str(queue)).splitlines()[-1])).is_over:
        for goal in step.goals:
            run_until(queue / goal.folder, goal.until_epoch)

    assert step.result == "winner"
    rungs = [json.loads((job / "study.json").read_bytes())["rungs"] for job in (queue, itself)]
    assert rungs[0] == rungs[1]
    for folder in (*(f"candidates/{name}" for name in ("c02", "c03")), "winner"):
        assert numbers_of(queue / folder) == numbers_of(itself / folder)


def run_until(job_dir: Path, until_epoch: int | None) -> None:
    """As a bot does: SIGTERM once the epoch was said to have ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", "run", str(job_dir)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        while process.poll() is None:
            if until_epoch is not None and until_epoch in epochs_of(job_dir):
                process.terminate()
                until_epoch = None
            time.sleep(0.02)
    assert process.returncode in {EXIT_FINISHED, EXIT_STOPPED}


def numbers_of(job_dir: Path) -> list[tuple[float, ...]]:
    """What was measured, epoch by epoch, and in the test."""
    measured = [(one.validation.ratio, one.train_loss) for one in events_of(job_dir, events.EpochEnded)]
    return [*measured, *((one.test.ratio,) for one in events_of(job_dir, events.Tested))]


def folder_of(job: Path, name: str) -> Path:
    return job / "candidates" / name
