"""Resumable checkpoints: written whole or not at all, the latest and the best kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.crashing import crash_point
from trainer.errors import CheckpointError
from trainer.training.early_stopping import StopMemory

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"
WEIGHTS_FILE = "weights.safetensors"


class EpochPoint(BaseModel):
    """One point of the loss curves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    train_loss: float
    validation_loss: float
    ratio: float
    #: The ratio on the training pictures that are measured, and the interval of `ratio`; None where there is none.
    train_ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    #: Stage, from 1.
    stage: int = 1

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.ratio_low is None or self.ratio_high is None else (self.ratio_low, self.ratio_high)


class BetweenPoint(BaseModel):
    """A validation between two epoch ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: In epochs: 2.5 is in the middle of the third.
    at: float
    ratio: float


class TrainingState(BaseModel):
    """Where a training stands. Random numbers need no place in it: they are functions of the seed and the step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The epoch that is being trained, from 1, and the optimizer steps done in it.
    epoch: int = 1
    position: int = 0
    #: Optimizer steps in all.
    step: int = 0
    #: Sum of the loss over the pictures seen in this epoch, and their number.
    loss_sum: float = 0.0
    loss_count: int = 0
    #: Seconds of work in this epoch, and in all.
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    #: What the validation, samples and chart of the last epoch took.
    epoch_end_seconds: float = 0.0
    stop_memory: StopMemory = StopMemory()
    curve: tuple[EpochPoint, ...] = ()
    between: tuple[BetweenPoint, ...] = ()
    #: Step of the checkpoint with the best weights.
    best_step: int = 0
    #: Steps of further checkpoints that are kept.
    kept_steps: tuple[int, ...] = ()
    #: Into how many parts a micro-batch goes through the model, since the memory was too small for all of it.
    parts: int = 1
    #: No more epochs: what is left is the test and the export.
    is_over: bool = False
    is_stopped_early: bool = False
    #: Events (type, fields) that belong to this state: said after it is safe on disk, so never lost and never doubled.
    pending: tuple[tuple[str, dict[str, Any]], ...] = ()


class Checkpoints:
    """The checkpoints of one job, `checkpoints/step-00000123/`."""

    def __init__(self, job_dir: Path) -> None:
        self.folder = job_dir / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """The checkpoint of the highest step, None if there is none."""
        for old in self.folder.glob("step-????????.old"):
            # Left by a process that died between the two renames of `save`, if nothing has taken its place.
            if not old.with_suffix("").exists():
                old.rename(old.with_suffix(""))
        return max(self.folder.glob("step-????????"), default=None)

    def save(
        self,
        state: TrainingState,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        *,
        before_it_counts: Callable[[], None] = lambda: None,
    ) -> Path:
        """Keep a state with its weights and optimizer; drop what is neither latest, nor best, nor to be kept.

        What `before_it_counts` raises comes through; then, and where the disk is full, all is as it was.
        """
        final = self.path(state.step)
        part = final.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            _write(part, state, weights, optimizer)
            before_it_counts()
        except BaseException:
            # On a full disk this is also what makes room for the last word.
            shutil.rmtree(part, ignore_errors=True)
            raise
        if final.exists():
            # The same step again, by a stop around an epoch's end: the older one goes only once the newer is there.
            final.replace(final.with_suffix(".old"))
        part.replace(final)
        _sync(self.folder)
        crash_point("checkpoint_written")
        self._prune(keep={state.step, state.best_step, *state.kept_steps})
        return final

    def load_state(self, path: Path) -> TrainingState:
        """Raises: CheckpointError."""
        try:
            return TrainingState.model_validate_json((path / STATE_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise _unreadable(path, error) from error

    def load_weights(self, path: Path) -> dict[str, Tensor]:
        """Raises: CheckpointError."""
        try:
            return load_file(path / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error

    def load_optimizer(self, path: Path) -> dict[str, Any]:
        """Raises: CheckpointError."""
        try:
            state: dict[str, Any] = torch.load(path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise _unreadable(path, error) from error
        return state

    def _prune(self, keep: set[int]) -> None:
        kept = {self.path(step) for step in keep}
        for path in self.folder.iterdir():
            if path not in kept:
                shutil.rmtree(path)


def _write(part: Path, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> None:
    part.mkdir(parents=True)
    save_file(dict(weights), part / WEIGHTS_FILE)
    crash_point("checkpoint_half_written")
    # To a path, torch would not say that the disk is full.
    with (part / OPTIMIZER_FILE).open("wb") as file:
        torch.save(dict(optimizer), file)
    (part / STATE_FILE).write_text(state.model_dump_json(indent=1), encoding="utf-8")
    for path in part.iterdir():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {path.name} cannot be read ({type(error).__name__}: {error}).",
        "Delete its folder to go on from an older one, or start the job anew.",
    )
