"""`python -m trainer run`: trains a job."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.quiet import quieten_libraries
from trainer.commands.refusing import refuse
from trainer.protocol.events import EXIT_BUSY, EXIT_FAILED, EXIT_FENCED


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.add_argument("--finish", action="store_true", help="train no further: test and export the best checkpoint")
    # What whoever runs a queue says; a person needs none of it.
    parser.add_argument(
        "--attempt", type=_count, default=0, metavar="N", help="stop as soon as attempt.json says other"
    )
    parser.add_argument("--micro-batch", type=_positive, metavar="N", help="at most N pictures in memory at once")
    parser.add_argument("--processes", type=_positive, metavar="N", help="refuse to train where there are not N of us")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train, told on stderr; the exit status tells the last word."""
    from trainer.console import Console
    from trainer.errors import FencedError, JobFolderBusyError, is_disk_full

    if not options.job_dir.is_dir():
        return refuse(f"There is no job folder {options.job_dir}. Make one with `python -m trainer new`.")
    try:
        quieten_libraries()
        from trainer.training.run import run as train
        from trainer.training.start import Start

        start = Start(
            is_finishing=options.finish,
            attempt=options.attempt,
            micro_batch=options.micro_batch,
            processes=options.processes,
        )
        return train(options.job_dir, start, listener=Console())
    except (JobFolderBusyError, FencedError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FENCED if isinstance(error, FencedError) else EXIT_BUSY
    except OSError as error:
        if not is_disk_full(error):
            raise
        # Not even the first word can be written.
        sys.stderr.write(f"The disk of {options.job_dir} is full. Free some space, and run it again.\n")
        return EXIT_FAILED


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
