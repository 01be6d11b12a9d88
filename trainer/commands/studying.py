"""What `kfold` and `compare` have in common: where the runs of a study go, what is shown of them, and how it ends."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

from trainer.commands.refusing import refuse
from trainer.console import describe
from trainer.errors import JobFolderBusyError, TrainerError
from trainer.protocol.events import EXIT_BUSY, EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, Event, Exported
from trainer.protocol.spec import SpecError
from trainer.report.study import MARKDOWN_NAME
from trainer.studies.children import Children, End, Places
from trainer.studies.results import MakeChildren, StudyResult
from trainer.studies.state import Study
from trainer.training.stop import StopRequest

_STATUS = {End.FINISHED: EXIT_FINISHED, End.REACHED: EXIT_FINISHED, End.FAILED: EXIT_FAILED, End.HALTED: EXIT_STOPPED}


def run_study(options: argparse.Namespace, study: Callable[[MakeChildren], StudyResult]) -> int:
    """Run a study until it ends or is stopped; its verdict goes to stdout, and the exit status is as of `run`."""
    devices = _devices()
    places = Places(parallel=options.parallel or len(devices) or 1, devices=devices)
    hours: float | None = getattr(options, "budget_hours", None)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    with StopRequest() as stop:

        def must_halt() -> bool:
            return stop.is_set or (deadline is not None and time.monotonic() > deadline)

        def make_children(study: Study) -> Children:
            return Children(
                places=places,
                must_halt=must_halt,
                devices=study.state.devices,
                remember_device=lambda child, device: study.remember(devices={**study.state.devices, child: device}),
                listener=_say,
            )

        try:
            result = study(make_children)
        except JobFolderBusyError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_BUSY
        except (TrainerError, SpecError) as error:
            return refuse(str(error))
    for sentence in result.page.verdict:
        sys.stdout.write(f"{sentence}\n")
    if result.page.command:
        sys.stdout.write(f"Its test and export: {result.page.command}\n")
    sys.stdout.write(f"{options.job_dir / MARKDOWN_NAME}\n")
    return _STATUS[result.end]


def _say(child: str, event: Event) -> None:
    """One line for what is worth one; the export of a run that is only measured is not."""
    line = None if isinstance(event, Exported) else describe(event)
    if line is not None:
        sys.stderr.write(f"{child}: {line}\n")


def _devices() -> tuple[str, ...]:
    """The GPUs that we may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return ()
    # Asked of the library that the runs use, and in a process of its own: ours would hold its memory for hours.
    code = "import torch; print(torch.cuda.device_count())"
    number = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    names = visible.split(",") if visible else [str(place) for place in range(number)]
    return tuple(name.strip() for name in names[:number])
