"""What can go wrong in a trainer, as sentences: what happened and why, and a hint what to do.

TrainerError
├── UsageError            the call cannot be understood (command line)
├── BadSpecError          the settings cannot be trained with
├── DatasetError          nothing in the sources can be trained on, or the dataset folder is damaged
├── DecodersError         pictures cannot be decoded on this machine at all
├── MissingModelError     the base model is not there, is gated, or is of a kind that we do not train
├── OutOfMemoryError      the device is too small for the settings
├── DivergedError         the loss is no longer a number
├── DiskFullError         no space left for checkpoints or samples
├── CheckpointError       a checkpoint cannot be read
├── ExportError           an exported file does not do what the trained model does
└── JobFolderBusyError    another trainer runs this job
"""

from __future__ import annotations

from typing import ClassVar

from trainer.protocol.events import FailureKind


class TrainerError(Exception):
    """`message`: what happened and why; `hint`: what to do."""

    kind: ClassVar[FailureKind] = FailureKind.BUG

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(TrainerError):
    kind = FailureKind.BAD_SPEC


class BadSpecError(TrainerError):
    kind = FailureKind.BAD_SPEC


class DatasetError(TrainerError):
    kind = FailureKind.BAD_DATASET


class DecodersError(TrainerError):
    kind = FailureKind.BUG


class MissingModelError(TrainerError):
    kind = FailureKind.MISSING_MODEL


class OutOfMemoryError(TrainerError):
    kind = FailureKind.OUT_OF_MEMORY


class DivergedError(TrainerError):
    kind = FailureKind.DIVERGED


class DiskFullError(TrainerError):
    kind = FailureKind.DISK_FULL


class CheckpointError(TrainerError):
    kind = FailureKind.BAD_CHECKPOINT


class ExportError(TrainerError):
    kind = FailureKind.BAD_EXPORT


class JobFolderBusyError(TrainerError):
    """Exits with its own status, and says nothing into the events of the trainer that holds the folder."""

    def __init__(self, job_dir: object) -> None:
        super().__init__(f"Another trainer is running in {job_dir}.", "Wait for it, or stop it first.")
