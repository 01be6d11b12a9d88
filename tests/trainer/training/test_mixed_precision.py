"""fp16 with a loss scale, in whole jobs of two stages with a real GradScaler on the CPU."""

from __future__ import annotations

import gc
import math
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.trainer.conftest import FEW_LAYERS, MakeJob, job_maker
from tests.trainer.fork_server import ForkServer, Hook, signal_before_step
from tests.trainer.job_events import assert_same_checkpoints, curve_of, events_of
from trainer.protocol.events import EXIT_FINISHED
from trainer.protocol.run_options import RunOptions
from trainer.training import recipe, session, step
from trainer.training.checkpoints import Checkpoints
from trainer.training.run import run
from trainer.training.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: SGD, since Adam hides most of a wrong scale.
STAGED: dict[str, Any] = {
    "training": {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 3, "max_grad_norm": 1000.0},
    "stages": [{"epochs": 1}, {"epochs": 2, "train": ["up_blocks"]}],
    "method": FEW_LAYERS,
    "validation": {"test": False},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 2},
}


def scale_losses() -> None:
    """A hook: give the accelerator the scaler that it makes for fp16 on a GPU."""
    real = vars(recipe)["make_accelerator"]

    def make_accelerator(*arguments: Any, **options: Any) -> Accelerator:
        accelerator: Accelerator = real(*arguments, **options)
        # Not so large that gradients overflow: a skipped step would be another training.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    vars(recipe)["make_accelerator"] = make_accelerator


def run_scaled(server: ForkServer, job_dir: Path) -> int:
    hook: Hook = (f"{__name__}:scale_losses", [])
    return server.run("run", str(job_dir), hook=hook, log=job_dir / "trainer.log").returncode


def scale_and_kill(step: int) -> None:
    """A hook: as `scale_losses`, killed before a step."""
    scale_losses()
    signal_before_step(signal.SIGKILL, step)


def scale_and_overflow(*steps: int) -> None:
    """A hook: as `scale_losses`; a gradient of each of these steps is not finite."""
    scale_losses()
    real = vars(step)["_accumulate"]

    def accumulate(session: Session, views: Any, number: int) -> Any:
        accumulated = real(session, views, number)
        if number in steps:
            (gradient, *_others) = (each.grad for each in session.parameters if each.grad is not None)
            gradient.fill_(math.inf)
        return accumulated

    vars(step)["_accumulate"] = accumulate


@pytest.fixture(scope="module")
def scaled(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Path:
    """A finished job with a loss scale."""
    job_dir = job_maker(dataset, random_base, tmp_path_factory.mktemp("scaled"))(**STAGED)
    assert run_scaled(fork_server, job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


@pytest.fixture(scope="module")
def plain_job_and_optimizers(
    dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[bool]]:
    """A finished job without a loss scale, and which of its optimizers were alive at its end."""
    job_dir = job_maker(dataset, random_base, tmp_path_factory.mktemp("plain"))(**STAGED)
    made: list[weakref.ref[torch.optim.Optimizer]] = []
    make_optimizer, export_and_finish = vars(session)["make_optimizer"], vars(recipe)["export_and_finish"]
    alive: list[bool] = []

    def make_and_watch(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = make_optimizer(*arguments, **options)
        made.append(weakref.ref(optimizer))
        return optimizer

    def count_and_finish(*arguments: Any) -> None:
        gc.collect()
        alive.extend(reference() is not None for reference in made)
        export_and_finish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_optimizer", make_and_watch)
        patch.setattr(recipe, "export_and_finish", count_and_finish)
        assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir, alive


def test_a_loss_scale_changes_nothing_in_any_stage(
    plain_job_and_optimizers: tuple[Path, list[bool]], scaled: Path
) -> None:
    plain, _alive = plain_job_and_optimizers

    # The second stage learns: without it the comparison would show nothing.
    assert curve_of(plain)[1][1] < 0.999 * curve_of(plain)[0][1]
    # A power of two scales without rounding.
    assert curve_of(scaled) == [pytest.approx(point, rel=1e-6) for point in curve_of(plain)]


def test_a_scaled_training_that_is_killed_in_its_second_stage_resumes_to_the_bit(
    scaled: Path, make_job: MakeJob, fork_server: ForkServer
) -> None:
    killed = make_job("killed", **STAGED)
    hook: Hook = (f"{__name__}:scale_and_kill", [10])
    assert fork_server.run("run", str(killed), hook=hook).returncode == -signal.SIGKILL
    assert run_scaled(fork_server, killed) == EXIT_FINISHED, events_of(killed)[-1]

    assert curve_of(killed) == curve_of(scaled)
    assert_same_checkpoints(killed, scaled)


def test_a_step_that_overflows_counts_neither_for_the_schedule_nor_for_the_average(
    make_job: MakeJob, fork_server: ForkServer
) -> None:
    training = {"epochs": 1, "batch_size": 1, "schedule": "cosine", "ema_decay": 0.9}
    job_dir = make_job(**{**STAGED, "training": training, "stages": []})

    hook: Hook = (f"{__name__}:scale_and_overflow", [0, 5, 6])
    assert fork_server.run("run", str(job_dir), hook=hook).returncode == EXIT_FINISHED, events_of(job_dir)[-1]

    checkpoints = Checkpoints(job_dir)
    (path,) = checkpoints.newest_first()
    saved = checkpoints.load_optimizer(path)
    (taken,) = {int(each["step"]) for each in saved["optimizer"]["state"].values()}
    assert taken == checkpoints.load_state(path).step - 3
    assert (saved["schedule"]["last_epoch"], saved["ema"]["updates"]) == (taken, taken)


def test_the_optimizer_of_a_past_stage_is_freed(plain_job_and_optimizers: tuple[Path, list[bool]]) -> None:
    _job_dir, alive = plain_job_and_optimizers
    assert alive == [False, True]
