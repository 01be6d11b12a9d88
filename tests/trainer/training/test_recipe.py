"""A whole training on a random base: its events and files, how it stops, and how it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.trainer.conftest import FEW_LAYERS, SMALL, MakeJob
from tests.trainer.fork_server import QUICK_CHARTS_VARIABLE, ForkedProcess, ForkServer
from tests.trainer.job_events import assert_same_tensors, curve_of, events_of, metadata_of
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    EpochEnded,
    Exported,
    ExportFormat,
    Failed,
    FailureKind,
    Finished,
    Sampled,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
)
from trainer.protocol.exported_files import newest_files
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.run_options import RunOptions
from trainer.training.run import run

DEADLINE_S = 240

pytestmark = pytest.mark.timeout(900)


def failure(job_dir: Path) -> Failed:
    """Return the terminal event, which must be a failure."""
    last = events_of(job_dir)[-1]
    assert isinstance(last, Failed)
    return last


def kept_files(job_dir: Path) -> list[Exported]:
    """Of the files of three epochs, two are kept."""
    return [event for event in newest_files(events_of(job_dir)) if event.epoch != 1]


def start(server: ForkServer, job_dir: Path) -> ForkedProcess:
    return server.start("run", str(job_dir), log=job_dir / "trainer.log", env={QUICK_CHARTS_VARIABLE: "1"})


def wait_for(trainer: ForkedProcess, job_dir: Path, kind: type[Any], count: int = 1) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(events_of(job_dir, kind)) < count:
        assert trainer.poll() is None, (job_dir / "trainer.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"no {kind.__name__} in time"
        time.sleep(0.1)


#: SMALL, with a file of each epoch, of which two are kept.
WHOLE: dict[str, Any] = {
    **SMALL,
    "training": {**SMALL["training"], "trigger": "egg"},
    "exports": {"every_epochs": 1, "keep": 2, "author": "Ada"},
}


@pytest.fixture(scope="module")
def finished_job(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that ran to its end without a stop, in this process."""
    job_dir = tmp_path_factory.mktemp("finished") / "job"
    write_spec(job_dir, spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=WHOLE))
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


def test_a_job_emits_its_events_in_order(finished_job: Path) -> None:
    types = [
        event.type
        for event in events_of(finished_job)
        if event.type not in {"phase_began", "phase_progress", "step_done"}
    ]

    epoch = ["sampled", "epoch_ended", "exported"]
    assert types == [
        *("started", "sampled", "base_validated", "stage_began"),
        *epoch * 3,
        *("tested", "exported", "exported", "finished"),
    ]


def test_every_file_that_an_event_names_exists(finished_job: Path) -> None:
    named = [event.sheet for event in events_of(finished_job, Sampled)]
    named += [sample.path for event in events_of(finished_job, Sampled) for sample in event.samples]
    named += [event.chart for event in events_of(finished_job, EpochEnded)]
    named += [event.path for event in kept_files(finished_job)]
    named += [event.comparison for event in events_of(finished_job, Finished)]

    assert len(named) == 4 + 4 * 4 + 3 + 2 + 2 + 1
    assert all((finished_job / name).stat().st_size > 100 for name in named)


def test_the_model_learns(finished_job: Path) -> None:
    """The validation loss falls below the base's: a random UNet learns at least the scale of the noise."""
    (finished,) = events_of(finished_job, Finished)

    assert finished.best_loss < 0.9 * finished.base_loss
    assert finished.best_ratio < 0.9


def test_only_the_latest_and_the_best_checkpoint_are_kept(finished_job: Path) -> None:
    (finished,) = events_of(finished_job, Finished)
    ended = events_of(finished_job, EpochEnded)

    kept = {path.name for path in (finished_job / "checkpoints").iterdir()}

    assert kept == {f"step-{ended[-1].step:08d}", f"step-{ended[finished.best_epoch - 1].step:08d}"}


def test_a_file_of_each_epoch_comes_after_its_checkpoint_and_the_newest_are_kept(finished_job: Path) -> None:
    files = [event for event in events_of(finished_job, Exported) if event.epoch is not None]

    assert [event.path for event in files] == [f"output/epochs/lora-{epoch:06d}.safetensors" for epoch in (1, 2, 3)]
    assert all(event.max_difference is None and event.readers for event in files)
    left = sorted(path.name for path in (finished_job / "output/epochs").iterdir())
    assert left == ["lora-000002.safetensors", "lora-000003.safetensors"]


