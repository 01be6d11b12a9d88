"""A classifier trained by the same recipe: it learns, unfreezes by stages, and resumes to the bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageClassification

from tests.trainer.drawn_classes import draw_class_folders
from tests.trainer.random_classifier import make_random_resnet
from tests.trainer.training.test_recipe import events, of_type, start, wait_for
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    BaseValidated,
    EpochEnded,
    Exported,
    Finished,
    Sampled,
    StageBegan,
    Started,
    StepDone,
)
from trainer.protocol.events import (
    Tested as MeasuredOnce,
)
from trainer.protocol.presets import spec_from_preset
from trainer.training.run import run

pytestmark = pytest.mark.timeout(600)

DEEPER = "backbone.encoder.stages.3"
CHANGES: dict[str, Any] = {
    "training": {"epochs": 5, "repeats": 2, "batch_size": 8, "micro_batch_size": 4, "keep_every_epochs": 1},
    "classifier": {"dropout": 0.2, "label_smoothing": 0.05, "class_weights": "balanced"},
    "stages": [
        {"name": "head", "epochs": 3, "learning_rate": 1e-2, "train": ["head"]},
        {"name": "deeper layers", "epochs": 2, "learning_rate": 1e-3, "train": ["head", DEEPER]},
    ],
    "early_stopping": {"enabled": False, "warmup_epochs": 2},
    "augmentation": {"preset": "none", "variants": 4},
}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_resnet(tmp_path_factory.mktemp("base") / "resnet")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared from folders, as people hand them in."""
    from trainer.dataset.preparing.prepare import prepare

    folder = tmp_path_factory.mktemp("classes")
    draw_class_folders(folder / "pictures", {"circle": 30, "square": 24})
    prepare([folder / "pictures"], folder / "prepared", resolution=64)
    return folder / "prepared"


def write_job(folder: Path, dataset: Path, base: Path, **changes: Any) -> Path:
    spec = spec_from_preset("classifier", dataset=str(dataset), base=str(base), changes={**CHANGES, **changes})
    spec.write(folder)
    return folder


@pytest.fixture(scope="module")
def finished_job(classes: Path, resnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = write_job(tmp_path_factory.mktemp("jobs") / "whole", classes, resnet)
    assert run(job) == EXIT_FINISHED, events(job)[-1]
    return job


def weights_after(job: Path, epoch: int) -> dict[str, Tensor]:
    step = next(event.step for event in of_type(job, EpochEnded) if event.epoch == epoch)
    (path,) = (job / "checkpoints").glob(f"step-{step:08d}/weights.safetensors")
    return load_file(path)


def test_it_learns_and_says_how_well(finished_job: Path) -> None:
    (started,) = of_type(finished_job, Started)
    assert (started.resolution, started.micro_batch_size, started.batch_size) == (64, 4, 8)
    (base,) = of_type(finished_job, BaseValidated)
    assert base.validation.loss == pytest.approx(0.693, rel=0.1)
    ended = of_type(finished_job, EpochEnded)
    assert [event.stage for event in ended] == [1, 1, 1, 2, 2]
    assert ended[-1].metrics["accuracy"] > 0.9
    assert set(ended[-1].metrics) == {"accuracy", "balanced_accuracy", "f1"}
    assert ended[-1].validation.ratio < 0.5
    (tested,) = of_type(finished_job, MeasuredOnce)
    assert tested.metrics["accuracy"] > 0.8
    assert (finished_job / tested.chart).is_file()
    (finished,) = of_type(finished_job, Finished)
    assert "pictures are told rightly" in finished.comparison_alt
    assert (finished_job / finished.comparison).is_file()
    sampled = of_type(finished_job, Sampled)
    assert {sample.prompt for sample in sampled[0].samples} == {"circle", "square"}


def test_the_exported_folder_is_the_best_checkpoint(finished_job: Path) -> None:
    (exported,) = of_type(finished_job, Exported)
    assert exported.max_difference < 1e-4
    model = AutoModelForImageClassification.from_pretrained(finished_job / exported.path)
    assert model.config.id2label == {0: "circle", 1: "square"}
    best = of_type(finished_job, Finished)[0].best_epoch
    weights = weights_after(finished_job, best)
    assert torch.equal(model.classifier[1].weight, weights["head:1.weight"])


def test_the_backbone_changes_only_once_it_is_unfrozen_and_only_there(finished_job: Path, resnet: Path) -> None:
    before = load_file(resnet / "model.safetensors")
    head_only, deeper = weights_after(finished_job, 3), weights_after(finished_job, 5)
    backbone = [name.removeprefix("backbone:") for name in head_only if name.startswith("backbone:")]
    assert all(torch.equal(head_only[f"backbone:{name}"], before[f"resnet.{name}"]) for name in backbone)
    changed = {name for name in backbone if not torch.equal(deeper[f"backbone:{name}"], before[f"resnet.{name}"])}
    assert changed
    assert all(name.startswith("encoder.stages.3.") for name in changed)
    # The statistics of batch norms stay those of the pretrained model, unfrozen or not.
    assert not any("running" in name or "num_batches" in name for name in changed)
    stages = of_type(finished_job, StageBegan)
    assert [stage.name for stage in stages] == ["head", "deeper layers"]
    parts = {part.name: part for part in stages[0].parts}
    assert parts["head"].trainable == parts["head"].total == 64 * 2 + 2
    assert parts[DEEPER].trainable == 0
    assert {part.name: part for part in stages[1].parts}[DEEPER].trainable == parts[DEEPER].total > 0


@pytest.mark.parametrize("epochs", [1, 4])
def test_killed_and_resumed_it_equals_one_that_never_stopped(
    finished_job: Path, classes: Path, resnet: Path, tmp_path: Path, epochs: int
) -> None:
    job = write_job(tmp_path / "job", classes, resnet)
    process = start(job)
    wait_for(process, job, EpochEnded, epochs)
    process.kill()
    process.wait()
    assert run(job) == EXIT_FINISHED, events(job)[-1]
    for epoch in (3, 5):
        whole, resumed = weights_after(finished_job, epoch), weights_after(job, epoch)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    last = [
        of_type(each, EpochEnded)[-1].model_dump(exclude={"seq", "time", "seconds"}) for each in (finished_job, job)
    ]
    assert last[0] == last[1]


def test_stopped_in_the_middle_of_an_epoch_it_goes_on_from_that_very_step(
    finished_job: Path, classes: Path, resnet: Path, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", classes, resnet)
    process = start(job)
    wait_for(process, job, StepDone)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in {EXIT_STOPPED, EXIT_FINISHED}
    assert run(job) == EXIT_FINISHED, events(job)[-1]
    whole, resumed = weights_after(finished_job, 5), weights_after(job, 5)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
