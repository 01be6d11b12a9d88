"""How a job goes on: from an older checkpoint, with more epochs, or as a new job; and what may not change."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conftest import FEW_LAYERS, MakeJob, job_maker
from tests.trainer.fork_server import ForkServer, Hook
from tests.trainer.job_events import assert_same_checkpoints, curve_of, events_of
from trainer.__main__ import main
from trainer.commands import training_commands
from trainer.exchange.job_dir import START_FILE, read_spec
from trainer.protocol import events
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_REFUSED,
    EpochEnded,
    Exported,
    Failed,
    FailureKind,
    Finished,
    StageBegan,
    StepDone,
    Warned,
)
from trainer.protocol.run_options import RunOptions
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.task import FrozenLoss
from trainer.training.checkpoints import Checkpoints, is_intact
from trainer.training.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Every checkpoint is kept. Nothing is exported unless a test needs it, and few layers have an adapter.
KEPT: dict[str, Any] = {
    "method": FEW_LAYERS,
    "training": {"epochs": 3, "keep_every_epochs": 1},
    "validation": {"test": False},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 9},
}


@pytest.fixture(scope="module")
def kept_job(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of three epochs that kept all of its checkpoints."""
    job_dir = job_maker(dataset, random_base, tmp_path_factory.mktemp("kept"))(**KEPT)
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


@pytest.fixture
def job(kept_job: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept_job, tmp_path / "job")


def failure(job_dir: Path) -> Failed:
    last = events_of(job_dir)[-1]
    assert isinstance(last, Failed)
    return last


# -- damaged checkpoints ----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", zero),
        ("optimizer.pt", flip_one_bit),
        ("weights.safetensors", cut),
        ("state.json", flip_one_bit),
        ("checksums.json", zero),
        ("optimizer.pt", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(job: Path, name: str, damage: Callable[[Path], None]) -> None:
    newest, before, _first = Checkpoints(job).newest_first()
    damage(newest / name)
    assert not is_intact(newest)
    assert Checkpoints(job).latest() == before


def test_a_job_with_a_damaged_checkpoint_trains_on_from_the_one_before(job: Path, kept_job: Path) -> None:
    newest = Checkpoints(job).newest_first()[0]
    flip_one_bit(newest / "optimizer.pt")

    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED, events_of(job)[-1]

    (warned,) = events_of(job, Warned)
    assert (warned.kind, newest.name in warned.message, "epoch 3" in warned.message) == (
        "damaged_checkpoint",
        True,
        True,
    )
    # The last epoch was trained again, to the same weights.
    assert_same_checkpoints(job, kept_job)


def test_a_chosen_epoch_becomes_the_result(job: Path) -> None:
    best = events_of(job, Finished)[-1].best_epoch
    chosen = next(epoch for epoch in (1, 2, 3) if epoch != best)

    assert run(RunOptions(job_dir=job, finish=True, epoch=chosen)) == EXIT_FINISHED

    assert events_of(job, Finished)[-1].best_epoch == chosen
    point = next(event for event in events_of(job, EpochEnded) if event.epoch == chosen)
    assert events_of(job, Finished)[-1].best_ratio == point.validation.ratio
    # Once more without a choice: the best epoch is not forgotten.
    assert run(RunOptions(job_dir=job, finish=True)) == EXIT_FINISHED
    assert events_of(job, Finished)[-1].best_epoch == best


def test_an_epoch_without_a_checkpoint_cannot_be_chosen(job: Path) -> None:
    assert run(RunOptions(job_dir=job, finish=True, epoch=9)) == EXIT_FAILED

    failed = events_of(job, Failed)[-1]
    assert failed.kind is FailureKind.BAD_CHECKPOINT
    assert "1, 2, 3" in failed.hint


def test_a_damaged_best_checkpoint_is_replaced_by_the_best_of_the_others(job: Path) -> None:
    kept = Checkpoints(job)
    newest, best, _first = kept.newest_first()
    # As if the second of the three epochs had been the best one.
    state = kept.load_state(newest)
    memory = state.stop_memory.model_copy(update={"best_epoch": 2, "best_ratio": 0.1})
    changed = state.model_copy(update={"best_step": kept.load_state(best).step, "stop_memory": memory})
    kept.save(changed, kept.load_weights(newest), kept.load_optimizer(newest))
    zero(best / "weights.safetensors")

    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED, events_of(job)[-1]

    ratios = {ended.epoch: ended.validation.ratio for ended in events_of(job, EpochEnded) if ended.epoch != 2}
    finished = events_of(job, Finished)[-1]
    assert (finished.best_epoch, finished.best_ratio) == min(ratios.items(), key=lambda item: item[1])
    assert [event.kind for event in events_of(job, Warned)] == ["damaged_checkpoint"]


# -- the settings -----------------------------------------------------------------------------------------------------


def test_settings_that_changed_after_the_start_are_refused_with_the_list(job: Path) -> None:
    path = job / "spec.json"
    before = path.read_text(encoding="utf-8")
    for name, value in (("learning_rate", 1e-5), ("batch_size", 8), ("epochs", 8)):
        content = json.loads(before)
        old = content["training"][name]
        content["training"][name] = value
        path.write_text(json.dumps(content), encoding="utf-8")

        assert run(RunOptions(job_dir=job)) == EXIT_FAILED

        assert failure(job).kind is FailureKind.BAD_SPEC
        assert f"training.{name} {json.dumps(old)} → {json.dumps(value)}." in failure(job).message
        assert "extend" in failure(job).hint
    # The settings that it was trained with are accepted.
    path.write_text(before, encoding="utf-8")
    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED


def test_settings_that_changed_before_the_first_checkpoint_are_refused_too(
    make_job: MakeJob, fork_server: ForkServer
) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 1}})
    hook: Hook = ("tests.trainer.fork_server:signal_before_step", [signal.SIGKILL, 1])
    assert fork_server.run("run", str(job_dir), hook=hook).returncode == -signal.SIGKILL
    spec = (job_dir / "spec.json").read_text(encoding="utf-8")
    changed = json.loads(spec)
    # What it was measured with would be compared with another training.
    changed["training"]["seed"] += 1
    (job_dir / "spec.json").write_text(json.dumps(changed), encoding="utf-8")

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_SPEC
    assert "training.seed" in failure(job_dir).message

    (job_dir / "spec.json").write_text(spec, encoding="utf-8")
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]


