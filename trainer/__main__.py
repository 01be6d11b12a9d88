"""The trainer's command line.

python -m trainer prepare pictures.zip --out DATASET_DIR
python -m trainer new --dataset DATASET_DIR --base tiny --preset lora --set training.epochs=4 --out JOB_DIR
python -m trainer run JOB_DIR
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer.protocol.events import EXIT_BUSY, EXIT_REFUSED
from trainer.protocol.presets import presets, spec_from_preset
from trainer.protocol.report import read_report
from trainer.protocol.spec import SpecError


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
    prepare = commands.add_parser("prepare", help="make a dataset folder from zips, pictures and folders")
    prepare.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="zip, picture or folder")
    prepare.add_argument("--out", type=Path, required=True, metavar="DATASET_DIR")
    prepare.add_argument("--resolution", type=int, default=512, help="training size that pictures are judged for, px")
    prepare.set_defaults(command=_prepare)
    new = commands.add_parser("new", help="write a job folder with its spec.json")
    new.add_argument("--dataset", type=Path, required=True, metavar="DATASET_DIR")
    new.add_argument("--base", default="tiny", help="folder, .safetensors file, hub name, or tiny (the default)")
    new.add_argument("--preset", default="lora", help=f"one of: {', '.join(presets())}")
    new.add_argument("--name", default="lora", help="name of the LoRA")
    new.add_argument("--set", action="append", default=[], metavar="GROUP.NAME=VALUE", dest="settings")
    new.add_argument("--out", type=Path, required=True, metavar="JOB_DIR")
    new.set_defaults(command=_new)
    run = commands.add_parser("run", help="train a job, or go on with it from its last checkpoint")
    run.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    run.add_argument("--finish", action="store_true", help="train no further: test and export the best checkpoint")
    run.set_defaults(command=_run)
    return parser


def _prepare(options: argparse.Namespace) -> int:
    from trainer.dataset.prepare import prepare
    from trainer.errors import TrainerError
    from trainer.report.sheets import draw_sheets

    try:
        report = prepare(options.sources, options.out, resolution=options.resolution, draw_sheets=draw_sheets)
    except TrainerError as error:
        return _refuse(str(error))
    sys.stdout.write(f"{report.summary}\n")
    return 0


def _new(options: argparse.Namespace) -> int:
    try:
        changes = _parse_settings(options.settings)
        read_report(options.dataset)
        spec = spec_from_preset(
            options.preset,
            dataset=str(options.dataset.resolve()),
            base=options.base,
            name=options.name,
            changes=changes,
        )
    except SpecError as error:
        return _refuse(str(error))
    except (OSError, ValueError):
        return _refuse(f"{options.dataset} is not a prepared dataset. Make it with `python -m trainer prepare`.")
    if (options.out / "events.jsonl").exists():
        return _refuse(f"{options.out} holds a job that was started already. Choose another folder.")
    sys.stdout.write(f"{spec.write(options.out)}\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from trainer.console import Console
    from trainer.errors import JobFolderBusyError

    if not options.job_dir.is_dir():
        return _refuse(f"There is no job folder {options.job_dir}. Make one with `python -m trainer new`.")
    try:
        _quieten_libraries()
        from trainer.training.run import run

        return run(options.job_dir, finish=options.finish, listener=Console())
    except JobFolderBusyError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BUSY


def _quieten_libraries() -> None:
    """Our console and events say what matters; set before the libraries are imported, which read it then."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """`["training.epochs=4", "samples.prompts=[\\"a\\"]"]` as nested settings; values are TOML, bare words are strings.

    Raises:
        SpecError: an assignment has no `=`, or names no group.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        group, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            examples = "training.epochs=4, adapter.rank=8"
            raise SpecError(f"--set {assignment} is not GROUP.NAME=VALUE, such as {examples}.")
        settings.setdefault(group, {})[key] = _parse_value(text.strip())
    return settings


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse(sentence: str) -> int:
    sys.stderr.write(" ".join(sentence.split()) + "\n")
    return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
