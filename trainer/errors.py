"""The errors of the trainer; each has a message (what happened and why) and a hint (what to do).

TrainerError
├── UsageError            invalid arguments on the command line
├── BadSpecError          settings that cannot be trained with
├── DatasetError          the sources hold nothing to train on, or the dataset folder is damaged
├── DecodersError         no image can be decoded on this machine
├── MissingModelError     the base model is missing, gated, or of an unsupported kind
├── MissingLibraryError   a setting needs a library (or a device) that this machine lacks
├── OutOfMemoryError      the device is too small for the settings
├── DeviceLostError       the GPU, or another process of the training, is lost or broken
├── DivergedError         the loss is not finite
├── DiskFullError         no space left for checkpoints or samples
├── CheckpointError       a checkpoint cannot be read
├── ExportError           an exported file does not match the trained model
├── JobFolderBusyError    another trainer runs this job
└── FencedError           a later attempt took this job over
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import ClassVar

from trainer.protocol.events import FailureKind
from trainer.protocol.text import _


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


#: Words in the errors of model loaders without a network.
_OFFLINE = ("offline", "couldn't connect", "connecterror", "connectionerror", "connection error")


def hub_problem(source: str, error: Exception) -> MissingModelError | None:
    """Return an error if the hub refused a model, cannot be reached, or has unsafe weights only; None for others.

    The loaders of diffusers and transformers raise anything from KeyError to httpx errors, and wrap network errors in
    OSError.
    """
    text = f"{type(error).__name__}: {error}".lower()
    if "gated" in text or "401" in text or "403" in text:
        return MissingModelError(
            _("{source} is gated or private.", source=source),
            _("Accept its license on Hugging Face and log in with `hf auth login`."),
        )
    if "LocalEntryNotFound" in " ".join(type(each).__name__ for each in _causes(error)) or any(
        word in text for word in _OFFLINE
    ):
        return MissingModelError(
            _("{source} is not on this machine, and Hugging Face cannot be reached.", source=source),
            _("Check the network, or download the model once and use its folder."),
        )
    if "safetensors" in text and ("no file named" in text or "not appear to have" in text):
        return MissingModelError(
            _("{source} has no weights in .safetensors files; other formats can run code when opened.", source=source),
            _("Choose a model that has them, or save it again with safe_serialization=True."),
        )
    return None


def first_line(error: Exception) -> str:
    """Return the first line of an exception, shortened, to put into a sentence."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def is_disk_full(error: BaseException) -> bool:
    """Return True if an exception was caused by a full disk (or quota); torch and safetensors wrap the OSError."""
    return any(
        (isinstance(each, OSError) and each.errno in {errno.ENOSPC, errno.EDQUOT}) or "os error 28" in str(each)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
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
    """Another trainer runs this job; it owns the event file, so only the exit status says this."""

    def __init__(self, job_dir: object) -> None:
        super().__init__(
            _("Another trainer is running in {job_dir}.", job_dir=job_dir), _("Wait for it, or stop it first.")
        )


class FencedError(TrainerError):
    """A later attempt took the job over; it owns the event file, so only the exit status says this."""

    def __init__(self, job_dir: object, *, ours: int, valid: int) -> None:
        super().__init__(
            _("Attempt {ours} of {job_dir} is superseded by attempt {valid}.", ours=ours, job_dir=job_dir, valid=valid),
            _("Nothing more was written."),
        )
