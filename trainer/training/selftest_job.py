"""One job of the self-test, in a process of its own: a few steps are measured, or their memory is predicted."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.dataset.memory import allocated_bytes, release_memory
from trainer.dataset.split.mixing import read_mixture
from trainer.device import free_memory_bytes, is_out_of_memory, peak_memory_bytes
from trainer.errors import TrainerError, first_line
from trainer.exchange.job_dir import write_spec
from trainer.models.base import TINY
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import Spec, SpecError, make_spec, merge
from trainer.protocol.text import _, size
from trainer.protocol.training_settings import OptimizerKind
from trainer.reporter import Reporter
from trainer.tasks import make_task
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.memory_prediction import StepSettings
from trainer.training.recipe import prepare_session
from trainer.training.run import StopRequest
from trainer.training.session import Session
from trainer.training.step import take_step

Settings: TypeAlias = Mapping[str, Any]

#: The datasets of the self-test, in its folder; the second one has one image.
DATASET, ONE_IMAGE = "dataset", "one-image"
#: Steps whose update is compared; further steps whose time is taken.
_COMPARED_STEPS, _TIMED_STEPS = 2, 3
#: A loss scale that no step on the tiny base overflows.
_LOSS_SCALE = 1024.0
#: Seconds between two looks at the memory in use.
_SAMPLING_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The settings of a job, and the kernels that torch may use."""

    base: str = TINY
    settings: Settings = field(default_factory=dict)
    #: The only implementation of attention that is allowed (`SDPBackend`); empty: torch chooses.
    attention: str = ""
    #: Not channels last.
    is_contiguous: bool = False
    #: Of true size: trained on one image, for as few steps as suffice.
    is_large: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One job of a few steps."""

    step_s: float
    peak_bytes: int
    #: Of it in use, on a CPU; None: not known.
    used_bytes: int | None = None
    #: Of the device, before the job.
    free_bytes: int
    #: Of all trained weights, by the compared steps.
    update: NDArray[np.float32]


class UnavailableError(Exception):
    """This machine has no means for the variant, or not the memory."""


class FailedError(Exception):
    """A job failed; the message says why."""


def answer_with(
    connection: Connection, work: Callable[[Variant, Path, Path], object], variant: Variant, folder: Path, job_dir: Path
) -> None:
    """Do the work and send its result, or the error."""
    answer: object
    try:
        answer = work(variant, folder, job_dir)
    except (UnavailableError, FailedError) as error:
        answer = error
    except Exception as error:  # noqa: BLE001 - any failure is a result
        if is_out_of_memory(error):
            answer = UnavailableError(_("does not fit into the memory"))
        elif "No viable backend" in str(error) or "No available kernel" in str(error):
            answer = UnavailableError(_("torch has none for this device"))
        else:
            is_ours = isinstance(error, TrainerError | SpecError)
            answer = FailedError(str(error) if is_ours else first_line(error))
    connection.send(answer)


def predict(variant: Variant, folder: Path, job_dir: Path) -> int:
    """Return the memory in bytes that a job is predicted to take, with what this process takes as it is.

    Raises:
        UnavailableError: It is more than is free.
        TrainerError, RuntimeError: It cannot be trained.
    """
    spec = _spec_of(variant, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = make_task(spec, read_mixture(spec), device)
    trained = sum(parameter.nbytes for _name, parameter in task.trained.named_parameters())
    libraries = 0 if device.type == "cuda" else psutil.Process().memory_info().rss - trained
    settings = StepSettings(precision=spec.training.precision, resolution=task.resolution)
    need = task.predict_memory(settings, with_samples=False)
    if need is None:
        raise FailedError(_("its memory cannot be predicted"))
    free = free_memory_bytes(device)
    if need.total > free:
        raise UnavailableError(
            _("it needs about {needed} of memory, and {free} are free", needed=size(need.total), free=size(free))
        )
    return libraries + need.total


def measure(variant: Variant, folder: Path, job_dir: Path) -> Measured:
    """Train a job for a few steps.

    Raises:
        TrainerError, RuntimeError: It cannot be trained.
    """
    write_spec(job_dir, _spec_of(variant, folder))
    allowed = sdpa_kernel([getattr(SDPBackend, variant.attention)]) if variant.attention else nullcontext()
    with StopRequest() as stop, Reporter(job_dir) as reporter, allowed:
        free = free_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        if variant.is_contiguous:
            assert isinstance(session.task, DiffusionTask)
            session.task.base.denoiser.to(memory_format=torch.contiguous_format)
        if (scaler := session.accelerator.scaler) is not None:
            # It starts so high that the first steps of a job are skipped, which is no fault.
            scaler.load_state_dict({**scaler.state_dict(), "scale": _LOSS_SCALE})
        return _measure_steps(session, free, *_step_counts(variant))


def _spec_of(variant: Variant, folder: Path) -> Spec:
    defaults = {
        "training": {
            "batch_size": 2,
            "micro_batch_size": 2,
            "optimizer": OptimizerKind.SGD,
            "learning_rate": 0.5,
            "weight_decay": 0.0,
            "trigger": "xyz",
        }
    }
    fixed = {
        "base": {"source": variant.base},
        "dataset": str(folder / (ONE_IMAGE if variant.is_large else DATASET)),
        "name": "selftest",
        "split": {"kind": SplitKind.ALL},
        "training": {"repeats": sum(_step_counts(variant))},
    }
    return make_spec(merge(defaults, variant.settings, fixed))


def _step_counts(variant: Variant) -> tuple[int, int]:
    return (1, 1) if variant.is_large else (_COMPARED_STEPS, _TIMED_STEPS)


def _measure_steps(session: Session, free_bytes: int, compared: int, timed: int) -> Measured:
    steps = session.epoch_views(1)
    before = _weights(session)
    session.task.train_mode(True)
    with MemoryInUse(session.task.device) as memory:
        for number in range(compared):
            take_step(session, steps[number], number)
        update = _weights(session) - before
        seconds = []
        for number in range(compared, compared + timed):
            began = time.perf_counter()
            # Reading the loss waits for the device.
            take_step(session, steps[number], number).item()
            seconds.append(time.perf_counter() - began)
    return Measured(
        step_s=statistics.median(seconds),
        peak_bytes=peak_memory_bytes(session.task.device),
        used_bytes=memory.peak_bytes,
        free_bytes=free_bytes,
        update=update,
    )


class MemoryInUse:
    """The most memory in use on a CPU within its context, without freed memory that the C library keeps; sampled."""

    def __init__(self, device: torch.device) -> None:
        #: In bytes, with libraries and files; None on a GPU, and where the C library cannot be asked.
        self.peak_bytes: int | None = None
        self._is_known = device.type == "cpu" and allocated_bytes() is not None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        if self._is_known:
            # Then resident memory is what is in use, by the C library and by all else.
            release_memory()
            self._others = psutil.Process().memory_info().rss - (allocated_bytes() or 0)
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        if self._is_known:
            self._thread.join()

    def _sample(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopped.wait(_SAMPLING_S)
            self.peak_bytes = max(self.peak_bytes or 0, self._others + (allocated_bytes() or 0))


def _weights(session: Session) -> NDArray[np.float32]:
    """Return all trained weights as one vector."""
    parameters = [parameter for _name, parameter in session.task.trained.named_parameters()]
    flat: NDArray[np.float32] = torch.cat([each.detach().float().flatten().cpu() for each in parameters]).numpy().copy()
    return flat
