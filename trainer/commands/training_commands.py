"""The commands about one job: `new`, `run`, `wait` and `report`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.commands.terminal import not_prepared, quieten_libraries, refuse
from trainer.errors import FencedError, JobFolderBusyError, TrainerError, is_disk_full
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.event_file import EVENTS_FILE, read_all_events
from trainer.exchange.job_dir import LOG_FILE, read_spec, write_spec
from trainer.protocol.events import EXIT_BUSY, EXIT_FAILED, EXIT_FENCED, EXIT_FINISHED
from trainer.protocol.presets import presets, spec_from_preset
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, READY, TAKEN, RunOptions
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _
from trainer.training.run import limit_openmp_spin

log = logging.getLogger(__name__)

#: Modules that a training needs up to the end of its first epoch, beside those that loading a model imports.
WARM_MODULES = (
    "trainer.training.recipe",
    "trainer.tasks.diffusion",
    "trainer.models.methods.adapters",
    "trainer.report.charts",
    "matplotlib.backends.backend_agg",
    "PIL.PpmImagePlugin",
)


def add_new(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `new`."""
    parser.add_argument("--dataset", type=Path, required=True, metavar="DATASET_DIR")
    parser.add_argument("--base", help="folder, .safetensors file, hub name, or tiny (default: the preset's)")
    parser.add_argument("--preset", default="lora", help=f"one of: {', '.join(presets())}")
    parser.add_argument("--name", default="lora", help="name of the LoRA")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.NAME=VALUE", dest="settings")
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        type=parse_mix_part,
        metavar="DATASET_DIR:NAME=VALUE",
        help="another dataset, with :repeats=N or :weight=SHARE, :trigger=WORD, or :role=regularization",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JOB_DIR")
    parser.set_defaults(command=run_new)


def run_new(arguments: argparse.Namespace) -> int:
    """Write `spec.json` and print its path."""
    mix = [{**part, "dataset": str(Path(part["dataset"]).resolve())} for part in arguments.mix]
    for folder in (arguments.dataset, *(Path(part["dataset"]) for part in mix)):
        try:
            read_report(folder)
        except (OSError, ValueError):
            return refuse(not_prepared(folder))
    try:
        spec = spec_from_preset(
            arguments.preset,
            dataset=str(arguments.dataset.resolve()),
            base=arguments.base,
            name=arguments.name,
            changes={**_parse_settings(arguments.settings), **({"mix": mix} if mix else {})},
        )
    except SpecError as error:
        return refuse(str(error))
    if (arguments.out / EVENTS_FILE).exists():
        return refuse(_("{folder} holds a job that has already started. Choose another folder.", folder=arguments.out))
    sys.stdout.write(f"{write_spec(arguments.out, spec)}\n")
    return 0


def parse_mix_part(text: str) -> dict[str, str]:
    """Parse the settings of a `MixPart`, such as `/data/cats:repeats=3:role=regularization`.

    Names and values are validated with the spec.
    """
    *folder, last = text.split(":")
    settings: dict[str, str] = {}
    while folder and "=" in last and "/" not in last.partition("=")[0]:
        name, _equals, value = last.partition("=")
        settings[name.strip()] = value.strip()
        *folder, last = folder
    return {"dataset": ":".join([*folder, last]), **settings}


def _parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `["training.epochs=4", "samples.prompts=[\\"a\\"]"]` into nested settings.

    Values are TOML; a bare word is a string.

    Raises:
        SpecError: An assignment has no `=` or no group.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        group, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            examples = "training.epochs=4, method.rank=8"
            raise SpecError(
                _("--set {text} is not GROUP.NAME=VALUE, such as {examples}.", text=assignment, examples=examples)
            )
        settings.setdefault(group, {})[key] = _parse_value(text.strip())
    return settings


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run`."""
    RunOptions.add_arguments(parser)
    parser.set_defaults(command=lambda arguments: run_job(RunOptions.from_arguments(arguments)))


def run_job(options: RunOptions) -> int:
    """Train a job, with progress on stderr; return the exit status of its terminal event."""
    # Imported here: tqdm and the training take time that the other commands do not need.
    from trainer.console import Console

    if not options.job_dir.is_dir():
        return refuse(
            _("There is no job folder {folder}. Make one with `python -m trainer new`.", folder=options.job_dir)
        )
    try:
        quieten_libraries()
        from trainer.training.run import run

        return run(options, listener=Console())
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
    _answer(answer_fd, READY)
    with os.fdopen(input_fd, "rb") as lines:
        line = lines.readline()
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
    os.close(answer_fd)
    if options.devices:
        # In time: CUDA reads it when a GPU is first used, and nothing that was imported so far has used one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(options.devices)
        os.environ[NEEDS_GPU_VARIABLE] = "1"
    return run_job(options)


def warm_up() -> None:
    """Import what a diffusion training needs."""
    quieten_libraries()
    limit_openmp_spin()
    try:
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


def add_report(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.set_defaults(command=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Write `report.html` of a job, also of one that is running or has failed; print its path."""
    from trainer.report.run_page import write_run_page

    try:
        spec = read_spec(arguments.job_dir)
    except SpecError as error:
        return refuse(str(error))
    try:
        events = read_all_events(arguments.job_dir)
    except ValueError:
        return refuse(_("{path} has another version or is damaged.", path=arguments.job_dir / EVENTS_FILE))
    sys.stdout.write(f"{write_run_page(arguments.job_dir, spec, events)}\n")
    return 0
