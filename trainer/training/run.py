"""One run of a job folder: hold it, hear stop requests, and only then load what takes seconds to load."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from trainer.console import Listener, say_nothing
from trainer.protocol.events import EXIT_FAILED, Failed, FailureKind, Phase, PhaseBegan
from trainer.reporter import Reporter
from trainer.training.start import Start
from trainer.training.stop import StopRequest

log = logging.getLogger(__name__)

_AS_THE_SPEC_SAYS = Start()


def run(job_dir: Path, start: Start = _AS_THE_SPEC_SAYS, *, listener: Listener = say_nothing) -> int:
    """Train the job of a folder, from its last checkpoint if it has one; the exit status tells the last word.

    Started several times by `accelerate launch`, the processes share the training and the main one speaks.

    Raises:
        JobFolderBusyError: another trainer runs this job.
        FencedError: a later attempt took the job over.
    """
    calm_threads()
    is_main = os.environ.get("RANK", "0") == "0"
    with (
        StopRequest() as stop,
        Reporter(job_dir, listener, is_main=is_main, attempt=start.attempt) as reporter,
    ):
        reporter.say(PhaseBegan, phase=Phase.LOADING)
        try:
            # torch and diffusers take seconds: by now the folder is held and SIGTERM is no sudden death.
            from trainer.training.recipe import train
        except ImportError as error:
            log.exception("the libraries cannot be imported")
            reporter.say(
                Failed,
                kind=FailureKind.BUG,
                message=f"The trainer's libraries cannot be imported ({error}).",
                hint="Install them with `make setup`, or pip install 'darkroom[trainer]'.",
            )
            return EXIT_FAILED
        return train(reporter, stop, start)


def calm_threads() -> None:
    """Let threads that have nothing to do sleep early; call it before torch is imported, which reads it then.

    By default OpenMP's threads spin for milliseconds at each barrier. bench/train.py on two cores, pictures/s alone and
    beside one busy process: default 46 and 10, this 43 and 18, OMP_WAIT_POLICY=PASSIVE 35 and 26.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
