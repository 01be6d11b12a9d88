"""What a start asks for beside the spec: its attempt, its room in memory, its processes; and disks that are full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bot.runners import Launch
from bot.runners.command import trainer_argv
from tests.trainer.conftest import MakeJob
from tests.trainer.small_disk import fill, small_disk
from tests.trainer.training.test_step import EXACT, curve, log_of, said, with_room_for
from trainer.device import is_device_lost, is_out_of_memory
from trainer.errors import FencedError, is_disk_full
from trainer.protocol.attempt import write_attempt
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_FINISHED,
    EpochEnded,
    Failed,
    FailureKind,
    Started,
    Stopped,
    Warned,
)
from trainer.protocol.order import NEEDS_GPU_VARIABLE
from trainer.tasks.diffusion import DiffusionTask
from trainer.training import checkpoints
from trainer.training.recipe import explain
from trainer.training.run import run
from trainer.training.start import Start

pytestmark = pytest.mark.timeout(600)


# -- attempts -------------------------------------------------------------------------------------------------------


def trainer(*arguments: str) -> int:
    from trainer.__main__ import main

    return main(["run", *arguments])


@pytest.mark.parametrize(("owner", "name"), [(DiffusionTask, "train_loss"), (checkpoints, "save_file")])
def test_an_attempt_that_loses_its_job_leaves_without_a_word_or_a_checkpoint(
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
) -> None:
    job_dir = make_job(**EXACT)
    write_attempt(job_dir, 1)
    real = getattr(owner, name)

    def overtaken(*arguments: Any) -> Any:
        if said(job_dir, EpochEnded):
            write_attempt(job_dir, 2)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, overtaken)
        assert trainer(str(job_dir), "--attempt", "1") == EXIT_FENCED

    assert capsys.readouterr().err.splitlines()[-1].startswith(f"Attempt 1 at {job_dir} is over")
    assert not caplog.records
    assert not said(job_dir, Failed)
    assert not said(job_dir, Stopped)
    (ended,) = said(job_dir, EpochEnded)
    assert [path.name for path in (job_dir / "checkpoints").iterdir()] == [f"step-{ended.step:08d}"]
    assert trainer(str(job_dir), "--attempt", "2") == EXIT_FINISHED
    assert [event.attempt for event in said(job_dir, Started)] == [1, 2]


def test_a_checkpoint_of_an_attempt_that_lost_its_job_does_not_count(make_job: MakeJob) -> None:
    kept = checkpoints.Checkpoints(make_job())

    def fenced() -> None:
        raise FencedError("job", ours=1, valid=2)

    with pytest.raises(FencedError):
        kept.save(checkpoints.TrainingState(step=5), {}, {}, before_it_counts=fenced)
    assert list(kept.folder.iterdir()) == []


@pytest.mark.parametrize("option", ["--attempt=-1", "--micro-batch=0", "--processes=0", "--attempt=x"])
def test_a_start_that_cannot_be_is_refused(make_job: MakeJob, option: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        trainer(str(make_job()), option)
    assert refusal.value.code == 3


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_start_with_less_room_learns_the_same_and_goes_on_from_a_checkpoint_of_one_with_more(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cramped = make_job("whole", **EXACT), make_job("cramped", **EXACT)
    assert run(whole) == EXIT_FINISHED
    real = DiffusionTask.train_loss

    def running_out(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        if (cramped / "checkpoints").exists():
            # Not as a step's want of memory, which halves: as the system's, or one in the midst of something else.
            raise RuntimeError("CUDA error: device-side assert triggered")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTask, "train_loss", running_out)
        assert run(cramped) == EXIT_FAILED
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(1))
    assert run(cramped, Start(micro_batch=1)) == EXIT_FINISHED

    assert curve(cramped) == pytest.approx(curve(whole), rel=1e-5)
    assert [event.micro_batch_size for event in said(cramped, Started)] == [4, 4], "the layout of epochs must stay"
    assert not [event for event in said(cramped, Warned) if event.kind == "micro_batch_halved"]


def test_a_first_start_with_less_room_tries_no_more_than_it_may(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**EXACT["training"], "epochs": 1, "micro_batch_size": None}
    job_dir = make_job(**{**EXACT, "training": settings})
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(2))
    assert run(job_dir, Start(micro_batch=2)) == EXIT_FINISHED
    assert [event.micro_batch_size for event in said(job_dir, Started)] == [2]


# -- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_launcher_starts_as_many_processes_as_it_is_told(make_job: MakeJob) -> None:
    """The very command line that a bot starts for two GPUs; without any, two processes share the CPU by gloo."""
    training = {**EXACT["training"], "epochs": 1}
    job_dir = make_job(**{**EXACT, "training": training})
    launch = Launch(job_id=1, attempt=1, job_dir=job_dir, gpus=2)
    write_attempt(job_dir, 1)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with (job_dir / "rank-all.log").open("wb") as log:
        argv = trainer_argv((sys.executable, "-m", "trainer"), launch, str(job_dir))
        assert subprocess.run(argv, env=env, stdout=log, stderr=log, check=False).returncode == 0, log_of(job_dir)

    assert [event.processes for event in said(job_dir, Started)] == [2]
    assert {event.attempt for event in said(job_dir)} == {1}


def test_another_number_of_processes_than_told_is_refused_in_words(make_job: MakeJob) -> None:
    job_dir = make_job(**EXACT)
    assert run(job_dir, Start(processes=2)) == EXIT_FAILED
    (failed,) = said(job_dir, Failed)
    assert failed.kind is FailureKind.BAD_SPEC
    assert failed.message == "2 processes were to share this training, and there are 1."


# -- devices --------------------------------------------------------------------------------------------------------


class NVMLError_GpuIsLost(Exception):  # noqa: N801 - as NVIDIA's library calls it
    pass


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        torch.distributed.DistBackendError(
            "NCCL error in: x.cpp:1, remote process exited or there was a network error"
        ),
        RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"),
        NVMLError_GpuIsLost("GPU is lost"),
    ],
)
def test_a_device_that_is_lost_may_be_tried_again(error: Exception) -> None:
    known = explain(error)
    assert known.kind is FailureKind.DEVICE_LOST
    assert "go on from its last checkpoint" in known.hint


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), FailureKind.BUG),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), FailureKind.BUG),
        (RuntimeError("CUDA error: invalid device ordinal"), FailureKind.BUG),
        (ValueError("CUDA error: as somebody's caption says"), FailureKind.BUG),
        (RuntimeError("CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), FailureKind.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.OUT_OF_MEMORY),
    ],
)
def test_what_would_go_wrong_again_is_no_lost_device(error: Exception, kind: FailureKind) -> None:
    assert explain(error).kind is kind
    assert is_out_of_memory(error) or not is_device_lost(error)


def test_a_device_lost_in_mid_epoch_is_the_last_word(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = make_job(**EXACT)

    def lost(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(DiffusionTask, "train_loss", lost)
    assert run(job_dir) == EXIT_FAILED
    assert said(job_dir)[-1].kind is FailureKind.DEVICE_LOST


# -- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_finds_no_room_is_said_and_the_last_one_is_whole(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    job_dir = make_job(**EXACT)
    with small_disk(tmp_path / "disk", 40_000) as disk:
        (disk / "spec.json").write_bytes((job_dir / "spec.json").read_bytes())
        owner, name = (checkpoints, "save_file") if file == "weights.safetensors" else (torch, "save")
        real = getattr(owner, name)

        def in_want_of_room(*arguments: Any) -> None:
            if said(disk, EpochEnded):
                fill(disk / "checkpoints" / next(disk.glob("checkpoints/*.part")).name / "ballast")
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, in_want_of_room)
            assert run(disk) == EXIT_FAILED

        assert said(disk)[-1].kind is FailureKind.DISK_FULL
        assert len(said(disk, EpochEnded)) == len(list((disk / "checkpoints").iterdir())) == 1
        assert run(disk) == EXIT_FINISHED
        assert [event.epoch for event in said(disk, EpochEnded)] == [1, 2]


def test_a_disk_without_room_for_a_word_ends_the_run_all_the_same(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job_dir = make_job(**EXACT)
    with small_disk(tmp_path / "disk", 40_000) as disk:
        (disk / "spec.json").write_bytes((job_dir / "spec.json").read_bytes())

        def filled(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
            # The events file has no room left in its last page either.
            events = disk / "events.jsonl"
            with events.open("ab") as file:
                file.write(b"\n" * (-events.stat().st_size % 4096))
            fill(disk / "ballast")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(DiffusionTask, "train_loss", filled)
        assert run(disk) == EXIT_FAILED
        assert not said_until_blank(disk, Failed)


def said_until_blank(job_dir: Path, kind: type[Any]) -> list[Any]:
    from trainer.event_file import scan

    return [event for event in scan(job_dir / "events.jsonl").events if isinstance(event, kind)]


def test_a_full_disk_is_known_behind_other_errors() -> None:
    error = RuntimeError("unexpected pos 704 vs 598")
    error.__context__ = OSError(28, "No space left on device")
    assert is_disk_full(error)
    assert not is_disk_full(RuntimeError("unexpected pos 704 vs 598"))


# -- a GPU that is not there ------------------------------------------------------------------------------------------


def test_a_job_that_was_given_a_gpu_does_not_train_on_the_cpu_instead(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3f2a")
    monkeypatch.setenv(NEEDS_GPU_VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job_dir = make_job(**EXACT)
    write_attempt(job_dir, 1)
    assert run(job_dir, Start(attempt=1)) == EXIT_FAILED
    word = said(job_dir, Failed)[-1]
    assert (word.kind, "GPU-3f2a" in word.message) == (FailureKind.DEVICE_LOST, True)
