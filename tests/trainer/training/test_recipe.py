"""A whole training on a random base: what it writes, how it stops, and that resumed it equals one that never did."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conftest import MakeJob
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    EpochEnded,
    Event,
    Exported,
    Failed,
    FailureKind,
    Finished,
    Sampled,
    StepDone,
    Stopped,
    StoppedEarly,
    parse_event,
)
from trainer.training.run import run
from trainer.training.start import Start

DEADLINE_S = 240

pytestmark = pytest.mark.timeout(900)


def events(job_dir: Path) -> list[Event]:
    path = job_dir / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [parse_event(line) for line in lines]


def of_type(job_dir: Path, kind: type[Any]) -> list[Any]:
    return [event for event in events(job_dir) if isinstance(event, kind)]


def failure(job_dir: Path) -> Failed:
    """The last word, which must be a failure."""
    last = events(job_dir)[-1]
    assert isinstance(last, Failed)
    return last


def start(job_dir: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainer", "run", str(job_dir), *options]
    with (job_dir / "trainer.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for(process: subprocess.Popen[bytes], job_dir: Path, kind: type[Any], count: int = 1) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(of_type(job_dir, kind)) < count:
        assert process.poll() is None, (job_dir / "trainer.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"no {kind.__name__} in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished_job(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that ran through without a stop, in this process."""
    from tests.trainer.conftest import SMALL
    from trainer.protocol.presets import spec_from_preset

    job_dir = tmp_path_factory.mktemp("finished") / "job"
    spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=SMALL).write(job_dir)
    assert run(job_dir) == EXIT_FINISHED, events(job_dir)[-1]
    return job_dir


def test_it_tells_the_whole_story_in_order(finished_job: Path) -> None:
    story = [event.type for event in events(finished_job) if event.type not in {"phase_began", "step_done"}]

    epoch = ["sampled", "epoch_ended"]
    assert story == [
        *("started", "sampled", "base_validated", "stage_began"),
        *epoch * 3,
        *("tested", "exported", "exported", "finished"),
    ]


def test_every_file_that_an_event_names_is_there(finished_job: Path) -> None:
    named = [event.sheet for event in of_type(finished_job, Sampled)]
    named += [sample.path for event in of_type(finished_job, Sampled) for sample in event.samples]
    named += [event.chart for event in of_type(finished_job, EpochEnded)]
    named += [event.path for event in of_type(finished_job, Exported)]
    named += [event.comparison for event in of_type(finished_job, Finished)]

    assert len(named) == 4 + 4 * 4 + 3 + 2 + 1
    assert all((finished_job / name).stat().st_size > 100 for name in named)


def test_it_learns(finished_job: Path) -> None:
    """The validation loss falls below the base's: the random UNet at least learns the size of the noise."""
    (finished,) = of_type(finished_job, Finished)

    assert finished.best_loss < 0.9 * finished.base_loss
    assert finished.best_ratio < 0.9


def test_the_latest_and_the_best_checkpoint_are_kept_and_no_other(finished_job: Path) -> None:
    (finished,) = of_type(finished_job, Finished)
    ended = of_type(finished_job, EpochEnded)

    kept = {path.name for path in (finished_job / "checkpoints").iterdir()}

    assert kept == {f"step-{ended[-1].step:08d}", f"step-{ended[finished.best_epoch - 1].step:08d}"}


def test_a_second_job_on_the_same_data_finds_latents_and_captions_in_the_cache(
    finished_job: Path, make_job: MakeJob, dataset: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (dataset / "cache").iterdir()}
    job_dir = make_job(training={"epochs": 1})

    assert run(job_dir) == EXIT_FINISHED
    assert {path: path.stat().st_mtime_ns for path in (dataset / "cache").iterdir()} == before


