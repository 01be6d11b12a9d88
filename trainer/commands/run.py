"""`python -m trainer run`: trains a job."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.quiet import quieten_libraries
from trainer.commands.refusing import refuse
from trainer.protocol.events import EXIT_BUSY


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.add_argument("--finish", action="store_true", help="train no further: test and export the best checkpoint")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train, told on stderr; the exit status tells the last word."""
    from trainer.console import Console
    from trainer.errors import JobFolderBusyError

    if not options.job_dir.is_dir():
        return refuse(f"There is no job folder {options.job_dir}. Make one with `python -m trainer new`.")
    try:
        quieten_libraries()
        from trainer.training.run import run as train

        return train(options.job_dir, finish=options.finish, listener=Console())
    except JobFolderBusyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BUSY
