"""There is a complete checkpoint at every moment, also while another replaces it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.training.checkpoints import Checkpoints, TrainingState


def save(checkpoints: Checkpoints, step: int, *, epoch: int = 1, best_step: int = 0) -> Path:
    state = TrainingState(epoch=epoch, step=step, best_step=best_step)
    return checkpoints.save(state, {"unet:a": torch.full((2,), float(epoch))}, {"optimizer": {"step": step}})


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10, 15):
        save(checkpoints, step, best_step=min(step, 5))

    assert {path.name for path in checkpoints.folder.iterdir()} == {"step-00000005", "step-00000015"}
    assert checkpoints.latest() == checkpoints.path(15)


def test_further_checkpoints_can_be_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10, 15, 20):
        state = TrainingState(step=step, best_step=5, kept_steps=tuple(range(10, step + 1, 10)))
        checkpoints.save(state, {}, {})

    kept = {path.name for path in checkpoints.folder.iterdir()}
    assert kept == {"step-00000005", "step-00000010", "step-00000020"}


def test_saving_the_same_step_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, epoch=1)
    save(checkpoints, 5, epoch=2)

    latest = checkpoints.latest()
    assert latest is not None
    assert checkpoints.load_state(latest).epoch == 2
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_a_step_is_saved_again_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, epoch=1)
    renames = 0
    real = Path.replace

    def crash(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == crash_at:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 5, epoch=2)

    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert Checkpoints(tmp_path).load_state(found).epoch == 1
    assert Checkpoints(tmp_path).load_weights(found)["unet:a"].tolist() == [1.0, 1.0]
