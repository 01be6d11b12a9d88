"""`python -m trainer kfold`, `compare` and `study`: studies that run here, and one step of a study for a queue."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from trainer.commands.terminal import refuse
from trainer.exchange.job_dir import read_spec
from trainer.exchange.study_dir import read_study_ended, read_study_request
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, Event, Exported
from trainer.protocol.study import (
    CompareRequest,
    KfoldRequest,
    make_study_request,
)
from trainer.protocol.text import _


def add_kfold(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kfold`."""
    _add_study_arguments(parser)
    folds = KfoldRequest().folds
    parser.add_argument("--folds", type=int, default=folds, metavar="K", help=f"default: {folds}")
    parser.set_defaults(command=lambda options: _run_study(options, {"kind": "kfold", "folds": options.folds}))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    _add_study_arguments(parser)
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="a setting and the values to try; several make a grid",
    )
    parser.add_argument("--all", action="store_true", help="end no candidate early")
    parser.add_argument(
        "--keep-one-in", type=int, default=2, metavar="N", help="keep one in N candidates at each rung; default: 2"
    )
    parser.add_argument(
        "--first-look", type=int, metavar="EPOCH", help="end no candidate before it; default: a fifth of the epochs"
    )
    parser.add_argument("--budget-hours", type=float, metavar="H", help="stop after H hours and report what is known")
    parser.add_argument("--finish", action="store_true", help="test and export the winner too")
    parser.set_defaults(command=_compare)


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `study`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR", help="holds spec.json and study_request.json")
    parser.set_defaults(command=_study)


def add_compare_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare-jobs`."""
    parser.add_argument(
        "jobs",
        type=_labeled,
        nargs="+",
        metavar="LABEL=JOB_DIR",
        help="jobs that were trained; without a label by the name of its folder",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the chart and the samples")
    parser.set_defaults(command=_compare_jobs)


def _labeled(text: str) -> tuple[str, Path]:
    label, equals, path = text.rpartition("=")
    return (label, Path(path)) if equals else (Path(text).name, Path(text))


def _compare_jobs(options: argparse.Namespace) -> int:
    """Lay jobs beside each other; print what was found as one line of JSON (`trainer/protocol/job_comparison.py`)."""
    from trainer.studies.job_comparison_page import compare_jobs

    jobs: dict[str, Path] = dict(options.jobs)
    if len(jobs) < 2:
        return refuse(_("Name at least two different jobs."))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        comparison = compare_jobs(jobs, options.out)
    except (OSError, ValueError) as error:
        return refuse(str(error))
    sys.stdout.write(comparison.model_dump_json() + "\n")
    return EXIT_FINISHED


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR", help="a folder written by `trainer new`")
    parser.add_argument(
        "--parallel", type=_positive, metavar="N", help="runs at once; default: the number of GPUs, 1 without a GPU"
    )


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value


def _compare(options: argparse.Namespace) -> int:
    content = {
        "kind": "compare",
        "vary": options.vary,
        "keep_one_in": None if options.all else options.keep_one_in,
        "first_look": options.first_look,
        "finishes": options.finish,
    }
    return _run_study(options, content)


def _run_study(options: argparse.Namespace, content: dict[str, object]) -> int:
    """Run a study until it ends or is stopped; print its verdict and where the results are."""
    from trainer.studies.child_runner import ChildRunner, DevicePool, run_study
    from trainer.studies.planner import planner_for
    from trainer.training.run import StopRequest

    hours: float | None = getattr(options, "budget_hours", None)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    request = make_study_request(content)
    planner = planner_for(read_spec(options.job_dir), request)
    devices = _devices()
    with StopRequest() as stop:
        runner = ChildRunner(
            pool=DevicePool(parallel=options.parallel or len(devices) or 1, devices=devices),
            must_stop=lambda: stop.is_set or (deadline is not None and time.monotonic() > deadline),
            listener=_print_event,
        )
        step, was_stopped = run_study(options.job_dir, planner, runner)
    for sentence in step.verdict:
        sys.stdout.write(f"{sentence}\n")
    status = EXIT_STOPPED if was_stopped else EXIT_FAILED if step.has_failed else EXIT_FINISHED
    if isinstance(request, CompareRequest) and not request.finishes and status == EXIT_FINISHED:
        command = f"python -m trainer run {options.job_dir / 'winner'}"
        sys.stdout.write(_("To test and export the winner: {command}", command=command) + "\n")
    sys.stdout.write(f"{options.job_dir / step.report}\n")
    return status


def _print_event(child: str, event: Event) -> None:
    """Print one line for the events that deserve one; not for the export of a run that is only measured."""
    from trainer.console import describe

    line = None if isinstance(event, Exported) else describe(event)
    if line is not None:
        sys.stderr.write(f"{child}: {line}\n")


def _devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return ()
    # Ask torch in a process of its own: here it would hold GPU memory for hours.
    code = "import torch; print(torch.cuda.device_count())"
    number = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    names = visible.split(",") if visible else [str(index) for index in range(number)]
    return tuple(name.strip() for name in names[:number])


def _study(options: argparse.Namespace) -> int:
    """Take a study one step further and print the step as one line of JSON (`trainer/protocol/study.py`)."""
    from trainer.studies.planner import advance

    spec, request = read_spec(options.job_dir), read_study_request(options.job_dir)
    step = advance(options.job_dir, spec, request, read_study_ended(options.job_dir))
    sys.stdout.write(step.model_dump_json() + "\n")
    return EXIT_FINISHED
