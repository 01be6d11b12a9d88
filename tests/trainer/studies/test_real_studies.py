"""Studies with the real trainer, on a random base: folds, candidates and the winner do what their names promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.conftest import FEW_LAYERS, MakeJob, job_maker
from tests.trainer.fork_server import ForkServer
from tests.trainer.studies.study_helpers import epochs_of, events_of
from trainer.exchange.job_dir import read_spec, sample_folder, write_spec
from trainer.protocol import events
from trainer.protocol.events import EpochEnded, Finished, Started
from trainer.protocol.study import CompareRequest, KfoldRequest, StudyRequest, StudyStep
from trainer.studies.child_runner import ChildRunner, DevicePool, run_study
from trainer.studies.planner import planner_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.usefixtures("quick_charts")]

SMALL = {
    "method": FEW_LAYERS,
    "samples": {"steps": 1, "prompts": ["a red egg"], "every_epochs": 3},
    "validation": {"timesteps": 2, "draws": 1, "train_images": 2},
}


@pytest.fixture(scope="module")
def make_study(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    return job_maker(dataset, random_base, tmp_path_factory.mktemp("studies"))


def run(job: Path, request: StudyRequest, server: ForkServer) -> StudyStep:
    runner = ChildRunner(pool=DevicePool(), must_stop=lambda: False, command=server.command)
    step, was_stopped = run_study(job, planner_for(read_spec(job), request), runner)
    assert not was_stopped
    return step


def test_two_folds_and_a_final_run_on_all_images(make_study: MakeJob, fork_server: ForkServer) -> None:
    job = make_study("kfold", **SMALL, training={"epochs": 2, "repeats": 1})
    step = run(job, KfoldRequest(folds=2), fork_server)

    assert (step.is_over, step.has_failed, step.result) == (True, False, "final")
    assert (job / "final" / "output").is_dir()
    folds = [events_of(job / "folds" / str(fold), Started)[0] for fold in (1, 2)]
    final = events_of(job / "final", Started)[0]
    # 12 images, of which about two are kept for the test.
    assert sum(fold.validation_images for fold in folds) == final.train_images
    assert all(fold.train_images + fold.validation_images == final.train_images for fold in folds)
    assert final.test_images == folds[0].test_images > 0
    tests = [len(events_of(job / folder, events.Tested)) for folder in ("folds/1", "folds/2", "final")]
    assert tests == [0, 0, 1]
    assert len(events_of(job / "final", Finished)) == 1


def test_the_worst_of_three_rates_ends_early_and_the_winner_resumes_bit_for_bit(
    make_study: MakeJob, fork_server: ForkServer
) -> None:
    job = make_study("compare", **SMALL, training={"epochs": 3, "repeats": 1})
    request = CompareRequest(vary=("training.learning_rate=1e-6,3e-3,1e-2",), first_look=2)
    step = run(job, request, fork_server)

    assert (step.is_over, step.has_failed, step.result) == (True, False, "winner")
    assert step.table[-1].test_ratio is not None
    # c01 learns nothing at its rate.
    epochs = {name: epochs_of(job / "candidates" / name) for name in ("c01", "c02", "c03")}
    assert epochs == {"c01": [1, 2], "c02": [1, 2, 3], "c03": [1, 2, 3]}
    assert len(events_of(job / "winner", events.Tested)) == 1
    assert epochs_of(job / "winner") == [1, 2, 3]

    best = job / "candidates" / step.table[0].name
    assert step.samples is not None
    (finished,) = events_of(best, Finished)
    drawn = [pixels(sample_folder(best, epoch) / "3.png") for epoch in (finished.best_epoch, 0)]
    assert lowest_tile(job / step.samples) == drawn[0] != drawn[1]
    assert step.samples_notes[-1] == "Trainings that ended early are not shown: they drew no images."
    whole = job.parent / "whole"
    write_spec(whole, read_spec(best))
    assert fork_server.run("run", str(whole)).returncode == 0
    assert losses_of(whole) == losses_of(best) == losses_of(job / "winner")


def losses_of(job_dir: Path) -> list[tuple[float, float]]:
    """Return what was measured, epoch by epoch."""
    return [(event.validation.ratio, event.train_loss) for event in events_of(job_dir, EpochEnded)]


def lowest_tile(sheet: Path) -> bytes:
    """Return the pixels of the first column's last image, which is enlarged from 64 px to 256."""
    with Image.open(sheet) as image:
        tile = image.convert("RGB").crop((12, image.height - 276, 268, image.height - 20))
    return tile.resize((64, 64), Image.Resampling.NEAREST).tobytes()


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()