@pytest.mark.slow
def test_killed_and_resumed_it_equals_the_run_that_never_stopped(finished_job: Path, make_job: MakeJob) -> None:
    """SIGKILL, SIGTERM and SIGKILL at random moments: no epoch is missing or doubled, the LoRA is equal to the bit."""
    job_dir = make_job()
    moments = random.Random(os.getpid())
    for signal_to_send in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        said = len(of_type(job_dir, StepDone))
        process = start(job_dir)
        if of_type(job_dir, EpochEnded)[-1:] and of_type(job_dir, EpochEnded)[-1].epoch == 3:
            # Only test and export are left: there are no steps to wait for.
            time.sleep(moments.uniform(4, 8))
        else:
            wait_for(process, job_dir, StepDone, count=said + 1)
            time.sleep(moments.random())
        process.send_signal(signal_to_send)
        assert process.wait(DEADLINE_S) in {-signal.SIGKILL, EXIT_STOPPED, EXIT_FINISHED}

    assert start(job_dir).wait(DEADLINE_S) == EXIT_FINISHED

    told = Counter((event.type, getattr(event, "epoch", 0)) for event in events(job_dir))
    assert all(told[kind, epoch] == 1 for kind in ("sampled", "epoch_ended") for epoch in (1, 2, 3))
    assert [event.seq for event in events(job_dir)] == list(range(1, len(events(job_dir)) + 1))
    assert _curve(job_dir) == _curve(finished_job)
    ours, theirs = (
        load_file(path / "output/diffusers/pytorch_lora_weights.safetensors") for path in (job_dir, finished_job)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _curve(job_dir: Path) -> list[tuple[float, float]]:
    return [(event.train_loss, event.validation.loss) for event in of_type(job_dir, EpochEnded)]


def test_sigterm_leaves_a_checkpoint_of_the_very_step(make_job: MakeJob) -> None:
    job_dir = make_job(training={"epochs": 1000}, early_stopping={"enabled": False})
    process = start(job_dir)
    wait_for(process, job_dir, StepDone)
    process.terminate()

    assert process.wait(DEADLINE_S) == EXIT_STOPPED
    last = events(job_dir)[-1]
    assert isinstance(last, Stopped)
    assert last.checkpoint == f"checkpoints/step-{last.step:08d}"
    assert (job_dir / last.checkpoint / "state.json").exists()


def test_a_stopped_job_can_be_finished_with_what_it_has(make_job: MakeJob) -> None:
    job_dir = make_job(training={"epochs": 1000}, early_stopping={"enabled": False})
    process = start(job_dir)
    wait_for(process, job_dir, EpochEnded)
    process.terminate()
    assert process.wait(DEADLINE_S) == EXIT_STOPPED

    assert run(job_dir, Start(is_finishing=True)) == EXIT_FINISHED

    (finished,) = of_type(job_dir, Finished)
    assert finished.epochs < 1000
    assert len(of_type(job_dir, Exported)) == 2


def test_there_is_nothing_to_finish_before_the_first_step(make_job: MakeJob) -> None:
    job_dir = make_job()

    assert run(job_dir, Start(is_finishing=True)) == EXIT_FAILED
    assert failure(job_dir).message.startswith("There is nothing to keep")


def test_it_stops_early_where_nothing_is_learned_and_says_why(make_job: MakeJob) -> None:
    job_dir = make_job(
        training={"epochs": 50, "learning_rate": 1e-6, "repeats": 1},
        early_stopping={"patience": 2, "min_delta": 0.05, "warmup_epochs": 0},
    )

    assert run(job_dir) == EXIT_FINISHED

    (stopped,) = of_type(job_dir, StoppedEarly)
    assert stopped.epoch == 2
    assert stopped.epochs_saved == 48
    assert "in 2 epochs" in stopped.reason
    assert of_type(job_dir, Finished)[0].stopped_early


def test_a_diverging_training_ends_in_words_and_keeps_the_last_good_weights(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.tasks.diffusion import DiffusionTask

    job_dir = make_job()
    real = DiffusionTask.train_loss

    def poisoned(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        is_second_epoch = (job_dir / "charts" / "loss-001.png").exists()
        return real(self, *arguments) * (float("nan") if is_second_epoch else 1.0)

    monkeypatch.setattr(DiffusionTask, "train_loss", poisoned)

    assert run(job_dir) == EXIT_FAILED
    last = failure(job_dir)
    assert last.kind is FailureKind.DIVERGED
    assert "epoch 2" in last.message
    (kept,) = (job_dir / "checkpoints").iterdir()
    assert all(t.isfinite().all() for t in load_file(kept / "weights.safetensors").values())


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("/nowhere/model", "There is no model at /nowhere/model."),
        ("model.safetensors", "There is no model at model.safetensors."),
        ("nobody/nothing", "nobody/nothing is not on this machine and the hub cannot be reached."),
    ],
)
def test_a_missing_model_is_one_sentence(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, base: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    job_dir = make_job(base=base)

    assert run(job_dir) == EXIT_FAILED
    last = failure(job_dir)
    assert (last.kind, last.message) == (FailureKind.MISSING_MODEL, words)


def test_a_folder_that_is_no_dataset_is_one_sentence(make_job: MakeJob, tmp_path: Path) -> None:
    job_dir = make_job()
    spec = json.loads((job_dir / "spec.json").read_text(encoding="utf-8"))
    (job_dir / "spec.json").write_text(json.dumps({**spec, "dataset": str(tmp_path)}), encoding="utf-8")

    assert run(job_dir) == EXIT_FAILED
    assert failure(job_dir).message == f"{tmp_path} is not a prepared dataset."


def test_a_damaged_checkpoint_is_one_sentence(make_job: MakeJob) -> None:
    job_dir = make_job(training={"epochs": 1})
    assert run(job_dir) == EXIT_FINISHED
    (checkpoint,) = (job_dir / "checkpoints").iterdir()
    (checkpoint / "weights.safetensors").write_bytes(b"rubbish")

    assert run(job_dir) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_CHECKPOINT


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_fp16_on_a_cpu_is_one_sentence(make_job: MakeJob) -> None:
    job_dir = make_job(training={"precision": "fp16"})

    assert run(job_dir) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_SPEC
    assert "fp16 needs a GPU" in failure(job_dir).message


def test_files_that_are_exported_again_are_told_with_the_hash_that_they_have(make_job: MakeJob) -> None:
    """A run that died between the export and its last word exports again; its metadata, and so its hash, are new."""
    job_dir = make_job(training={"epochs": 1})
    for _ in range(2):
        assert run(job_dir) == EXIT_FINISHED

    newest = {event.format: event for event in of_type(job_dir, Exported)}
    for event in newest.values():
        assert hashlib.sha256((job_dir / event.path).read_bytes()).hexdigest() == event.sha256
