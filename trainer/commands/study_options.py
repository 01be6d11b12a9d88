"""What `kfold` and `compare` both take on the command line; loads nothing, for it is read by every command."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """The job folder, and how many runs at once."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR", help="a folder that `trainer new` wrote")
    parser.add_argument(
        "--parallel", type=_count, metavar="N", help="runs at once; the number of GPUs if left away, 1 without any"
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return value
