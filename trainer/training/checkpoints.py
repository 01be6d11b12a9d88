"""Resumable checkpoints: complete or absent, with checksums; the latest and the best are kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import BadSpecError, CheckpointError, first_line
from trainer.exchange.files import sync, write_text
from trainer.exchange.job_dir import START_FILE
from trainer.protocol.events import Warned
from trainer.protocol.frozen import Frozen
from trainer.protocol.spec import Spec, changed_settings, extended, make_spec
from trainer.protocol.text import _, ngettext
from trainer.reporter import Reporter
from trainer.trainer_failpoints import failpoint
from trainer.training.early_stopping import StopMemory

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.pt"
WEIGHTS_FILE = "weights.safetensors"
#: XXH3-128 of each of the other files: 17 GB/s on one core, where SHA-256 would take seconds for a whole model.
CHECKSUM_FILE = "checksums.json"
#: In a job folder: the settings with which the training began, for a run that finds no checkpoint yet.
BEGUN_FILE = "begun.json"
#: Prefix of the names of averaged weights in a checkpoint, where they differ from the training weights.
EVALUATED = "evaluated:"


class EpochPoint(Frozen):
    """One epoch of the loss curves. A validation that overflowed is not a number."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

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

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    #: In epochs: 2.5 is in the middle of the third.
    at: float
    ratio: float


