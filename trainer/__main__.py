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

from trainer.commands import caption, prepare
from trainer.commands.refusing import refuse
from trainer.protocol.events import EXIT_BUSY, EXIT_REFUSED
from trainer.protocol.mix import parse_part
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
    prepare.add_options(commands.add_parser("prepare", help="make a dataset folder from archives, pictures, folders"))
    caption.add_options(commands.add_parser("caption", help="write captions by a local model where there are none"))
    new = commands.add_parser("new", help="write a job folder with its spec.json")
    new.add_argument("--dataset", type=Path, required=True, metavar="DATASET_DIR")
    new.add_argument("--base", default="tiny", help="folder, .safetensors file, hub name, or tiny (the default)")
    new.add_argument("--preset", default="lora", help=f"one of: {', '.join(presets())}")
    new.add_argument("--name", default="lora", help="name of the LoRA")
    new.add_argument("--set", action="append", default=[], metavar="GROUP.NAME=VALUE", dest="settings")
    new.add_argument(
        "--mix",
        action="append",
        default=[],
        type=parse_part,
        metavar="DATASET_DIR:NAME=VALUE",
        help="a further dataset, with :repeats=N or :weight=SHARE, :trigger=WORD, or :role=regularization",
    )
    new.add_argument("--out", type=Path, required=True, metavar="JOB_DIR")
    new.set_defaults(command=_new)
    run = commands.add_parser("run", help="train a job, or go on with it from its last checkpoint")
    run.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    run.add_argument("--finish", action="store_true", help="train no further: test and export the best checkpoint")
    run.set_defaults(command=_run)
    return parser


def _new(options: argparse.Namespace) -> int:
    mix = [{**part, "dataset": str(Path(part["dataset"]).resolve())} for part in options.mix]
    for folder in (options.dataset, *(Path(part["dataset"]) for part in mix)):
        try:
            read_report(folder)
        except (OSError, ValueError):
            return refuse(f"{folder} is not a prepared dataset. Make it with `python -m trainer prepare`.")
    try:
        spec = spec_from_preset(
            options.preset,
            dataset=str(options.dataset.resolve()),
            base=options.base,
            name=options.name,
            changes={**_parse_settings(options.settings), **({"mix": mix} if mix else {})},
        )
    except SpecError as error:
        return refuse(str(error))
    if (options.out / "events.jsonl").exists():
        return refuse(f"{options.out} holds a job that was started already. Choose another folder.")
    sys.stdout.write(f"{spec.write(options.out)}\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from trainer.console import Console
    from trainer.errors import JobFolderBusyError

    if not options.job_dir.is_dir():
        return refuse(f"There is no job folder {options.job_dir}. Make one with `python -m trainer new`.")
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


if __name__ == "__main__":
    sys.exit(main())