def test_the_file_of_an_epoch_has_its_weights_and_says_which_epoch_it_is(finished_job: Path) -> None:
    path = finished_job / "output/epochs/lora-000002.safetensors"

    metadata = metadata_of(path)

    (ended,) = [event for event in events_of(finished_job, EpochEnded) if event.epoch == 2]
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("2", str(ended.step))
    best = load_file(finished_job / "output/lora.safetensors")
    own = load_file(path)
    assert own.keys() == best.keys()
    is_best = events_of(finished_job, Finished)[0].best_epoch == 2
    assert all(torch.equal(own[name], best[name]) for name in own) is is_best


def test_the_header_has_what_viewers_show(finished_job: Path) -> None:
    metadata = metadata_of(finished_job / "output/lora.safetensors")

    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.trigger_phrase"] == "egg"
    assert metadata["modelspec.author"] == "Ada"
    assert metadata["ss_epoch"] == str(events_of(finished_job, Finished)[0].best_epoch)
    start, _, content = metadata["modelspec.thumbnail"].partition(",")
    assert start == "data:image/jpeg;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) <= 256


@pytest.mark.slow
def test_a_second_job_on_the_same_data_uses_the_cache(finished_job: Path, make_job: MakeJob, dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (dataset / "cache").iterdir()}
    job_dir = make_job(
        training={"epochs": 1, "trigger": "egg"}, method={"targets": "attention"}, validation={"test": False}
    )

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED
    assert {path: path.stat().st_mtime_ns for path in (dataset / "cache").iterdir()} == before


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_at_random_moments_resumes_bit_for_bit(
    finished_job: Path, make_job: MakeJob, fork_server: ForkServer
) -> None:
    job_dir = make_job(**WHOLE)
    moments = random.Random(__name__)
    for signal_to_send in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        step_count = len(events_of(job_dir, StepDone))
        process = start(fork_server, job_dir)
        if events_of(job_dir, EpochEnded)[-1:] and events_of(job_dir, EpochEnded)[-1].epoch == 3:
            # Only test and export remain; they have no steps to wait for.
            time.sleep(moments.uniform(1, 4))
        else:
            wait_for(process, job_dir, StepDone, count=step_count + 1)
            time.sleep(moments.random())
        process.send_signal(signal_to_send)
        assert process.wait(DEADLINE_S) in {-signal.SIGKILL, EXIT_STOPPED, EXIT_FINISHED}

    assert start(fork_server, job_dir).wait(DEADLINE_S) == EXIT_FINISHED

    counts = Counter((event.type, getattr(event, "epoch", 0)) for event in events_of(job_dir))
    assert all(counts[kind, epoch] == 1 for kind in ("sampled", "epoch_ended") for epoch in (1, 2, 3))
    assert [event.seq for event in events_of(job_dir)] == list(range(1, len(events_of(job_dir)) + 1))
    assert curve_of(job_dir) == curve_of(finished_job)
    export = "output/diffusers/pytorch_lora_weights.safetensors"
    assert_same_tensors(job_dir / export, finished_job / export)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_of_the_current_step_and_the_job_can_be_finished(
    make_job: MakeJob, fork_server: ForkServer
) -> None:
    job_dir = make_job(
        training={"epochs": 1000},
        method=FEW_LAYERS,
        samples={"prompts": ["a red egg"]},
        early_stopping={"enabled": False},
    )
    process = start(fork_server, job_dir)
    wait_for(process, job_dir, EpochEnded)
    process.terminate()

    assert process.wait(DEADLINE_S) == EXIT_STOPPED
    last = events_of(job_dir)[-1]
    assert isinstance(last, Stopped)
    assert last.checkpoint == f"checkpoints/step-{last.step:08d}"
    assert (job_dir / last.checkpoint / "state.json").exists()

    assert run(RunOptions(job_dir=job_dir, finish=True)) == EXIT_FINISHED

    (finished,) = events_of(job_dir, Finished)
    assert finished.epochs < 1000
    assert len(events_of(job_dir, Exported)) == 2


