"""`python -m trainer prepare`: its options, and how they become limits and edits."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trainer.commands.bar import Bar
from trainer.commands.refusing import refuse
from trainer.dataset.layout import EDITS_NAME
from trainer.dataset.limits import Limits
from trainer.dataset.split.group_split import Shares
from trainer.errors import TrainerError, UsageError
from trainer.protocol.edits import CaptionRules, Edits, EditsError, Replacement, read_edits
from trainer.protocol.report import DatasetReport, read_report


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `prepare` takes."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="zip, tar, 7z, picture, folder, list of addresses (.txt), or a Hugging Face dataset (hf://owner/name)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET_DIR")
    parser.add_argument("--resolution", type=int, default=512, help="training size that pictures are judged for, px")
    parser.add_argument(
        "--earlier",
        type=Path,
        action="append",
        default=[],
        metavar="DATASET_DIR",
        help="take over decoded pictures and splits",
    )
    split = parser.add_argument_group("split")
    split.add_argument("--validation", type=float, default=0.15, metavar="SHARE")
    split.add_argument("--test", type=float, default=0.15, metavar="SHARE")
    split.add_argument("--split-seed", type=int, default=0)
    people = parser.add_argument_group("what a person decides (kept in DATASET_DIR/edits.json until changed)")
    people.add_argument("--edits", type=Path, help="another file of edits")
    for name in ("keep", "drop", "undecide"):
        people.add_argument(f"--{name}", type=_numbers, default=(), metavar="N,N", help="pictures by number")
    people.add_argument("--trigger", help="word put in front of each caption that lacks it")
    people.add_argument("--prefix", help="put before each caption")
    people.add_argument("--suffix", help="put after each caption")
    people.add_argument("--strip", action="append", metavar="WORD", help="taken out of each caption")
    people.add_argument("--replace", action="append", metavar="OLD=NEW", help="replaced in each caption")
    parser.add_argument("--background", type=_colour, help="shows through transparent pictures: white, #rrggbb")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=_limits_help())
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Prepare, with a progress bar where stderr is a terminal; the summary goes to stdout."""
    # Here, so that the other commands start without waiting for what decodes and measures pictures.
    from trainer.dataset.preparing.prepare import prepare
    from trainer.report.pages import write_pages
    from trainer.report.sheets import draw_sheets

    try:
        with Bar() as bar:
            report = prepare(
                options.sources,
                options.out,
                limits=_limits(options),
                resolution=options.resolution,
                shares=_shares(options),
                edits=_edits(options),
                earlier=options.earlier,
                draw_sheets=draw_sheets,
                write_pages=write_pages,
                progress=bar,
            )
    except (TrainerError, EditsError) as error:
        return refuse(str(error))
    sys.stdout.write(f"{report.summary}\n")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.replace(" ", "").split(","))


def _colour(text: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    red, green, blue, *_ = ImageColor.getrgb(text)
    return red, green, blue


def _limits_help() -> str:
    return "a limit that untrusted files are opened under: " + ", ".join(_plain_limits())


def _plain_limits() -> list[str]:
    return [field.name for field in dataclasses.fields(Limits) if field.name != "background"]


def _limits(options: argparse.Namespace) -> Limits:
    """Raises UsageError: a limit is unknown, or no number."""
    limits = Limits() if options.background is None else Limits(background=options.background)
    for assignment in options.limit:
        name, _, text = assignment.partition("=")
        if name not in _plain_limits():
            known = ", ".join(_plain_limits())
            raise UsageError(f"--limit {assignment}: there is no limit {name!r}.", f"Limits: {known}.")
        kind = type(getattr(limits, name))
        try:
            value = text.lower() in ("1", "true", "yes", "on") if kind is bool else kind(text)
        except ValueError as error:
            raise UsageError(f"--limit {assignment}: {text!r} is not a number.", "") from error
        changes: dict[str, Any] = {name: value}
        limits = dataclasses.replace(limits, **changes)
    return limits


def _shares(options: argparse.Namespace) -> Shares:
    try:
        return Shares(validation=options.validation, test=options.test, seed=options.split_seed)
    except ValueError as error:
        raise UsageError(f"--validation {options.validation} --test {options.test}: {error}.", "") from error


def _edits(options: argparse.Namespace) -> Edits:
    """Those of `--edits`, or those that the dataset folder holds, with this call's laid over them."""
    path = options.edits or options.out / EDITS_NAME
    edits = read_edits(path) if options.edits or path.is_file() else Edits()
    decisions = dict(edits.decisions)
    for choice in ("keep", "drop", "undecide"):
        if numbers := getattr(options, choice):
            _decide(decisions, choice, numbers, _report(options.out))
    try:
        rules = CaptionRules.model_validate(edits.rules.model_dump() | _rules(options))
    except ValidationError as error:
        raise UsageError(f"The caption rules are not right: {error.errors()[0]['msg'].lower()}.", "") from error
    return edits.model_copy(update={"decisions": decisions, "rules": rules})


def _decide(
    decisions: dict[str, Literal["keep", "drop"]], choice: str, numbers: Sequence[int], report: DatasetReport
) -> None:
    for number in numbers:
        image = report.images[number - 1] if 1 <= number <= len(report.images) else None
        if image is None or image.pixels_sha256 is None:
            why = "there is no such picture" if image is None else "it could not be decoded"
            raise UsageError(f"--{choice} {number}: {why}.", f"The dataset has {len(report.images)} pictures.")
        decisions.pop(image.pixels_sha256, None)
        if choice != "undecide":
            decisions[image.pixels_sha256] = "keep" if choice == "keep" else "drop"


def _report(out: Path) -> DatasetReport:
    try:
        return read_report(out)
    except (OSError, ValidationError) as error:
        message = f"{out} is not a prepared dataset, so its pictures have no numbers yet."
        raise UsageError(message, "Prepare it once without --keep, --drop and --undecide.") from error


def _rules(options: argparse.Namespace) -> dict[str, object]:
    """The caption rules of this call; those that were not given stay as they are."""
    given: dict[str, object] = {
        name: getattr(options, name) for name in ("trigger", "prefix", "suffix") if getattr(options, name) is not None
    }
    if options.strip is not None:
        given["strip"] = tuple(options.strip)
    if options.replace is not None:
        pairs = [pair.partition("=") for pair in options.replace]
        given["replace"] = tuple(Replacement(old=old, new=new).model_dump() for old, _, new in pairs if old)
    return given
