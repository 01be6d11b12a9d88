"""`python -m trainer report`: writes the page of a job again, one that is running or failed too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.refusing import refuse
from trainer.protocol.spec import SpecError, read_spec


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `report` takes."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write `report.html`; its path goes to stdout."""
    from trainer.report.run_pages import write_run_page
    from trainer.reporter import read_events

    try:
        spec = read_spec(options.job_dir)
    except SpecError as error:
        return refuse(str(error))
    try:
        events = read_events(options.job_dir)
    except ValueError:
        return refuse(f"{options.job_dir / 'events.jsonl'} is of another version, or damaged.")
    sys.stdout.write(f"{write_run_page(options.job_dir, spec, events)}\n")
    return 0
