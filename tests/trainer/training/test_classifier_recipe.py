"""The recipe trains a classifier, which learns, unfreezes by stages, and resumes bit for bit."""

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
from tests.trainer.fork_server import ForkServer, Hook
from tests.trainer.job_events import events_of
from tests.trainer.random_classifier import make_random_resnet
from trainer.exchange.job_dir import write_spec
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
)
from trainer.protocol.events import (
    Tested as MeasuredOnce,
)
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.run_options import RunOptions
from trainer.training.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
    """A dataset prepared from one folder per class."""
    from trainer.dataset.preparing.prepare import prepare

    folder = tmp_path_factory.mktemp("classes")
    draw_class_folders(folder / "images", {"circle": 30, "square": 24})
    prepare([folder / "images"], folder / "prepared", resolutions=(64,))
    return folder / "prepared"


def write_job(folder: Path, dataset: Path, base: Path, **changes: Any) -> Path:
    spec = spec_from_preset("classifier", dataset=str(dataset), base=str(base), changes={**CHANGES, **changes})
    write_spec(folder, spec)
    return folder


@pytest.fixture(scope="module")
def finished_job(classes: Path, resnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = write_job(tmp_path_factory.mktemp("jobs") / "whole", classes, resnet)
    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED, events_of(job)[-1]
    return job


def weights_after(job: Path, epoch: int) -> dict[str, Tensor]:
    step = next(event.step for event in events_of(job, EpochEnded) if event.epoch == epoch)
    (path,) = (job / "checkpoints").glob(f"step-{step:08d}/weights.safetensors")
    return load_file(path)


def test_a_classifier_learns_and_reports_its_metrics(finished_job: Path) -> None:
    (started,) = events_of(finished_job, Started)
    assert (started.resolution, started.micro_batch_size, started.batch_size) == (64, 4, 8)
    (base,) = events_of(finished_job, BaseValidated)
    assert base.validation.loss == pytest.approx(0.693, rel=0.1)
    ended = events_of(finished_job, EpochEnded)
    assert [event.stage for event in ended] == [1, 1, 1, 2, 2]
    assert ended[-1].metrics["accuracy"] > 0.9
    assert set(ended[-1].metrics) == {"accuracy", "balanced_accuracy", "f1"}
    assert ended[-1].validation.ratio < 0.5
    (tested,) = events_of(finished_job, MeasuredOnce)
    assert tested.metrics["accuracy"] > 0.8
    assert (finished_job / tested.chart).is_file()
    (finished,) = events_of(finished_job, Finished)
    assert (finished_job / finished.comparison).is_file()
    sampled = events_of(finished_job, Sampled)
    assert {sample.prompt for sample in sampled[0].samples} == {"circle", "square"}


def test_the_exported_folder_is_the_best_checkpoint(finished_job: Path) -> None:
    (exported,) = events_of(finished_job, Exported)
    assert exported.max_difference < 1e-4
    model = AutoModelForImageClassification.from_pretrained(finished_job / exported.path)
    assert model.config.id2label == {0: "circle", 1: "square"}
    best = events_of(finished_job, Finished)[0].best_epoch
    weights = weights_after(finished_job, best)
    assert torch.equal(model.classifier[1].weight, weights["head:1.weight"])


def test_only_unfrozen_parts_of_the_backbone_change(finished_job: Path, resnet: Path) -> None:
    before = load_file(resnet / "model.safetensors")
    head_only, deeper = weights_after(finished_job, 3), weights_after(finished_job, 5)
    backbone = [name.removeprefix("backbone:") for name in head_only if name.startswith("backbone:")]
    assert all(torch.equal(head_only[f"backbone:{name}"], before[f"resnet.{name}"]) for name in backbone)
    changed = {name for name in backbone if not torch.equal(deeper[f"backbone:{name}"], before[f"resnet.{name}"])}
    assert changed
    assert all(name.startswith("encoder.stages.3.") for name in changed)
    # The running statistics of batch norms are never trained.
    assert not any("running" in name or "num_batches" in name for name in changed)
    stages = events_of(finished_job, StageBegan)
    assert [stage.name for stage in stages] == ["head", "deeper layers"]
    parts = {part.name: part for part in stages[0].parts}
    assert parts["head"].trainable == parts["head"].total == 64 * 2 + 2
    assert parts[DEEPER].trainable == 0
    assert {part.name: part for part in stages[1].parts}[DEEPER].trainable == parts[DEEPER].total > 0


def test_a_stopped_and_killed_run_resumes_bit_for_bit(
    finished_job: Path, classes: Path, resnet: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    job = write_job(tmp_path / "job", classes, resnet)
    for number, step, status in ((signal.SIGTERM, 5, EXIT_STOPPED), (signal.SIGKILL, 40, -signal.SIGKILL)):
        hook: Hook = ("tests.trainer.fork_server:signal_before_step", [int(number), step])
        assert fork_server.run("run", str(job), hook=hook).returncode == status
    assert fork_server.run("run", str(job)).returncode == EXIT_FINISHED, events_of(job)[-1]

    for epoch in (3, 5):
        whole, resumed = weights_after(finished_job, epoch), weights_after(job, epoch)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    last = [
        events_of(each, EpochEnded)[-1].model_dump(exclude={"seq", "time", "seconds"}) for each in (finished_job, job)
    ]
    assert last[0] == last[1]
