"""What a run depends on beside its spec: attempt, memory, processes, devices and the disk."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from accelerate.commands import launch as accelerate_launch

from bot.runners.runner import trainer_argv
from tests.trainer.conftest import MakeJob
from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import events_of
from tests.trainer.small_disk import fill, small_disk
from tests.trainer.training.test_step import EXACT, log_of, with_room_for
from trainer.device import is_device_lost, is_out_of_memory
from trainer.errors import FencedError, is_disk_full
from trainer.exchange.attempt import write_attempt
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_FINISHED,
    EpochEnded,
    Failed,
    FailureKind,
    Started,
    Stopped,
)
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, RunOptions
from trainer.tasks.diffusion import DiffusionTask
from trainer.training import checkpoints, recipe
from trainer.training.failures import to_trainer_error
from trainer.training.run import choose_openmp_spin, run, without_collection

pytestmark = pytest.mark.timeout(600)


# -- attempts -------------------------------------------------------------------------------------------------------


def trainer(*arguments: str) -> int:
    from trainer.__main__ import main

    return main(["run", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), [(DiffusionTask, "train_loss"), (checkpoints, "save_file")])
def test_a_superseded_attempt_writes_no_terminal_event_and_no_checkpoint(
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
        if events_of(job_dir, EpochEnded):
            write_attempt(job_dir, 2)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, overtaken)
        assert trainer(str(job_dir), "--attempt", "1") == EXIT_FENCED

    assert str(job_dir) in capsys.readouterr().err.splitlines()[-1]
    assert not caplog.records
    assert not events_of(job_dir, Failed)
    assert not events_of(job_dir, Stopped)
    (ended,) = events_of(job_dir, EpochEnded)
    assert [path.name for path in (job_dir / "checkpoints").iterdir()] == [f"step-{ended.step:08d}"]
    assert trainer(str(job_dir), "--attempt", "2") == EXIT_FINISHED
    assert [event.attempt for event in events_of(job_dir, Started)] == [1, 2]


def test_a_superseded_attempt_commits_no_checkpoint(make_job: MakeJob) -> None:
    kept = checkpoints.Checkpoints(make_job())

    def fenced() -> None:
        raise FencedError("job", ours=1, valid=2)

    with pytest.raises(FencedError):
        kept.save(checkpoints.TrainingState(step=5), {}, {}, before_commit=fenced)
    assert list(kept.folder.iterdir()) == []


@pytest.mark.parametrize("option", ["--attempt=-1", "--micro-batch=0", "--gpus=0", "--attempt=x"])
def test_invalid_options_are_refused(make_job: MakeJob, option: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        trainer(str(make_job()), option)
    assert refusal.value.code == 3


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_first_start_with_a_limit_tries_no_larger_micro_batch(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**EXACT["training"], "epochs": 1, "micro_batch_size": None}
    job_dir = make_job(**{**EXACT, "training": settings})
    monkeypatch.setattr(DiffusionTask, "train_loss", with_room_for(2))
    assert run(RunOptions(job_dir=job_dir, micro_batch=2)) == EXIT_FINISHED
    assert [event.micro_batch_size for event in events_of(job_dir, Started)] == [2]


# -- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_launcher_starts_the_requested_number_of_processes(make_job: MakeJob, fork_server: ForkServer) -> None:
    """The command line of the bot for two GPUs; here two processes share the CPU by gloo."""
    training = {**EXACT["training"], "epochs": 1}
    job_dir = make_job(**{**EXACT, "training": training})
    launch = RunOptions(job_id=1, attempt=1, job_dir=job_dir, gpus=2)
    write_attempt(job_dir, 1)
    # The launcher has its own place for Python's options.
    command = tuple(part for part in fork_server.command if part not in {"-S", "-E"})
    _python, _m, module, *arguments = trainer_argv(command, launch)
    assert module == accelerate_launch.__name__
    # A fork, too: it would import torch.
    launcher = ForkServer(f"{__name__}:run_launcher", socket=fork_server.socket)
    env = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = launcher.run(*arguments, env=env, log=job_dir / "rank-all.log")
    assert done.returncode == 0, log_of(job_dir)

    assert [event.processes for event in events_of(job_dir, Started)] == [2]
    assert {event.attempt for event in events_of(job_dir)} == {1}


def run_launcher(_arguments: list[str]) -> int:
    """What `python -m accelerate.commands.launch` does, which takes the arguments from `sys.argv`."""
    accelerate_launch.main()
    return 0


def test_an_unexpected_number_of_processes_is_refused(make_job: MakeJob) -> None:
    job_dir = make_job(**EXACT)
    assert run(RunOptions(job_dir=job_dir, gpus=2)) == EXIT_FAILED
    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.BAD_SPEC


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
def test_a_lost_device_is_recognized(error: Exception) -> None:
    assert to_trainer_error(error).kind is FailureKind.DEVICE_LOST


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), FailureKind.BUG),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), FailureKind.BUG),
        (RuntimeError("CUDA error: invalid device ordinal"), FailureKind.BUG),
        (ValueError("CUDA error: in a caption"), FailureKind.BUG),
        (RuntimeError("CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), FailureKind.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.OUT_OF_MEMORY),
    ],
)
def test_an_error_that_would_recur_is_no_lost_device(error: Exception, kind: FailureKind) -> None:
    assert to_trainer_error(error).kind is kind
    assert is_out_of_memory(error) or not is_device_lost(error)


@pytest.mark.slow
def test_a_device_lost_within_an_epoch_ends_the_run(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = make_job(**EXACT)

    def lost(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(DiffusionTask, "train_loss", lost)
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert events_of(job_dir)[-1].kind is FailureKind.DEVICE_LOST


# -- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt"])
def test_a_checkpoint_on_a_full_disk_fails_and_the_last_one_is_complete(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    job_dir = make_job(**EXACT)
    with small_disk(tmp_path / "disk", 40_000) as disk:
        (disk / "spec.json").write_bytes((job_dir / "spec.json").read_bytes())
        owner, name = (checkpoints, "save_file") if file == "weights.safetensors" else (torch, "save")
        real = getattr(owner, name)

        def on_a_full_disk(*arguments: Any) -> None:
            if events_of(disk, EpochEnded):
                fill(disk / "checkpoints" / next(disk.glob("checkpoints/*.part")).name / "ballast")
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, on_a_full_disk)
            assert run(RunOptions(job_dir=disk)) == EXIT_FAILED

        assert events_of(disk)[-1].kind is FailureKind.DISK_FULL
        assert len(events_of(disk, EpochEnded)) == len(list((disk / "checkpoints").iterdir())) == 1
        assert run(RunOptions(job_dir=disk)) == EXIT_FINISHED
        assert [event.epoch for event in events_of(disk, EpochEnded)] == [1, 2]


@pytest.mark.slow
def test_a_disk_without_room_for_a_terminal_event_ends_the_run(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job_dir = make_job(**EXACT)
    with small_disk(tmp_path / "disk", 40_000) as disk:
        (disk / "spec.json").write_bytes((job_dir / "spec.json").read_bytes())

        def filled(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
            # Fill the last page of the events file, too.
            events = disk / "events.jsonl"
            with events.open("ab") as file:
                file.write(b"\n" * (-events.stat().st_size % 4096))
            fill(disk / "ballast")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(DiffusionTask, "train_loss", filled)
        assert run(RunOptions(job_dir=disk)) == EXIT_FAILED
        assert not complete_events_of(disk, Failed)


def complete_events_of(job_dir: Path, kind: type[Any]) -> list[Any]:
    from trainer.reporter import scan

    return [event for event in scan(job_dir / "events.jsonl").events if isinstance(event, kind)]


def test_a_full_disk_is_recognized_behind_other_errors() -> None:
    error = RuntimeError("unexpected pos 704 vs 598")
    error.__context__ = OSError(28, "No space left on device")
    assert is_disk_full(error)
    assert not is_disk_full(RuntimeError("unexpected pos 704 vs 598"))


# -- a GPU that is not there ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_with_an_assigned_gpu_does_not_train_on_the_cpu(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3f2a")
    monkeypatch.setenv(NEEDS_GPU_VARIABLE, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job_dir = make_job(**EXACT)
    write_attempt(job_dir, 1)
    assert run(RunOptions(job_dir=job_dir, attempt=1)) == EXIT_FAILED
    failed = events_of(job_dir, Failed)[-1]
    assert (failed.kind, "GPU-3f2a" in failed.message) == (FailureKind.DEVICE_LOST, True)


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("busy", "spins"),
    [
        # Percent of each of two cores that others use, at each look.
        ([(2, 5)], True),
        ([(90, 3), (95, 4), (4, 4)], True),
        ([(100, 3), (98, 2), (99, 5)], False),
        ([(20, 20), (25, 30), (40, 0)], False),
    ],
    ids=["quiet", "a short burst", "one busy process", "several at work"],
)
def test_threads_spin_on_a_quiet_machine_and_sleep_beside_other_work(
    busy: list[tuple[float, float]], spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(busy)
    monkeypatch.setattr(psutil, "cpu_percent", lambda _seconds, percpu: list(next(looks)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch")

    choose_openmp_spin()

    assert ("GOMP_SPINCOUNT" not in os.environ) is spins


def test_who_starts_the_trainer_may_choose_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_given, **_settings: pytest.fail("it is chosen"))
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delitem(sys.modules, "torch")

    choose_openmp_spin()

    assert "GOMP_SPINCOUNT" not in os.environ


def test_what_the_first_import_of_torch_leaves_is_never_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = Mock()
    monkeypatch.setattr(gc, "freeze", freeze)
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    freeze.assert_not_called()

    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError), without_collection():
        raise ImportError
    assert gc.isenabled()
    freeze.assert_called_once_with()


def test_a_quantized_base_without_torchao_is_refused_before_anything_is_loaded(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An entry of None makes the import fail.
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setattr(recipe, "make_task", lambda *_arguments: pytest.fail("it is loaded"))
    job_dir = make_job(base_settings={"quantization": "nf4"})

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED

    (failed,) = events_of(job_dir, Failed)
    assert failed.kind is FailureKind.MISSING_LIBRARY
    assert "torchao" in failed.hint
