"""`python -m trainer kfold`: cross-validation of a job, and a final run on all of its pictures."""

from __future__ import annotations

import argparse

from trainer.commands.refusing import refuse
from trainer.commands.study_options import add_study_options
from trainer.protocol.settings import SplitChoice
from trainer.protocol.spec import SpecError, allowed_range, read_spec


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `kfold` takes."""
    add_study_options(parser)
    parser.add_argument("--folds", type=int, default=SplitChoice().folds, metavar="K", help="5 if left away")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the folds and the final run, or go on with them."""
    low, high = allowed_range("split.folds")
    if not low <= options.folds <= high:
        return refuse(f"--folds {options.folds} is outside {low:g} – {high:g}.")
    try:
        spec = read_spec(options.job_dir)
    except SpecError as error:
        return refuse(str(error))
    from trainer.commands.studying import run_study
    from trainer.studies.kfold import run_kfold

    return run_study(options, lambda make: run_kfold(options.job_dir, spec, options.folds, make))