def test_settings_that_never_trained_may_be_corrected(make_job: MakeJob) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 1}}, stages=[{"epochs": 1, "train": ["no_such_block"]}])
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_SPEC

    spec = json.loads((job_dir / "spec.json").read_text(encoding="utf-8"))
    (job_dir / "spec.json").write_text(json.dumps({**spec, "stages": []}), encoding="utf-8")
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]


# -- more epochs ------------------------------------------------------------------------------------------------------


def test_a_finished_job_is_extended_as_if_it_had_had_a_further_stage(
    job: Path, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    # An extension may be changed until it trains.
    assert main(["extend", str(job), "--epochs", "7"]) == 0
    capsys.readouterr()
    assert main(["extend", str(job), "--epochs", "1"]) == 0
    assert "4 epochs" in capsys.readouterr().out
    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED, events_of(job)[-1]

    planned = make_job(
        "planned",
        **{**KEPT, "training": {**KEPT["training"], "epochs": 4}},
        stages=[{"epochs": 3}, {"epochs": 1}],
    )
    assert run(RunOptions(job_dir=planned)) == EXIT_FINISHED, events_of(planned)[-1]
    assert curve_of(job) == curve_of(planned)
    assert_same_checkpoints(job, planned)
    # The rate rises again and falls to the end of the new stage.
    began = events_of(job, StageBegan)[-1]
    assert (began.stage, began.first_epoch, began.last_epoch) == (2, 4, 4)
    assert [event.epochs for event in events_of(job, Finished)] == [3, 4]


def test_a_job_at_a_constant_rate_is_extended_exactly_as_if_it_had_been_planned_longer(make_job: MakeJob) -> None:
    training = {"keep_every_epochs": 1, "schedule": "constant", "warmup_steps": 1}
    planned = make_job("planned", **{**KEPT, "training": {**training, "epochs": 3}})
    extended = make_job("extended", **{**KEPT, "training": {**training, "epochs": 2}})
    for job_dir in (planned, extended):
        assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    assert main(["extend", str(extended), "--epochs", "1"]) == 0
    assert run(RunOptions(job_dir=extended)) == EXIT_FINISHED, events_of(extended)[-1]

    assert_same_checkpoints(extended, planned)
    assert curve_of(extended) == curve_of(planned)
    assert [event.stage for event in events_of(extended, StageBegan)] == [1]


def test_an_extended_job_tests_and_exports_its_new_best_epoch(make_job: MakeJob) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 1}, "validation": {"test": True}})
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    assert main(["extend", str(job_dir), "--epochs", "1"]) == 0
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    assert events_of(job_dir, Finished)[-1].best_epoch == 2
    assert [event.epoch for event in events_of(job_dir, events.Tested)] == [1, 2]
    assert len({event.sha256 for event in events_of(job_dir, Exported)}) >= 2


