"""The trainer's command line.

python -m trainer prepare pictures.zip --out DATASET_DIR
python -m trainer caption DATASET_DIR --model MODEL
python -m trainer preview DATASET_DIR --preset photo --out SHEET.png
python -m trainer new --dataset DATASET_DIR --base tiny --preset lora --set training.epochs=4 --out JOB_DIR
python -m trainer run JOB_DIR
python -m trainer report JOB_DIR
python -m trainer wait < ORDER
python -m trainer devices
python -m trainer kfold JOB_DIR --folds 5
python -m trainer compare JOB_DIR --vary training.learning_rate=1e-4,3e-4,1e-3
python -m trainer study JOB_DIR
python -m trainer ship URL --job 7 --attempt 1 -- python -m trainer run JOB_DIR --attempt=1
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer.commands import caption, compare, devices, kfold, new, prepare, preview, report, run, ship, study, wait
from trainer.protocol.events import EXIT_REFUSED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status tells how it ended (`trainer/protocol/events.py`)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command: int = options.command(options)
    return command


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trainer", description="Prepare pictures and fine-tune Stable Diffusion on them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare.add_options(commands.add_parser("prepare", help="make a dataset folder from archives, pictures, folders"))
    caption.add_options(commands.add_parser("caption", help="write captions by a local model where there are none"))
    preview.add_options(commands.add_parser("preview", help="draw what augmentation will make of a dataset"))
    new.add_options(commands.add_parser("new", help="write a job folder with its spec.json"))
    run.add_options(commands.add_parser("run", help="train a job, or go on with it from its last checkpoint"))
    wait.add_options(commands.add_parser("wait", help="load everything, then train the job that standard input names"))
    ship.add_options(commands.add_parser("ship", help="train a job whose folder lies in an object store"))
    devices.add_options(commands.add_parser("devices", help="print which GPUs a training could use, as JSON"))
    report.add_options(commands.add_parser("report", help="write the page of a job again: report.html in its folder"))
    kfold.add_options(commands.add_parser("kfold", help="cross-validate a job, then train on all of its pictures"))
    compare.add_options(commands.add_parser("compare", help="train a job with several settings and tell which is best"))
    study.add_options(commands.add_parser("study", help="say what a study needs next, for a queue that runs its jobs"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
