"""Entry point of a run: lock the job folder and handle stop signals before importing torch."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from trainer.console import Listener, ignore_event
from trainer.protocol.events import EXIT_FAILED, Failed, FailureKind, Phase, PhaseBegan
from trainer.protocol.run_options import JobKind, RunOptions
from trainer.protocol.text import _
from trainer.reporter import Reporter

if TYPE_CHECKING:
    from trainer.tasks.base_sampler import BaseSampler

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Variables by which the person who starts the trainer chooses how OpenMP threads wait.
_OPENMP_SETTINGS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
#: How often, and for how many seconds each, the machine is looked at; and what others may use of one core then.
_LOOKS, _LOOK_S, _MAX_BUSY_PERCENT = 3, 0.1, 30.0


@dataclass
class KeptBase:
    """The base of the newest sampling job of this process, for a next one with the same base."""

    sampler: BaseSampler | None = None


def run(options: RunOptions, *, listener: Listener = ignore_event, kept: KeptBase | None = None) -> int:
    """Do a job, from where an earlier run left it, and return the exit status.

    If `accelerate launch` starts several processes, they share a training; rank 0 writes the events.

    Args:
        options: Which job, and how.
        listener: Called with each event.
        kept: The base of the sampling job before; None: this is the only one.

    Raises:
        JobFolderBusyError: Another trainer runs this job.
        FencedError: A later attempt took the job over.
    """
    choose_openmp_spin()
    is_main = os.environ.get("RANK", "0") == "0"
    with (
        StopRequest() as stop,
        Reporter(options.job_dir, listener, is_main=is_main, attempt=options.attempt) as reporter,
    ):
        reporter.emit(PhaseBegan, phase=Phase.LOADING)
        try:
            # Imports take seconds, so they come after the lock and the signal handlers.
            with without_collection():
                work = _import_work(options.kind, kept or KeptBase())
        except ImportError as error:
            log.exception("importing the libraries failed")
            reporter.emit(
                Failed,
                kind=FailureKind.BUG,
                message=_("The trainer's libraries cannot be imported ({error}).", error=error),
                hint=_("Install them with `make setup`, or pip install 'darkroom[trainer]'."),
            )
            return EXIT_FAILED
        return work(reporter, stop, options)


def _import_work(kind: JobKind, kept: KeptBase) -> Callable[[Reporter, StopRequest, RunOptions], int]:
    if kind is JobKind.TRAIN:
        from trainer.training.recipe import train

        return train
    from trainer.training.sample_recipe import sample

    return partial(sample, kept=kept)


@contextmanager
def without_collection() -> Iterator[None]:
    """Look for no garbage while libraries are imported or a model is loaded, since all of it stays.

    The collector would visit half a million objects again and again: a quarter of the time of the imports. What the
    first import of torch leaves is never visited later, either.
    """
    was_enabled, is_first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()


def choose_openmp_spin() -> None:
    """Choose whether idle OpenMP threads spin or sleep, by what else this machine does at the moment.

    Call this before torch is imported, which reads the setting once. Spinning threads, the default, are a fifth faster
    on a quiet machine; beside another process they take its cores, and wait for threads that have none. bench/train.py
    on two cores, images/s alone and beside one busy process: spinning 46 and 10, sleeping early 43 and 18.

    The number of threads stays torch's own: sums would be rounded otherwise, and a resumed training must be equal to
    the bit.
    """
    is_chosen = bool(_OPENMP_SETTINGS & set(os.environ)) or os.environ.get("OMP_NUM_THREADS") == "1"
    if is_chosen or "torch" in sys.modules or _is_quiet():
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"


def _is_quiet() -> bool:
    """True if the other processes leave the cores idle at least once in a moment: a short burst is not other work."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    for _look in range(_LOOKS):
        busy = psutil.cpu_percent(_LOOK_S, percpu=True)
        if sum(busy[core] for core in cores if core < len(busy)) <= _MAX_BUSY_PERCENT:
            return True
    return False


class StopRequestedError(Exception):
    """Raised by `StopRequest.check`, at a point where work can stop without loss."""


class StopRequest:
    """Records SIGTERM and Ctrl-C, for code that checks it where stopping is safe; a context manager."""

    def __init__(self) -> None:
        self.is_set = False
        #: Several processes share the training. They stop only once all know of the signal (`is_agreed`), or some
        #: would wait forever for one that has stopped.
        self.is_shared = False
        self.is_agreed = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _STOP_SIGNALS:
            self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises: StopRequestedError."""
        if self.is_agreed if self.is_shared else self.is_set:
            raise StopRequestedError

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            # A second Ctrl-C: do not wait for a checkpoint.
            raise KeyboardInterrupt
        self.is_set = True