def test_a_job_whose_time_was_up_has_as_much_again_when_it_is_extended(make_job: MakeJob) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 1}}, early_stopping={"enabled": False, "max_hours": 1000.0})
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    kept = Checkpoints(job_dir)
    (newest,) = kept.newest_first()
    late = kept.load_state(newest).model_copy(update={"seconds": 2000 * 3600.0, "is_stopped_early": True})
    kept.save(late, kept.load_weights(newest), kept.load_optimizer(newest))

    assert main(["extend", str(job_dir), "--epochs", "2"]) == 0
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    assert not events_of(job_dir, events.StoppedEarly)
    assert [ended.epoch for ended in events_of(job_dir, EpochEnded)] == [1, 2, 3]


def test_a_job_that_was_ended_between_two_epochs_can_be_extended(job: Path) -> None:
    shutil.rmtree(Checkpoints(job).newest_first()[0])
    assert run(RunOptions(job_dir=job, finish=True)) == EXIT_FINISHED, events_of(job)[-1]

    assert main(["extend", str(job), "--epochs", "2"]) == 0
    assert run(RunOptions(job_dir=job)) == EXIT_FINISHED, events_of(job)[-1]
    assert events_of(job, Finished)[-1].epochs == 4


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_cannot_be_extended_is_refused(
    job: Path, make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, before = Checkpoints(job).load_state(Checkpoints(job).newest_first()[0]), files_of(job)
    running = shutil.copytree(job, tmp_path / "running")
    newest = Checkpoints(running).newest_first()[0]
    Checkpoints(running).save(
        state.model_copy(update={"is_over": False}),
        Checkpoints(running).load_weights(newest),
        Checkpoints(running).load_optimizer(newest),
    )
    for folder, epochs, expected in (
        (tmp_path / "nowhere", "1", "no job folder"),
        (make_job("never-started"), "1", "no checkpoint"),
        (running, "1", "still in epoch"),
        (job, "0", "epochs"),
        (job, "1000", "epochs"),
    ):
        assert main(["extend", str(folder), "--epochs", epochs]) == EXIT_REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert files_of(job) == before


# -- a new job from the weights of another ----------------------------------------------------------------------------


def test_a_new_job_starts_from_the_best_weights_of_a_finished_one(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "continued"
    # It takes seconds, and is the subject of test_memory_command.py.
    monkeypatch.setattr(training_commands, "predicted_memory", lambda *_arguments: None)
    changes = ["training.epochs=1", "training.learning_rate=1e-7", "training.warmup_share=0"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert main(["new", "--from", str(job), "--name", "again", *arguments, "--out", str(out)]) == 0
    # The weights were copied: the old job may go.
    (finished,), weights = events_of(job, Finished), Checkpoints(job)
    expected = weights.load_evaluated(weights.path(events_of(job, EpochEnded)[finished.best_epoch - 1].step))
    before = read_spec(job)
    shutil.rmtree(job)
    # Weights that are not those are refused.
    damaged = shutil.copytree(out, tmp_path / "damaged")
    flip_one_bit(damaged / START_FILE)
    assert run(RunOptions(job_dir=damaged)) == EXIT_FAILED
    assert failure(damaged).kind is FailureKind.BAD_CHECKPOINT

    assert run(RunOptions(job_dir=out)) == EXIT_FINISHED, events_of(out)[-1]

    spec = read_spec(out)
    assert (spec.name, spec.training.epochs, spec.method.rank) == ("again", 1, before.method.rank)
    (ended,) = events_of(out, EpochEnded)
    # At this rate nothing moves: the new job is where the old one ended, below the base.
    assert ended.validation.ratio == pytest.approx(finished.best_ratio, rel=1e-3)
    assert finished.best_ratio < 0.98
    trained = load_file(Checkpoints(out).newest_first()[0] / "weights.safetensors")
    assert all(torch.allclose(trained[name], tensor, atol=1e-4) for name, tensor in expected.items())


def test_weights_that_do_not_fit_are_refused(
    job: Path, make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for arguments, expected in (
        (["--from", str(job), "--set", "method.rank=8"], "method.rank 4 → 8"),
        (["--from", str(job), "--set", "base.clip_skip=2"], "base.clip_skip 1 → 2"),
        (["--from", str(job), "--preset", "lora"], "--preset"),
        (["--from", str(make_job("never-started"))], "no checkpoint"),
        ([], "--dataset"),
    ):
        assert main(["new", *arguments, "--out", out]) == EXIT_REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert not Path(out).exists()


# -- numbers that overflow --------------------------------------------------------------------------------------------


def overflowing(epochs: set[int], job_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss of the frozen triples overflow after these epochs."""
    real = DiffusionTask.frozen_losses

    def frozen_losses(self: DiffusionTask, *arguments: Any) -> list[FrozenLoss]:
        losses = real(self, *arguments)
        epoch = len(list((job_dir / "validation").glob("epoch-*.json"))) + 1
        is_base = not (job_dir / "validation" / "train-base.json").exists()
        if epoch in epochs and not is_base:
            losses[0] = FrozenLoss(plain=float("nan"), training=float("inf"))
        return losses

    monkeypatch.setattr(DiffusionTask, "frozen_losses", frozen_losses)


def test_a_validation_that_is_not_a_number_is_never_the_best_epoch(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = make_job(**KEPT)
    overflowing({1, 3}, job_dir, monkeypatch)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    warned = [event for event in events_of(job_dir, Warned) if event.kind == "validation_not_a_number"]
    assert [f"epoch {epoch}" in event.message for epoch, event in zip((1, 3), warned, strict=True)] == [True, True]
    (finished,) = events_of(job_dir, Finished)
    assert finished.best_epoch == 2
    assert [event.is_best for event in events_of(job_dir, EpochEnded)] == [False, True, False]
    # It resumes from such an epoch, too.
    shutil.rmtree(Checkpoints(job_dir).newest_first()[0])
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]


def test_a_training_without_any_finite_validation_fails(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 2}})
    overflowing({1, 2}, job_dir, monkeypatch)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.DIVERGED


def test_a_training_that_unlearns_is_warned_about_once_an_epoch(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = make_job(**{**KEPT, "training": {"epochs": 1}})
    real = DiffusionTask.frozen_losses

    def worse(self: DiffusionTask, *arguments: Any) -> list[FrozenLoss]:
        losses = real(self, *arguments)
        is_base = not (job_dir / "validation" / "train-base.json").exists()
        return losses if is_base else [replace(loss, plain=2 * loss.plain) for loss in losses]

    monkeypatch.setattr(DiffusionTask, "frozen_losses", worse)

    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    (warned,) = [event for event in events_of(job_dir, Warned) if event.kind == "diverging"]
    assert "After epoch 1 the model is " in warned.message
    assert "% worse than the base model" in warned.message


# -- what is told of a step -------------------------------------------------------------------------------------------


def test_the_learning_rate_of_a_step_is_that_of_the_step(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every step is told.
    monkeypatch.setattr("trainer.training.step.PROGRESS_INTERVAL_S", 0.0)
    training = {"epochs": 1, "schedule": "linear", "warmup_steps": 2, "learning_rate": 1e-3}
    job_dir = make_job(**{**KEPT, "training": training})
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]

    # Four steps: two steps of warm-up from 0, then down from the highest rate towards 0 after the last.
    assert [event.learning_rate for event in events_of(job_dir, StepDone)] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])
    assert [event.learning_rate for event in events_of(job_dir, EpochEnded)] == pytest.approx([5e-4])
