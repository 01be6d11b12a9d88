"""An optimizer step does not depend on memory or processes; a training that diverges ends."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.conftest import FEW_LAYERS, MakeJob, job_maker
from tests.trainer.fork_server import ForkedProcess, ForkServer
from tests.trainer.job_events import curve_of, events_of
from trainer.device import Processes
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    Failed,
    FailureKind,
    Sampled,
    Started,
    StepDone,
    Warned,
)
from trainer.protocol.run_options import RunOptions
from trainer.tasks.diffusion import DiffusionTask
from trainer.training.run import run
from trainer.training.step import EpochProgress

pytestmark = pytest.mark.timeout(600)

#: Without dropout, whose random numbers depend on the micro-batch. Nothing is tested or exported at the end, which
#: would take half of the time; adapters of all layers would take a third of the rest.
EXACT: dict[str, Any] = {
    "method": {"dropout": 0.0, "targets": "attention"},
    "training": {"epochs": 2, "micro_batch_size": 4, "caption_dropout": 0.3},
    "validation": {"test": False},
    "samples": {"steps": 1, "prompts": ["a red egg"], "every_epochs": 2, "unrelated_prompts": []},
}


@pytest.fixture(scope="module")
def exact_job(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job with these settings, in one process that has all the memory it needs."""
    job_dir = job_maker(dataset, random_base, tmp_path_factory.mktemp("exact"))("exact", **EXACT)
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


def losses(job_dir: Path) -> list[float]:
    return [loss for epoch in curve_of(job_dir) for loss in epoch]


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "micro_batch"), [(4, 3), (6, 5)])
def test_a_batch_that_the_micro_batch_does_not_divide_stays_exact(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, batch_size: int, micro_batch: int
) -> None:
    """Images of two shapes, each seen twice in an epoch."""
    step_sizes: list[int] = []
    real = EpochProgress.add

    def add(self: EpochProgress, loss_sum: torch.Tensor, *, images: int) -> None:
        step_sizes.append(images)
        real(self, loss_sum, images=images)

    monkeypatch.setattr(EpochProgress, "add", add)
    curves = []
    for size in (micro_batch, 1):
        training = {**EXACT["training"], "epochs": 1, "batch_size": batch_size, "micro_batch_size": size}
        job_dir = make_job(f"micro-{size}", **{**EXACT, "training": training})
        assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
        (started,) = events_of(job_dir, Started)
        full, rest = divmod(2 * started.train_images, batch_size)
        expected = [batch_size] * full + [rest] * (rest > 0)
        assert started.total_steps == len(expected)
        curves.append(losses(job_dir))

    assert step_sizes == expected * 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_without_changing_the_result(
    exact_job: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = make_job("cramped", **EXACT)
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(1))

    assert run(RunOptions(job_dir=cramped)) == EXIT_FINISHED, events_of(cramped)[-1]

    assert losses(cramped) == pytest.approx(losses(exact_job), rel=1e-5)
    warnings = [event for event in events_of(cramped, Warned) if event.kind == "micro_batch_halved"]
    assert len(warnings) == 2


@pytest.mark.slow
def test_a_start_with_less_memory_resumes_without_changing_the_result(
    exact_job: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = make_job("cramped", **EXACT)
    real = DiffusionTask.train_loss

    def running_out(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        if (cramped / "checkpoints").exists():
            # Not an out-of-memory error within a step, which would halve the micro-batch.
            raise RuntimeError("CUDA error: device-side assert triggered")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTask, "train_loss", running_out)
        assert run(RunOptions(job_dir=cramped)) == EXIT_FAILED
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(1))
    assert run(RunOptions(job_dir=cramped, micro_batch=1)) == EXIT_FINISHED

    assert losses(cramped) == pytest.approx(losses(exact_job), rel=1e-5)
    assert [event.micro_batch_size for event in events_of(cramped, Started)] == [4, 1]
    assert not [event for event in events_of(cramped, Warned) if event.kind == "micro_batch_halved"]


