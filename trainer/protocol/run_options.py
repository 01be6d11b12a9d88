"""One start of a job: the options of `trainer run` beside the spec, as a command line and as a line of JSON.

A warm trainer (`python -m trainer wait`) takes the same options on its standard input. It answers READY once its
libraries are loaded, reads one `RunOptions` line, answers TAKEN, and from there on behaves like `trainer run`, with its
output in the job's log. If its standard input ends first, it exits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from trainer.protocol.frozen import Frozen
from trainer.protocol.text import ENGLISH, LANGUAGES, current_language

READY, TAKEN = b"ready\n", b"taken\n"

#: Environment variable: refuse to train if torch can use no GPU. Set where the trainer was given GPUs.
NEEDS_GPU_VARIABLE = "DARKROOM_NEEDS_GPU"


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    #: Draws images with what was trained (`protocol/sampling.py`).
    SAMPLE = "sample"

    @property
    def command(self) -> str:
        """The trainer's command that does it."""
        return "run" if self is JobKind.TRAIN else "sample"


class RunOptions(Frozen):
    """One start of a job. What changes the result is in the spec; these options may differ between starts."""

    #: Holds `spec.json`, or `sampling.json`.
    job_dir: Path
    kind: JobKind = JobKind.TRAIN
    #: The job's number in the bot's queue, for logs; 0 on the command line.
    job_id: int = Field(default=0, ge=0)
    #: Fencing token (`trainer.exchange.attempt`); 0 on the command line, where nothing is fenced.
    attempt: int = Field(default=0, ge=0)
    #: Train no further: test and export the best checkpoint.
    finish: bool = False
    #: With `finish`: the epoch that becomes the result, in place of the best one.
    epoch: int | None = Field(default=None, ge=1)
    #: Upper limit of the images in memory at once, set after the job ran out of memory; None: as many as fit.
    micro_batch: int | None = Field(default=None, ge=1)
    #: GPUs that the training is spread over, one process each; 0 or 1: one process.
    gpus: int = Field(default=0, ge=0)
    #: The GPUs, as in CUDA_VISIBLE_DEVICES; empty: those that the machine (or the cluster) gives.
    devices: tuple[str, ...] = ()
    #: Of warnings, charts and the report: that of the server which asked for the job.
    language: str = Field(default_factory=current_language)
    #: Of a sampling job: how long the process then waits for another one on its standard input, with its base loaded.
    stay_s: float = Field(default=0.0, ge=0)

    def to_line(self) -> bytes:
        """Return the options as one line of JSON."""
        return self.model_dump_json().encode() + b"\n"

    def to_argv(self) -> tuple[str, ...]:
        """Return the arguments of `python -m trainer`; `devices` are passed in the environment instead."""
        argv = [self.kind.command, str(self.job_dir), f"--attempt={self.attempt}"]
        if self.finish:
            argv.append("--finish")
        if self.epoch is not None:
            argv.append(f"--epoch={self.epoch}")
        if self.micro_batch is not None:
            argv.append(f"--micro-batch={self.micro_batch}")
        if self.gpus > 1:
            argv.append(f"--gpus={self.gpus}")
        if self.language != ENGLISH:
            argv.append(f"--language={self.language}")
        if self.stay_s:
            argv.append(f"--stay={self.stay_s:g}")
        return tuple(argv)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of a training that `from_arguments` reads."""
        parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
        parser.add_argument(
            "--finish", action="store_true", help="train no further: test and export the best checkpoint"
        )
        parser.add_argument(
            "--epoch", type=_at_least(1), metavar="N", help="with --finish: take epoch N in place of the best one"
        )
        RunOptions.add_shared_arguments(parser)
        parser.add_argument(
            "--gpus", type=_at_least(1), default=0, metavar="N", help="refuse to train unless N processes share the job"
        )

    @staticmethod
    def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the options of every kind of job, which the bot's queue sets."""
        parser.add_argument(
            "--attempt", type=_at_least(0), default=0, metavar="N", help="exit once attempt.json names another attempt"
        )
        parser.add_argument("--micro-batch", type=_at_least(1), metavar="N", help="at most N images in memory at once")
        parser.add_argument(
            "--language", choices=tuple(LANGUAGES), default=current_language(), help="of what it writes"
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> RunOptions:
        """Return the options that were parsed by a parser with `add_arguments`."""
        return cls(
            job_dir=arguments.job_dir,
            attempt=arguments.attempt,
            finish=arguments.finish,
            epoch=arguments.epoch,
            micro_batch=arguments.micro_batch,
            gpus=arguments.gpus,
            language=arguments.language,
        )


def _at_least(lowest: int) -> Callable[[str], int]:
    """Return an argparse type: an integer that is not below `lowest`."""

    def parse(text: str) -> int:
        if (value := int(text)) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is less than {lowest}")
        return value

    return parse
