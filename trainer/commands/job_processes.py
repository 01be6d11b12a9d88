"""The commands that do a job in this process: `run`, and `wait`, which is handed one."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import sys

from pydantic import ValidationError

from trainer.commands.terminal import quieten_libraries, refuse
from trainer.errors import FencedError, JobFolderBusyError, TrainerError, is_disk_full
from trainer.exchange.job_dir import LOG_FILE
from trainer.exchange.process import release_job
from trainer.protocol.events import EXIT_BUSY, EXIT_FAILED, EXIT_FENCED, EXIT_FINISHED
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, READY, TAKEN, JobKind, RunOptions
from trainer.protocol.text import _, speak
from trainer.training.run import KeptBase, choose_openmp_spin, without_collection

log = logging.getLogger(__name__)

#: Modules that a training needs up to the end of its first epoch, beside those that loading a model imports.
WARM_MODULES = (
    "trainer.training.recipe",
    "trainer.training.sample_recipe",
    "trainer.tasks.diffusion",
    "trainer.models.methods.adapters",
    "trainer.report.charts",
    "matplotlib.backends.backend_agg",
    "PIL.PpmImagePlugin",
)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run`."""
    RunOptions.add_arguments(parser)
    parser.set_defaults(command=lambda arguments: run_job(RunOptions.from_arguments(arguments)))


def run_job(options: RunOptions, kept: KeptBase | None = None) -> int:
    """Do a job, with progress on stderr; return the exit status of its terminal event.

    Args:
        options: Which job.
        kept: The base of the sampling job before.
    """
    # Imported here: tqdm and the training take time that the other commands do not need.
    from trainer.console import Console

    speak(options.language)
    if not options.job_dir.is_dir():
        return refuse(
            _("There is no job folder {folder}. Make one with `python -m trainer new`.", folder=options.job_dir)
        )
    try:
        quieten_libraries()
        from trainer.training.run import run

        return run(options, listener=Console(), kept=kept)
    except (JobFolderBusyError, FencedError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FENCED if isinstance(error, FencedError) else EXIT_BUSY
    except OSError as error:
        if not is_disk_full(error):
            raise
        # Not even the first event could be written.
        message = _("The disk of {folder} is full. Free some space and run the job again.", folder=options.job_dir)
        sys.stderr.write(f"{message}\n")
        return EXIT_FAILED


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `wait`: none."""
    parser.set_defaults(command=run_wait)


def run_wait(arguments: argparse.Namespace) -> int:
    """Load what a training needs, wait for one `RunOptions` line on standard input, and train that job.

    A bot keeps one such process ready, so that no job waits for libraries. Until a job comes it holds no job folder,
    no device and no lock. The end of its standard input ends it, so it never outlives the bot.

    Returns:
        The exit status of `run`; 0 if no job came.
    """
    input_fd, answer_fd = os.dup(0), os.dup(1)
    # What libraries print is not an answer.
    _redirect(os.devnull, os.O_RDONLY, 0)
    os.dup2(2, 1)
    warm_up()
    options = _take_job(input_fd, answer_fd)
    if not isinstance(options, RunOptions):
        return options
    if options.devices:
        # In time: CUDA reads it when a GPU is first used, and nothing that was imported so far has used one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(options.devices)
        os.environ[NEEDS_GPU_VARIABLE] = "1"
    if options.kind is JobKind.SAMPLE:
        return sample_jobs(options, input_fd, answer_fd)
    os.close(input_fd)
    os.close(answer_fd)
    return run_job(options)


def sample_jobs(options: RunOptions, input_fd: int, answer_fd: int) -> int:
    """Draw a sampling job, then others that come within `stay_s`, with the base still loaded.

    Args:
        options: The first job.
        input_fd: Where the options of others come from; its end ends the process.
        answer_fd: Where READY and TAKEN go.

    Returns:
        The exit status of the last job.
    """
    kept = KeptBase()
    while True:
        status = run_job(options, kept)
        if status not in {EXIT_FINISHED, EXIT_FAILED} or not options.stay_s:
            # Stopped, or it was another process's job: there is nothing to wait for.
            return status
        _redirect(os.devnull, os.O_WRONLY, 1, 2)
        release_job(options.job_dir, options.attempt)
        following = _take_job(input_fd, answer_fd, within_s=options.stay_s)
        if not isinstance(following, RunOptions):
            return status if following == EXIT_FINISHED else following
        options = following


def _take_job(input_fd: int, answer_fd: int, *, within_s: float | None = None) -> RunOptions | int:
    """Answer READY, read one `RunOptions` line, and answer TAKEN, with the output in the job's log from then on.

    Returns:
        The options; or an exit status: that of a refusal, or 0 if the input ended or nothing came in time.
    """
    _answer(answer_fd, READY)
    line = _read_line(input_fd, within_s)
    if not line.endswith(b"\n"):
        # The bot has ended; part of a line is no job.
        return EXIT_FINISHED
    try:
        options = RunOptions.model_validate_json(line)
    except ValidationError as error:
        return refuse(f"These are no run options ({error.error_count()} problems): {line[:200]!r}")
    if options.job_dir.is_dir():
        _redirect(str(options.job_dir / LOG_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    _answer(answer_fd, TAKEN)
    return options


def _read_line(input_fd: int, within_s: float | None) -> bytes:
    """Return the next line, what came of it before the end of the input, or nothing if it does not begin in time."""
    ready, _writable, _failed = select.select([input_fd], [], [], within_s)
    line = b""
    while ready and not line.endswith(b"\n") and (part := os.read(input_fd, 1)):
        line += part
    return line


def warm_up() -> None:
    """Import what a diffusion training needs."""
    quieten_libraries()
    choose_openmp_spin()
    try:
        with without_collection():
            for name in WARM_MODULES:
                importlib.import_module(name)
            from trainer.models.base import TINY, load_base
            from trainer.protocol.settings import Base

            # At the first model diffusers and transformers import their parts and compile many patterns (0.6 s).
            load_base(Base(source=TINY))
    except (ImportError, TrainerError):
        # The training meets the same error and reports it in its terminal event.
        log.exception("this trainer is not warm")


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o644)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def _answer(descriptor: int, answer: bytes) -> None:
    """Write an answer. If the bot has died meanwhile, the next bot finds the training by its job folder."""
    try:
        os.write(descriptor, answer)
    except BrokenPipeError:
        log.warning("the process that started this trainer has exited")
