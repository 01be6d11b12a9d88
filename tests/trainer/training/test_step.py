"""One optimizer step is the same whatever memory and processes it has: out of memory, divergence, data parallel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.conftest import MakeJob
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    EpochEnded,
    Failed,
    FailureKind,
    Sampled,
    Started,
    StepDone,
    Warned,
    parse_event,
)
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.examples import View
from trainer.training.processes import Processes
from trainer.training.run import run
from trainer.training.start import Start
from trainer.training.step import pieces

pytestmark = pytest.mark.timeout(600)

#: Without dropout, whose random numbers hang on what goes through the model together.
EXACT: dict[str, Any] = {
    "method": {"dropout": 0.0},
    "training": {"epochs": 2, "micro_batch_size": 4, "caption_dropout": 0.3},
    "samples": {"steps": 1, "every_epochs": 2, "unrelated_prompts": []},
}


def said(job_dir: Path, kind: type[Any] = object) -> list[Any]:
    path = job_dir / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for event in map(parse_event, lines) if isinstance(event, kind)]


def curve(job_dir: Path) -> list[float]:
    return [loss for event in said(job_dir, EpochEnded) for loss in (event.train_loss, event.validation.loss)]


def test_a_micro_batch_goes_through_in_parts_that_know_their_place() -> None:
    views = [View(index=index) for index in range(7)]
    step = (tuple(views[:5]), tuple(views[5:]))

    assert list(pieces(step, 1)) == [(0, step[0]), (5, step[1])]
    assert [(first, len(part)) for first, part in pieces(step, 2)] == [(0, 3), (3, 2), (5, 1), (6, 1)]
    assert [part for _, parts in pieces(step, 4) for part in parts] == views


def test_out_of_memory_halves_the_micro_batch_and_learns_the_same(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cramped = make_job("whole", **EXACT), make_job("cramped", **EXACT)
    assert run(whole) == EXIT_FINISHED
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(1))

    assert run(cramped) == EXIT_FINISHED, said(cramped)[-1]

    assert curve(cramped) == pytest.approx(curve(whole), rel=1e-5)
    warnings = [event for event in said(cramped, Warned) if event.kind == "micro_batch_halved"]
    assert [event.message.split(": ")[1].split(" pictures")[0] for event in warnings] == [
        "from here on 2 instead of 4",
        "from here on 1 instead of 2",
    ]


def test_gradient_checkpointing_computes_again_and_learns_the_same(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_job("plain", **EXACT)
    thrifty = make_job("thrifty", **{**EXACT, "training": {**EXACT["training"], "gradient_checkpointing": True}})
    assert run(plain) == EXIT_FINISHED
    calls = []
    real = torch.utils.checkpoint.checkpoint

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", counted)
    assert run(thrifty) == EXIT_FINISHED, said(thrifty)[-1]

    assert calls
    assert curve(thrifty) == pytest.approx(curve(plain), rel=1e-5)


def test_a_device_without_room_for_one_picture_is_one_sentence(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = make_job(**EXACT)
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(0))

    assert run(job_dir) == EXIT_FAILED

    (failed,) = said(job_dir, Failed)
    assert failed.kind is FailureKind.OUT_OF_MEMORY
    assert failed.message.startswith("Not even one picture")


def with_room_for(pictures: int) -> Any:
    """A `train_loss` on a device where no more than so many pictures fit."""
    real = DiffusionTask.train_loss

    def train_loss(self: DiffusionTask, examples: Any, views: Any, seeds: Any) -> torch.Tensor:
        if len(views) > pictures:
            raise torch.OutOfMemoryError("no room")
        return real(self, examples, views, seeds)

    return train_loss


def test_a_loss_that_shoots_up_ends_in_words_and_the_best_epoch_can_be_had(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 pictures, 8 times: an epoch of 64, twice what a judgement needs.
    job_dir = make_job(**{**EXACT, "training": {**EXACT["training"], "repeats": 8}})
    real = DiffusionTask.train_loss

    def shooting_up(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        is_second_epoch = (job_dir / "charts" / "loss-001.png").exists()
        return real(self, *arguments) * (10.0 if is_second_epoch else 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(DiffusionTask, "train_loss", shooting_up)
        assert run(job_dir) == EXIT_FAILED

    (failed,) = said(job_dir, Failed)
    assert failed.kind is FailureKind.DIVERGED
    assert "The loss rose from" in failed.message
    assert run(job_dir, Start(is_finishing=True)) == EXIT_FINISHED


def test_summed_gradients_lie_in_memory_as_their_parameters_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused optimizers walk both by the same addresses: another layout would train other weights."""
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
    # Without a gradient here, it may have one in another process.
    assert late.grad is not None


@pytest.mark.slow
def test_two_processes_learn_what_one_does(make_job: MakeJob) -> None:
    alone, shared = make_job("alone", **EXACT), make_job("shared", **EXACT)
    assert run(alone) == EXIT_FINISHED

    assert [process.wait(300) for process in start_two(shared)] == [EXIT_FINISHED, EXIT_FINISHED], log_of(shared)

    assert curve(shared) == pytest.approx(curve(alone), rel=1e-5)
    assert [event.seq for event in said(shared)] == list(range(1, len(said(shared)) + 1))
    assert said(shared, Started)[0].processes == 2
    # Each process drew its share; together they are the pictures that one would have drawn.
    for one, other in zip(said(alone, Sampled), said(shared, Sampled), strict=True):
        for ours, theirs in zip(one.samples, other.samples, strict=True):
            assert (shared / theirs.path).exists()
            assert (ours.prompt, ours.seed) == (theirs.prompt, theirs.seed)


@pytest.mark.slow
def test_a_stop_that_one_process_hears_stops_both_after_the_same_step(make_job: MakeJob) -> None:
    job_dir = make_job(
        **{**EXACT, "training": {**EXACT["training"], "epochs": 500}, "early_stopping": {"enabled": False}}
    )
    processes = start_two(job_dir)
    deadline = time.monotonic() + 240
    while not said(job_dir, StepDone):
        assert time.monotonic() < deadline, log_of(job_dir)
        time.sleep(0.1)

    processes[1].send_signal(signal.SIGTERM)

    assert [process.wait(120) for process in processes] == [EXIT_STOPPED, EXIT_STOPPED], log_of(job_dir)
    stopped = said(job_dir)[-1]
    assert (job_dir / stopped.checkpoint / "state.json").exists()


def start_two(job_dir: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes that share a training by gloo, as `accelerate launch --num_processes 2` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    processes = []
    for rank in ("0", "1"):
        env = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        with (job_dir / f"rank-{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "trainer", "run", str(job_dir)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
    return processes


def log_of(job_dir: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(job_dir.glob("rank-*.log")))
