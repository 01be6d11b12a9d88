"""The trainer's command line.

python -m trainer prepare images.zip --out DATASET_DIR
python -m trainer caption DATASET_DIR --model MODEL
python -m trainer fetch-dataset hf://OWNER/NAME --out FOLDER
python -m trainer extract-rows FOLDER
python -m trainer preview DATASET_DIR --preset photo --out SHEET.png
python -m trainer new --dataset DATASET_DIR --base tiny --preset lora --set epochs=4 --out JOB_DIR
python -m trainer new --explain
python -m trainer memory JOB_DIR
python -m trainer run JOB_DIR
python -m trainer sample --job JOB_DIR --epochs 4,8 --prompt "a photo of momo" --strengths 0.6,1
python -m trainer adapter FILE.safetensors
python -m trainer extend JOB_DIR --epochs 10
python -m trainer new --from JOB_DIR --set lr=3e-5 --out NEW_JOB_DIR
python -m trainer report JOB_DIR
python -m trainer publish JOB_DIR --repository OWNER/NAME
python -m trainer wait < RUN_OPTIONS
python -m trainer devices
python -m trainer selftest
python -m trainer kfold JOB_DIR --folds 5
python -m trainer compare JOB_DIR --vary lr=1e-4,3e-4,1e-3
python -m trainer study JOB_DIR
python -m trainer compare-jobs JOB_DIR JOB_DIR --out DIR
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer.commands import (
    data_commands,
    devices_command,
    job_processes,
    publish_command,
    sampling_commands,
    study_commands,
    training_commands,
)
from trainer.commands.terminal import refuse
from trainer.errors import JobFolderBusyError, TrainerError
from trainer.protocol.edits import EditsError
from trainer.protocol.events import EXIT_BUSY, EXIT_REFUSED
from trainer.protocol.spec import SpecError
from trainer.protocol.study import StudyRequestError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_REFUSED, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (`trainer/protocol/events.py`)."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        status: int = options.command(options)
    except JobFolderBusyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BUSY
    except (TrainerError, SpecError, EditsError, StudyRequestError) as error:
        return refuse(str(error))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trainer", description="Prepare images and fine-tune Stable Diffusion on them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add_arguments, help_text in (
        ("prepare", data_commands.add_prepare, "make a dataset folder from archives, images and folders"),
        ("caption", data_commands.add_caption, "write missing captions with a local model"),
        ("fetch-dataset", data_commands.add_fetch, "download a public dataset of the Hugging Face hub as files"),
        ("extract-rows", data_commands.add_extract, "write the images in a folder's Parquet and Arrow tables as files"),
        ("preview", data_commands.add_preview, "draw the augmented variants of a dataset"),
        ("new", training_commands.add_new, "write a job folder with its spec.json"),
        ("memory", training_commands.add_memory, "print how much memory a training needs, without training"),
        ("run", job_processes.add_run, "train a job, or resume it from its last checkpoint"),
        ("sample", sampling_commands.add_sample, "draw images with trained models"),
        ("adapter", sampling_commands.add_adapter, "check a LoRA file from elsewhere"),
        ("extend", training_commands.add_extend, "give a finished job more epochs"),
        ("wait", job_processes.add_wait, "load the libraries, then do the job named on standard input"),
        ("devices", devices_command.add_devices, "print the GPUs that a training could use, as JSON"),
        ("selftest", devices_command.add_selftest, "try on this machine what a training may use, and measure it"),
        ("publish", publish_command.add_publish, "upload a finished job to the Hugging Face hub"),
        ("report", training_commands.add_report, "write report.html of a job again"),
        ("kfold", study_commands.add_kfold, "cross-validate a job, then train on all of its images"),
        ("compare", study_commands.add_compare, "train a job with several settings and report which is best"),
        ("compare-jobs", study_commands.add_compare_jobs, "lay trainings beside each other: curves, samples, settings"),
        ("study", study_commands.add_study, "print what a study needs next, for a queue that runs its jobs"),
    ):
        add_arguments(commands.add_parser(name, help=help_text))
    return parser


if __name__ == "__main__":
    sys.exit(main())