def test_a_job_without_a_step_cannot_be_finished(make_job: MakeJob) -> None:
    job_dir = make_job()

    assert run(RunOptions(job_dir=job_dir, finish=True)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_CHECKPOINT


@pytest.mark.slow
def test_a_training_ends_after_its_steps_within_an_epoch(make_job: MakeJob) -> None:
    """Also the schedule: it ends with the last step."""
    training = {"epochs": 9, "max_steps": 7, "schedule": "linear"}
    job_dir = make_job(training=training, method=FEW_LAYERS, validation={"test": False})

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    (started,) = events_of(job_dir, Started)
    ended = events_of(job_dir, EpochEnded)
    per_epoch = ended[0].step
    assert started.total_steps == 7 == ended[-1].step
    assert started.epochs == len(ended) == -(-7 // per_epoch)
    assert 7 % per_epoch
    # The rate of the last of 7 steps, none of which was a warm-up.
    assert ended[-1].learning_rate == pytest.approx(5e-3 / 7)


@pytest.mark.slow
def test_a_training_that_learns_nothing_stops_early(make_job: MakeJob) -> None:
    job_dir = make_job(
        training={"epochs": 50, "learning_rate": 1e-6, "repeats": 1},
        method=FEW_LAYERS,
        early_stopping={"patience": 2, "min_delta": 0.05, "warmup_epochs": 0},
        validation={"test": False},
    )

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED

    (stopped,) = events_of(job_dir, StoppedEarly)
    assert stopped.epoch == 2
    assert stopped.epochs_saved == 48
    assert stopped.reason
    assert events_of(job_dir, Finished)[0].stopped_early


@pytest.mark.slow
def test_a_diverging_training_fails_and_keeps_the_last_good_weights(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.tasks.diffusion import DiffusionTask

    job_dir = make_job(method=FEW_LAYERS)
    real = DiffusionTask.train_loss

    def poisoned(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        is_second_epoch = (job_dir / "charts" / "loss-001.png").exists()
        return real(self, *arguments) * (float("nan") if is_second_epoch else 1.0)

    monkeypatch.setattr(DiffusionTask, "train_loss", poisoned)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    last = failure(job_dir)
    assert last.kind is FailureKind.DIVERGED
    assert "epoch 2" in last.message
    (kept,) = (job_dir / "checkpoints").iterdir()
    assert all(t.isfinite().all() for t in load_file(kept / "weights.safetensors").values())


@pytest.mark.parametrize("base", ["/nowhere/model", "model.safetensors", "nobody/nothing"])
def test_a_missing_model_fails(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    job_dir = make_job(base=base)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.MISSING_MODEL
    assert base in failure(job_dir).message


def test_a_folder_that_is_no_dataset_fails(make_job: MakeJob, tmp_path: Path) -> None:
    job_dir = make_job()
    spec = json.loads((job_dir / "spec.json").read_text(encoding="utf-8"))
    (job_dir / "spec.json").write_text(json.dumps({**spec, "dataset": str(tmp_path)}), encoding="utf-8")

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_DATASET


@pytest.mark.slow
def test_a_damaged_checkpoint_fails(finished_job: Path, tmp_path: Path) -> None:
    job_dir = shutil.copytree(finished_job, tmp_path / "job")
    for checkpoint in (job_dir / "checkpoints").iterdir():
        (checkpoint / "weights.safetensors").write_bytes(b"garbage")

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_CHECKPOINT


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_fp16_on_a_cpu_fails(make_job: MakeJob) -> None:
    job_dir = make_job(training={"precision": "fp16"})

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_SPEC


@pytest.mark.slow
def test_files_that_are_exported_again_have_the_hash_of_their_last_event(
    finished_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died between the export and its terminal event exports again, with new metadata and a new hash."""
    job_dir = shutil.copytree(finished_job, tmp_path / "job")
    before = len(events_of(job_dir, Exported))
    # Its diagnosis is the same again.
    monkeypatch.setattr("trainer.training.diagnostics.run_diagnostics", lambda _session: None)
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED

    # The file for diffusers has no time in it; whether it is the same depends on the order of its header.
    assert ExportFormat.KOHYA in {event.format for event in events_of(job_dir, Exported)[before:]}
    for event in kept_files(job_dir):
        assert hashlib.sha256((job_dir / event.path).read_bytes()).hexdigest() == event.sha256
