"""What can go wrong in a trainer, as sentences: what happened and why, and a hint what to do.

TrainerError
├── UsageError            the call cannot be understood (command line)
├── BadSpecError          the settings cannot be trained with
├── DatasetError          nothing in the sources can be trained on, or the dataset folder is damaged
├── DecodersError         pictures cannot be decoded on this machine at all
├── MissingModelError     the base model is not there, is gated, or is of a kind that we do not train
├── MissingLibraryError   a setting needs a library (or a device) that is not here
├── OutOfMemoryError      the device is too small for the settings
├── DeviceLostError       the GPU, or another process of the training, is gone or broken
├── DivergedError         the loss is no longer a number
├── DiskFullError         no space left for checkpoints or samples
├── CheckpointError       a checkpoint cannot be read
├── ExportError           an exported file does not do what the trained model does
├── JobFolderBusyError    another trainer runs this job
└── FencedError           a later attempt took this job over
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
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


class MissingLibraryError(TrainerError):
    kind = FailureKind.MISSING_LIBRARY


#: What loaders say where there is no network.
_OFFLINE = ("offline", "couldn't connect", "connecterror", "connectionerror", "connection error")


def hub_problem(source: str, error: Exception) -> MissingModelError | None:
    """What a person is told of a model that the hub keeps from us; None where something else is wrong with it.

    The loaders of diffusers and transformers raise anything from KeyError to httpx errors, and hide a network error
    behind an OSError.
    """
    text = f"{type(error).__name__}: {error}".lower()
    if "gated" in text or "401" in text or "403" in text:
        return MissingModelError(
            f"{source} is gated or private.", "Accept its licence on the hub and log in with `hf auth login`."
        )
    if "LocalEntryNotFound" in " ".join(type(each).__name__ for each in _causes(error)) or any(
        word in text for word in _OFFLINE
    ):
        return MissingModelError(
            f"{source} is not on this machine and the hub cannot be reached.",
            "Check the network, or download it once and give its folder.",
        )
    return None


def first_line(error: Exception) -> str:
    """The beginning of what an exception says, for a sentence."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception comes of a full disk (or quota); torch and safetensors hide that in errors of their own."""
    return any(
        (isinstance(each, OSError) and each.errno in {errno.ENOSPC, errno.EDQUOT}) or "os error 28" in str(each)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class OutOfMemoryError(TrainerError):
    kind = FailureKind.OUT_OF_MEMORY


class DeviceLostError(TrainerError):
    kind = FailureKind.DEVICE_LOST


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


class FencedError(TrainerError):
    """Exits with its own status, and says nothing into the events of the attempt that took over."""

    def __init__(self, job_dir: object, *, ours: int, valid: int) -> None:
        super().__init__(
            f"Attempt {ours} at {job_dir} is over: the job belongs to attempt {valid} now.",
            "Nothing more was written.",
        )
