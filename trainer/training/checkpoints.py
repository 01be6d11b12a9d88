"""Resumable checkpoints: complete or absent; the latest and the best are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.exchange.files import sync
from trainer.protocol.frozen import Frozen
from trainer.protocol.text import _
from trainer.trainer_failpoints import failpoint
from trainer.training.early_stopping import StopMemory

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"
WEIGHTS_FILE = "weights.safetensors"


class EpochPoint(Frozen):
    """One epoch of the loss curves."""

    epoch: int
    train_loss: float
    validation_loss: float
    ratio: float
    #: The ratio on the measured training images; None if none are measured.
    train_ratio: float | None = None
    #: Confidence interval of `ratio`; None with too few images.
    ratio_low: float | None = None
    ratio_high: float | None = None
    #: From 1.
    stage: int = 1

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.ratio_low is None or self.ratio_high is None else (self.ratio_low, self.ratio_high)


class BetweenPoint(Frozen):
    """A validation within an epoch."""

    #: In epochs: 2.5 is in the middle of the third.
    at: float
    ratio: float


class TrainingState(Frozen):
    """Progress of a training. It holds no random state: random numbers are functions of the seed and the step."""

    #: The current epoch, from 1, and the optimizer steps done in it.
    epoch: int = 1
    position: int = 0
    #: Optimizer steps in total.
    step: int = 0
    #: Sum of the loss over the images seen in this epoch, and their number.
    loss_sum: float = 0.0
    loss_count: int = 0
    #: Seconds of work in this epoch, and in total.
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    #: Seconds that validation, samples and chart of the last epoch took.
    epoch_end_seconds: float = 0.0
    stop_memory: StopMemory = StopMemory()
    curve: tuple[EpochPoint, ...] = ()
    between: tuple[BetweenPoint, ...] = ()
    #: Step of the checkpoint with the best weights.
    best_step: int = 0
    #: Steps of further checkpoints to keep.
    kept_steps: tuple[int, ...] = ()
    #: Each micro-batch is split into this many parts, because the whole did not fit into memory.
    micro_batch_splits: int = 1
    #: No more epochs; test and export remain.
    is_over: bool = False
    is_stopped_early: bool = False
    #: Events (type, fields) to emit once this state is on disk, so that none is lost or doubled.
    pending: tuple[tuple[str, dict[str, Any]], ...] = ()


class Checkpoints:
    """The checkpoints of one job, `checkpoints/step-00000123/`."""

    def __init__(self, job_dir: Path) -> None:
        self.folder = job_dir / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the checkpoint of the highest step, or None if there is none."""
        for old in self.folder.glob("step-????????.old"):
            # The process died between the two renames of `save`; restore it unless the new one is in place.
            if not old.with_suffix("").exists():
                old.rename(old.with_suffix(""))
        return max(self.folder.glob("step-????????"), default=None)

    def save(
        self,
        state: TrainingState,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        *,
        before_commit: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write a checkpoint, then delete those that are neither the latest, nor the best, nor to be kept.

        If `before_commit` raises or the disk is full, the existing checkpoints are unchanged.
        """
        final = self.path(state.step)
        partial = final.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(partial, state, weights, optimizer)
            before_commit()
        except BaseException:
            # On a full disk this also makes room for the terminal event.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if final.exists():
            # A stop around the end of an epoch saves the same step twice: keep the old one until the new one is there.
            final.replace(final.with_suffix(".old"))
        partial.replace(final)
        sync(self.folder)
        failpoint("checkpoint_written")
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


def _write(folder: Path, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    save_file(dict(weights), folder / WEIGHTS_FILE)
    failpoint("checkpoint_half_written")
    # torch reports a full disk only if it writes to an open file.
    with (folder / OPTIMIZER_FILE).open("wb") as file:
        torch.save(dict(optimizer), file)
    (folder / STATE_FILE).write_text(state.model_dump_json(indent=1), encoding="utf-8")
    for path in folder.iterdir():
        sync(path)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        _(
            "The checkpoint {name} cannot be read ({kind}: {error}).",
            name=path.name,
            kind=type(error).__name__,
            error=error,
        ),
        _("Delete its folder to resume from an older one, or start the job again from the beginning."),
    )
