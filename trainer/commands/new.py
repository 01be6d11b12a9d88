"""`python -m trainer new`: a job folder with its spec."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.commands.refusing import refuse
from trainer.protocol.mix import parse_part
from trainer.protocol.presets import presets, spec_from_preset
from trainer.protocol.report import read_report
from trainer.protocol.spec import SpecError


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `new` takes."""
    parser.add_argument("--dataset", type=Path, required=True, metavar="DATASET_DIR")
    parser.add_argument("--base", help="folder, .safetensors file, hub name, or tiny (the default is the preset's)")
    parser.add_argument("--preset", default="lora", help=f"one of: {', '.join(presets())}")
    parser.add_argument("--name", default="lora", help="name of the LoRA")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.NAME=VALUE", dest="settings")
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        type=parse_part,
        metavar="DATASET_DIR:NAME=VALUE",
        help="a further dataset, with :repeats=N or :weight=SHARE, :trigger=WORD, or :role=regularization",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JOB_DIR")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write `spec.json`; its path goes to stdout."""
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
            examples = "training.epochs=4, method.rank=8"
            raise SpecError(f"--set {assignment} is not GROUP.NAME=VALUE, such as {examples}.")
        settings.setdefault(group, {})[key] = _parse_value(text.strip())
    return settings


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