@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_result(
    exact_job: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrifty = make_job("thrifty", **{**EXACT, "training": {**EXACT["training"], "gradient_checkpointing": True}})
    calls = []
    real = torch.utils.checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", counted)
    assert run(RunOptions(job_dir=thrifty)) == EXIT_FINISHED, events_of(thrifty)[-1]

    assert calls
    assert losses(thrifty) == pytest.approx(losses(exact_job), rel=1e-5)


@pytest.mark.slow
def test_a_device_without_room_for_one_image_fails(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = make_job(**EXACT)
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(0))

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.OUT_OF_MEMORY


def with_room_for(images: int) -> Any:
    """Return a `train_loss` for a device that has room for this many images."""
    real = DiffusionTask.train_loss

    def train_loss(self: DiffusionTask, examples: Any, views: Any, seeds: Any) -> torch.Tensor:
        if len(views) > images:
            raise torch.OutOfMemoryError("no room")
        return real(self, examples, views, seeds)

    return train_loss


@pytest.mark.slow
def test_a_rising_loss_ends_the_training_and_the_best_epoch_can_be_exported(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 images, 8 times: an epoch of 64, twice the window for divergence.
    training = {**EXACT["training"], "repeats": 8}
    job_dir = make_job(**{**EXACT, "training": training, "method": FEW_LAYERS, "validation": {"test": True}})
    real = DiffusionTask.train_loss

    def shooting_up(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        is_second_epoch = (job_dir / "charts" / "loss-001.png").exists()
        return real(self, *arguments) * (10.0 if is_second_epoch else 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(DiffusionTask, "train_loss", shooting_up)
        assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.DIVERGED
    assert run(RunOptions(job_dir=job_dir, finish=True)) == EXIT_FINISHED


def test_summed_gradients_have_the_strides_of_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused optimizers address both alike: other strides would update the wrong weights."""
    parameter = nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    late = nn.Parameter(torch.zeros(2))
    gradient = torch.arange(48.0).reshape(4, 3, 2, 2)
    parameter.grad = gradient.clone()
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(2))
    accelerator: Any = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)

    (loss,) = Processes(accelerator).sum_gradients([parameter, late], torch.tensor(3.0))

    assert loss == 6
    assert parameter.grad is not None
    assert parameter.grad.stride() == parameter.stride()
    assert torch.equal(parameter.grad, 2 * gradient)
    # It has no gradient here, but may have one on another rank.
    assert late.grad is not None


@pytest.mark.slow
def test_two_processes_train_what_one_trains(exact_job: Path, make_job: MakeJob, fork_server: ForkServer) -> None:
    shared = make_job("shared", **EXACT)

    assert [process.wait(300) for process in start_two(fork_server, shared)] == [EXIT_FINISHED, EXIT_FINISHED], log_of(
        shared
    )

    assert losses(shared) == pytest.approx(losses(exact_job), rel=1e-5)
    assert [event.seq for event in events_of(shared)] == list(range(1, len(events_of(shared)) + 1))
    assert events_of(shared, Started)[0].processes == 2
    # The ranks shared the samples.
    for one, other in zip(events_of(exact_job, Sampled), events_of(shared, Sampled), strict=True):
        for ours, theirs in zip(one.samples, other.samples, strict=True):
            assert (shared / theirs.path).exists()
            assert (ours.prompt, ours.seed) == (theirs.prompt, theirs.seed)


@pytest.mark.slow
def test_a_stop_signal_to_one_process_stops_both_after_the_same_step(
    make_job: MakeJob, fork_server: ForkServer
) -> None:
    job_dir = make_job(
        **{**EXACT, "training": {**EXACT["training"], "epochs": 500}, "early_stopping": {"enabled": False}}
    )
    processes = start_two(fork_server, job_dir)
    deadline = time.monotonic() + 240
    while not events_of(job_dir, StepDone):
        assert time.monotonic() < deadline, log_of(job_dir)
        time.sleep(0.1)

    processes[1].send_signal(signal.SIGTERM)

    assert [process.wait(120) for process in processes] == [EXIT_STOPPED, EXIT_STOPPED], log_of(job_dir)
    stopped = events_of(job_dir)[-1]
    assert (job_dir / stopped.checkpoint / "state.json").exists()


def start_two(server: ForkServer, job_dir: Path) -> list[ForkedProcess]:
    """Start two processes that share a training by gloo, as `accelerate launch --num_processes 2` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return [
        server.start(
            "run",
            str(job_dir),
            log=job_dir / f"rank-{rank}.log",
            env={**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]


def log_of(job_dir: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(job_dir.glob("rank-*.log")))