class TrainingState(Frozen):
    """Progress of a training. It holds no random state: random numbers are functions of the seed and the step."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    #: The settings that it was trained with (`spec.json`), which may not change.
    spec: Mapping[str, Any] = {}
    #: The current epoch, from 1, and the optimizer steps done in it.
    epoch: int = 1
    position: int = 0
    #: Optimizer steps in total.
    step: int = 0
    #: Sum of the loss over the images seen in this epoch, and their number.
    loss_sum: float = 0.0
    loss_count: int = 0
    #: Of the last step; the highest of all parameter groups.
    learning_rate: float = 0.0
    #: Seconds of work in this epoch, and in total.
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    #: Of these, those before the newest extension: `early_stopping.max_hours` counts from there.
    seconds_before: float = 0.0
    #: Seconds that validation, samples and chart of the last epoch took.
    epoch_end_seconds: float = 0.0
    stop_memory: StopMemory = StopMemory()
    curve: tuple[EpochPoint, ...] = ()
    between: tuple[BetweenPoint, ...] = ()
    #: Step of the checkpoint with the best weights.
    best_step: int = 0
    #: Steps of further checkpoints to keep.
    kept_steps: tuple[int, ...] = ()
    #: At most this many images go through the model at once, because more did not fit into memory.
    micro_batch_limit: int | None = None
    #: No more epochs; test and export remain.
    is_over: bool = False
    is_stopped_early: bool = False
    #: Events (type, fields) to emit once this state is on disk, so that none is lost or doubled.
    pending: tuple[tuple[str, dict[str, Any]], ...] = ()


class Checkpoints:
    """The checkpoints of one job, `checkpoints/step-00000123/`."""

    def __init__(self, job_dir: Path) -> None:
        self.folder = job_dir / "checkpoints"

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of a training that has no checkpoint yet."""
        write_text(self.folder.with_name(BEGUN_FILE), json.dumps(settings), durable=True)

    def begun_settings(self) -> Mapping[str, Any] | None:
        """Return the settings with which the training began; None if it has not."""
        try:
            settings: Mapping[str, Any] = json.loads(self.folder.with_name(BEGUN_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        return settings

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the newest intact checkpoint, or None if there is none."""
        return next(filter(is_intact, self.newest_first()), None)

    def newest_first(self) -> Sequence[Path]:
        """Return all checkpoints, by falling step."""
        for old in self.folder.glob("step-????????.old"):
            # The process died between the two renames of `save`; restore it unless the new one is in place.
            if not old.with_suffix("").exists():
                old.rename(old.with_suffix(""))
        return sorted(self.folder.glob("step-????????"), reverse=True)

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

    def load_evaluated(self, path: Path) -> dict[str, Tensor]:
        """Return the weights as they were validated: the averaged ones where the training averages.

        Raises:
            CheckpointError: They cannot be read.
        """
        weights = self.load_weights(path)
        averaged = {
            name.removeprefix(EVALUATED): weights.pop(name) for name in list(weights) if name.startswith(EVALUATED)
        }
        return weights | averaged

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
    checksums = {path.name: _checksum(path) for path in folder.iterdir()}
    (folder / CHECKSUM_FILE).write_text(json.dumps(checksums), encoding="ascii")
    for path in folder.iterdir():
        sync(path)


def find_checkpoint(checkpoints: Checkpoints, spec: Spec, reporter: Reporter) -> Path | None:
    """Return the newest intact checkpoint, with a warning about damaged ones; None if there is none yet.

    Raises:
        CheckpointError: All are damaged.
        BadSpecError: The settings are not those that the checkpoint was trained with.
    """
    latest, found = checkpoints.latest(), checkpoints.newest_first()
    if latest is None:
        if found:
            raise CheckpointError(
                ngettext(
                    "The only checkpoint of this training is damaged: its files are not those that were written.",
                    "All {n} checkpoints of this training are damaged: their files are not those that were written.",
                    len(found),
                ),
                _("Check the disk, and start the training again as a new job."),
            )
        if (begun := checkpoints.begun_settings()) is not None:
            _check_unchanged(begun, spec)
        return None
    state = continued(checkpoints.load_state(latest), spec)
    for damaged in found[: found.index(latest)]:
        message = _(
            "The checkpoint {name} is damaged: its files are not those that were written. The training continues "
            "from epoch {epoch}, step {step}; what came after is trained again.",
            name=damaged.name,
            epoch=state.epoch,
            step=state.step,
        )
        reporter.emit(Warned, kind="damaged_checkpoint", message=message)
    _check_unchanged(state.spec, spec)
    return latest


def continued(state: TrainingState, spec: Spec) -> TrainingState:
    """Return the state from which a run with this spec goes on: its own, unless the job has ended and was extended."""
    settings = spec.model_dump(mode="json")
    if not (state.is_over and state.curve and changed_settings(state.spec, settings)):
        return state
    trained = state.curve[-1].epoch
    more = spec.training.epochs - trained
    if more < 1 or changed_settings(_extended_settings(state, more), settings):
        return state
    return state.model_copy(
        update={"spec": settings, "is_over": False, "is_stopped_early": False, "seconds_before": state.seconds}
    )


def _extended_settings(state: TrainingState, more: int) -> dict[str, Any]:
    return extended(make_spec(state.spec), trained=state.curve[-1].epoch, epochs=more).model_dump(mode="json")


def _check_unchanged(begun: Mapping[str, Any], spec: Spec) -> None:
    """Raise BadSpecError if the settings are not those that the training began with."""
    if changes := changed_settings(begun, spec.model_dump(mode="json")):
        raise BadSpecError(
            _("The settings in spec.json changed after the training began: {changes}.", changes="; ".join(changes)),
            _(
                "Change them back. For more epochs use `python -m trainer extend JOB_DIR --epochs N`, for other "
                "settings a new job: `python -m trainer new`, which also starts `--from` a finished one."
            ),
        )


def finished_state(job_dir: Path) -> TrainingState:
    """Return the state of a job that has trained all of its epochs, or was stopped early.

    Raises:
        CheckpointError: It has not, or its checkpoints are gone.
    """
    checkpoints = Checkpoints(job_dir)
    latest = checkpoints.latest()
    if latest is None:
        raise CheckpointError(
            _("{job} has no checkpoint that can be read.", job=job_dir),
            _("Train it with `python -m trainer run JOB_DIR`; checkpoints that were deleted cannot be made again."),
        )
    state = checkpoints.load_state(latest)
    if not state.is_over:
        raise CheckpointError(
            _("{job} is still in epoch {epoch}.", job=job_dir, epoch=state.epoch),
            _("Run it to its end, or end it now with `python -m trainer run JOB_DIR --finish`."),
        )
    return state


def save_start(weights: Mapping[str, Tensor], job_dir: Path) -> str:
    """Write the weights that a new job starts from into its folder; return their SHA-256."""
    job_dir.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), job_dir / START_FILE)
    with (job_dir / START_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_start(job_dir: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights that `save_start` wrote.

    Raises:
        CheckpointError: They are missing, or others.
    """
    path = job_dir / START_FILE
    try:
        with path.open("rb") as file:
            is_same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        is_same = False
    if not is_same:
        raise CheckpointError(
            _("The weights that this job starts from ({path}) are missing or damaged.", path=path),
            _("Make the job again with `python -m trainer new --from JOB_DIR`."),
        )
    return load_file(path)


def by_module(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Turn the `module:name` keys of a checkpoint into one dict per module."""
    modules: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in flat.items():
        module, _separator, name = full_name.partition(":")
        modules.setdefault(module, {})[name] = tensor
    return modules


def is_intact(checkpoint: Path) -> bool:
    """True if the files of a checkpoint are those that were written."""
    try:
        checksums: dict[str, str] = json.loads((checkpoint / CHECKSUM_FILE).read_bytes())
        return set(checksums) == {STATE_FILE, OPTIMIZER_FILE, WEIGHTS_FILE} and all(
            _checksum(checkpoint / name) == checksum for name, checksum in checksums.items()
        )
    except (OSError, ValueError, TypeError):
        return False


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        _(
            "The checkpoint {name} cannot be read ({error}).",
            name=path.name,
            error=first_line(error),
        ),
        _("Run the job again; if it says the same, start it as a new job."),
    )
