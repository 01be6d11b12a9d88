"""`python -m trainer wait`: loads what a training needs, waits for one job on standard input, and trains it.

A bot keeps one such process ready, so that no job waits for libraries (`trainer/protocol/order.py` is what they say to
each other). It holds no job folder, no device and no lock until an order comes, and never outlives the bot: the end of
its standard input ends it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from pydantic import ValidationError

from trainer.commands import run as run_command
from trainer.commands.quiet import quieten_libraries
from trainer.commands.refusing import refuse
from trainer.errors import TrainerError
from trainer.protocol.events import EXIT_FINISHED
from trainer.protocol.order import LOG_FILE, NEEDS_GPU_VARIABLE, READY, TAKEN, Order
from trainer.training.run import calm_threads

log = logging.getLogger(__name__)

#: Beside what loading a model brings: what a training needs up to the end of its first epoch.
MODULES = (
    "trainer.training.recipe",
    "trainer.tasks.diffusion",
    "trainer.models.methods.adapters",
    "trainer.report.charts",
    "matplotlib.backends.backend_agg",
    "PIL.PpmImagePlugin",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `wait` takes: nothing."""
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Warm up, wait, and then do exactly as `run` does; the exit status is that of `run`, 0 without an order."""
    order_fd, answer_fd = os.dup(0), os.dup(1)
    # What libraries print is no answer.
    _redirect(os.devnull, os.O_RDONLY, 0)
    os.dup2(2, 1)
    warm_up()
    _answer(answer_fd, READY)
    with os.fdopen(order_fd, "rb") as orders:
        line = orders.readline()
    if not line.endswith(b"\n"):
        # Whoever started this is gone; part of a line is no order.
        return EXIT_FINISHED
    try:
        order = Order.model_validate_json(line)
    except ValidationError as error:
        return refuse(f"This is no order ({error.error_count()} problems): {line[:200]!r}")
    if order.job_dir.is_dir():
        _redirect(str(order.job_dir / LOG_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    _answer(answer_fd, TAKEN)
    os.close(answer_fd)
    if order.devices:
        # In time: nothing that was loaded so far has asked for a GPU, and CUDA reads it when somebody first does.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(order.devices)
        os.environ[NEEDS_GPU_VARIABLE] = "1"
    return run_command.run(
        argparse.Namespace(
            job_dir=order.job_dir,
            finish=order.finish,
            attempt=order.attempt,
            micro_batch=order.micro_batch,
            processes=None,
        )
    )


def warm_up() -> None:
    """Import what a diffusion training needs."""
    quieten_libraries()
    calm_threads()
    try:
        for name in MODULES:
            importlib.import_module(name)
        from trainer.models.base import TINY, load_base
        from trainer.protocol.settings import Base

        # diffusers and transformers import their parts, and compile a thousand patterns (0.6 s), at the first model.
        load_base(Base(source=TINY))
    except (ImportError, TrainerError):
        # The run comes to the same point and says it in words, as the job's last.
        log.exception("this trainer is not warm")


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o644)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def _answer(descriptor: int, said: bytes) -> None:
    """A bot that died meanwhile hears nothing, and its successor finds the training by the folder."""
    try:
        os.write(descriptor, said)
    except BrokenPipeError:
        sys.stderr.write("whoever started this is gone\n")
