"""`python -m trainer study`: what a study needs next, for a queue that runs its children as jobs of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trainer.commands.refusing import refuse
from trainer.protocol.events import EXIT_BUSY, EXIT_FINISHED
from trainer.protocol.spec import SpecError, read_spec
from trainer.protocol.study import StudyOrderError, StudyStep, read_study_ended, read_study_order


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `study` takes."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR", help="holds spec.json and study_order.json")
    parser.add_argument(
        "--check", action="store_true", help="write nothing there: say what would run first, or why the study cannot be"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Go one step on; the step goes to stdout as one line (`trainer/protocol/study.py`)."""
    from trainer.errors import JobFolderBusyError, TrainerError

    try:
        step = _check(options.job_dir) if options.check else _advance(options.job_dir)
    except JobFolderBusyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BUSY
    except (StudyOrderError, SpecError, TrainerError) as error:
        return refuse(str(error))
    sys.stdout.write(step.model_dump_json() + "\n")
    return EXIT_FINISHED


def _advance(job_dir: Path) -> StudyStep:
    from trainer.studies.steps import advance

    return advance(job_dir, read_spec(job_dir), read_study_order(job_dir), read_study_ended(job_dir))


def _check(job_dir: Path) -> StudyStep:
    """The first step, in a folder that is thrown away: nothing that it would refuse can be forgotten here."""
    from trainer.studies.steps import advance

    with TemporaryDirectory() as scratch:
        return advance(Path(scratch), read_spec(job_dir), read_study_order(job_dir))
