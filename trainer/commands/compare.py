"""`python -m trainer compare`: the same job with several settings, and which of them does best."""

from __future__ import annotations

import argparse

from trainer.commands.refusing import refuse
from trainer.commands.study_options import add_study_options
from trainer.errors import UsageError
from trainer.protocol.spec import SpecError, read_spec
from trainer.studies.halving import FIRST_EPOCH


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `compare` takes."""
    add_study_options(parser)
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="GROUP.NAME=VALUE,VALUE",
        help="a setting and the values to try; several make a grid",
    )
    parser.add_argument("--all", action="store_true", help="end nobody early")
    parser.add_argument(
        "--keep-one-in", type=int, default=2, metavar="N", help="of how many one goes on at each look; 2 if left away"
    )
    parser.add_argument(
        "--first-look", type=int, metavar="EPOCH", help="nobody is ended before it; a fifth of the epochs if left away"
    )
    parser.add_argument(
        "--budget-hours", type=float, metavar="H", help="stop after so many hours, and tell what is known"
    )
    parser.add_argument("--finish", action="store_true", help="test and export the winner too")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the candidates, or go on with them."""
    if options.keep_one_in < 2:
        return refuse("--keep-one-in must be at least 2; with --all nobody is ended.")
    if options.first_look is not None and options.first_look < FIRST_EPOCH:
        return refuse(
            f"--first-look must be at least {FIRST_EPOCH}: one epoch says more about chance than about merit."
        )
    from trainer.commands.studying import run_study
    from trainer.studies.compare import Halving, first_look, run_compare
    from trainer.studies.grid import candidates, parse_axis

    try:
        spec = read_spec(options.job_dir)
        found = candidates(spec, [parse_axis(text) for text in options.vary])
    except (SpecError, UsageError) as error:
        return refuse(str(error))
    halving = Halving(
        first_epoch=options.first_look or first_look(spec),
        keep_one_in=None if options.all else options.keep_one_in,
    )
    return run_study(
        options, lambda make: run_compare(options.job_dir, spec, found, halving, make, finishes=options.finish)
    )
