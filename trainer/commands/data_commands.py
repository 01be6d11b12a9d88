"""The commands about one dataset: `prepare`, `fetch-dataset`, `extract-rows`, `caption` and `preview`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trainer.commands.terminal import ProgressBar, ProgressFile, not_prepared, quieten_libraries, refuse
from trainer.dataset.dataset_folder import EDITS_NAME
from trainer.dataset.input_files import Limits
from trainer.dataset.split.group_split import Shares
from trainer.errors import UsageError
from trainer.exchange.base_files import base_resolution
from trainer.exchange.dataset_dir import read_edits, read_report
from trainer.protocol.augmentation import Augmentation, AugmentationPreset, Flip
from trainer.protocol.bucket_shapes import COMMON_RESOLUTIONS
from trainer.protocol.edits import CaptionRules, Edits, Layout, Replacement
from trainer.protocol.report import DatasetReport
from trainer.protocol.settings import Base
from trainer.protocol.text import _, ngettext, size


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `prepare`."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="zip, tar, 7z, image, folder, or a Hugging Face dataset (hf://owner/name)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET_DIR")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--base", metavar="MODEL", help="report what its resolution means (default: 512, 768 and 1024 px)"
    )
    sizes.add_argument("--resolution", type=_resolutions, metavar="PX,PX", help="report what these resolutions mean")
    parser.add_argument(
        "--earlier",
        type=Path,
        action="append",
        default=[],
        metavar="DATASET_DIR",
        help="reuse its decoded images and splits",
    )
    split = parser.add_argument_group("split")
    split.add_argument("--validation", type=float, default=0.15, metavar="SHARE")
    split.add_argument("--test", type=float, default=0.15, metavar="SHARE")
    split.add_argument("--split-seed", type=int, default=0)
    people = parser.add_argument_group("edits (stored in DATASET_DIR/edits.json until changed)")
    people.add_argument("--edits", type=Path, help="use another edits file")
    for name in ("keep", "drop", "undecide"):
        people.add_argument(f"--{name}", type=_numbers, default=(), metavar="N,N", help="images by number")
    people.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        help="plain: every image is one to train on, whatever its folder is called (default: auto)",
    )
    people.add_argument(
        "--caption-column", metavar="NAME", help="column of the captions in tables (default: the only one with text)"
    )
    people.add_argument("--trigger", help="trigger word put in front of each caption that lacks it")
    people.add_argument("--prefix", help="text before each caption")
    people.add_argument("--suffix", help="text after each caption")
    people.add_argument("--strip", action="append", metavar="WORD", help="removed from each caption")
    people.add_argument("--replace", action="append", metavar="OLD=NEW", help="replaced in each caption")
    parser.add_argument("--background", type=_color, help="background of transparent images: white, #rrggbb")
    _add_limits(parser)
    _add_progress(parser)
    parser.set_defaults(command=run_prepare)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = "a limit for untrusted files: " + ", ".join(_plain_limits())
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=limits)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", type=Path, metavar="FILE", help="write how far it has come to this file, as JSON")


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare a dataset, with a progress bar on a terminal, and print the summary."""
    # Imported here: decoders and measures take time to load that the other commands do not need.
    from trainer.dataset.images.decode_server import start_server
    from trainer.dataset.memory import private_memory_limited

    limits = _limits(options)
    main_bytes = limits.memory_bytes - limits.decoders_bytes
    with private_memory_limited(main_bytes):
        start_server()
    from trainer.dataset.preparing.prepare import prepare
    from trainer.report.dataset_page import write_pages
    from trainer.report.sheets import draw_sheets

    with ProgressBar() as bar, private_memory_limited(main_bytes):
        report = prepare(
            options.sources,
            options.out,
            limits=limits,
            resolutions=_reported_resolutions(options),
            shares=_shares(options),
            edits=_edits(options),
            earlier=options.earlier,
            draw_sheets=draw_sheets,
            write_pages=write_pages,
            progress=ProgressFile(options.progress, bar),
        )
    sys.stdout.write(f"{report.summary}\n")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.replace(" ", "").split(","))


def _resolutions(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if not all(64 <= number <= 2048 for number in numbers):
        raise argparse.ArgumentTypeError(_("a resolution is between 64 and 2048 px"))
    return numbers


def _reported_resolutions(options: argparse.Namespace) -> tuple[int, ...]:
    """Return the resolutions of the command line, or that of its base; raise UsageError if that is not known."""
    if options.base is None:
        return options.resolution or COMMON_RESOLUTIONS
    found = base_resolution(Base(source=options.base))
    if found is None:
        message = _("The resolution of {base} is not known on this machine.", base=options.base)
        raise UsageError(message, _("Give it with --resolution."))
    return (found,)


def _color(text: str) -> tuple[int, int, int]:
    from PIL import ImageColor

    return ImageColor.getrgb(text)[:3]


def _plain_limits() -> list[str]:
    return [field.name for field in dataclasses.fields(Limits) if field.name != "background"]


def _limits(options: argparse.Namespace) -> Limits:
    """Return the limits of the command line; raise UsageError if one is unknown or not a number."""
    background = getattr(options, "background", None)
    limits = Limits() if background is None else Limits(background=background)
    for assignment in options.limit:
        name, _equals, text = assignment.partition("=")
        if name not in _plain_limits():
            known = ", ".join(_plain_limits())
            raise UsageError(
                _("--limit {text}: there is no limit {name}.", text=assignment, name=name),
                _("Limits: {known}.", known=known),
            )
        kind = type(getattr(limits, name))
        try:
            value = text.lower() in ("1", "true", "yes", "on") if kind is bool else kind(text)
        except ValueError as error:
            raise UsageError(_("--limit {text}: {value} is not a number.", text=assignment, value=text), "") from error
        changes: dict[str, Any] = {name: value}
        limits = dataclasses.replace(limits, **changes)
    return limits


def _shares(options: argparse.Namespace) -> Shares:
    try:
        return Shares(validation=options.validation, test=options.test, seed=options.split_seed)
    except ValueError as error:
        raise UsageError(f"--validation {options.validation} --test {options.test}: {error}.", "") from error


def _edits(options: argparse.Namespace) -> Edits:
    """Return the edits of `--edits` or of the dataset folder, updated by those of the command line."""
    path = options.edits or options.out / EDITS_NAME
    edits = read_edits(path) if options.edits or path.is_file() else Edits()
    decisions = dict(edits.decisions)
    for choice in ("keep", "drop", "undecide"):
        if numbers := getattr(options, choice):
            _decide(decisions, choice, numbers, _report(options.out))
    try:
        rules = CaptionRules.model_validate(edits.rules.model_dump() | _rules(options))
    except ValidationError as error:
        why = error.errors()[0]["msg"].lower()
        raise UsageError(_("The caption rules are invalid: {why}.", why=why), "") from error
    column = edits.caption_column if options.caption_column is None else options.caption_column.strip()[:100]
    layout = edits.layout if options.layout is None else Layout(options.layout)
    return edits.model_copy(update={"decisions": decisions, "rules": rules, "caption_column": column, "layout": layout})


def _decide(
    decisions: dict[str, Literal["keep", "drop"]], choice: str, numbers: Sequence[int], report: DatasetReport
) -> None:
    for number in numbers:
        image = report.images[number - 1] if 1 <= number <= len(report.images) else None
        if image is None or image.pixels_sha256 is None:
            why = _("there is no such image") if image is None else _("it could not be decoded")
            count = ngettext("The dataset has {n} image.", "The dataset has {n} images.", len(report.images))
            raise UsageError(f"--{choice} {number}: {why}.", count)
        decisions.pop(image.pixels_sha256, None)
        if choice != "undecide":
            decisions[image.pixels_sha256] = "keep" if choice == "keep" else "drop"


def _report(out: Path) -> DatasetReport:
    try:
        return read_report(out)
    except (OSError, ValidationError) as error:
        message = _("{folder} is not a prepared dataset, so its images have no numbers yet.", folder=out)
        raise UsageError(message, _("Prepare it once without --keep, --drop and --undecide.")) from error


def _rules(options: argparse.Namespace) -> dict[str, object]:
    """Return the caption rules of the command line."""
    given: dict[str, object] = {
        name: getattr(options, name) for name in ("trigger", "prefix", "suffix") if getattr(options, name) is not None
    }
    if options.strip is not None:
        given["strip"] = tuple(options.strip)
    if options.replace is not None:
        pairs = [pair.partition("=") for pair in options.replace]
        given["replace"] = tuple(Replacement(old=old, new=new).model_dump() for old, _equals, new in pairs if old)
    return given


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fetch-dataset`."""
    parser.add_argument("name", metavar="hf://OWNER/NAME")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")
    where.add_argument("--facts", type=Path, metavar="FILE", help="download nothing, and write what it is, as JSON")
    _add_limits(parser)
    _add_progress(parser)
    parser.set_defaults(command=run_fetch)


def run_fetch(options: argparse.Namespace) -> int:
    """Download a dataset, or write the facts about it, and print its size."""
    from trainer.dataset.sources.hf_datasets import parse_name
    from trainer.dataset.sources.hub_files import download, look_up

    try:
        limits, name = _limits(options), parse_name(options.name)
        if options.facts is not None:
            facts = look_up(name, limits)
            options.facts.write_text(facts.model_dump_json(), encoding="utf-8")
        else:
            with ProgressBar() as bar:
                facts = download(name, options.out, limits, ProgressFile(options.progress, bar))
    except OSError as error:
        return refuse(_("{path} cannot be written: {error}.", path=options.out or options.facts, error=error.strerror))
    sys.stdout.write(f"{facts.source}: {size(facts.bytes)}\n")
    return 0


def add_extract(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `extract-rows`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="its tables are deleted")
    _add_limits(parser)
    _add_progress(parser)
    parser.set_defaults(command=run_extract)


def run_extract(options: argparse.Namespace) -> int:
    """Write the images in the rows of tables as files, and print their number."""
    from trainer.dataset.sources.hub_files import extract_rows

    try:
        with ProgressBar() as bar:
            n = extract_rows(options.folder, _limits(options), ProgressFile(options.progress, bar))
    except OSError as error:
        return refuse(_("{path} cannot be written: {error}.", path=options.folder, error=error.strerror))
    sys.stdout.write(ngettext("{n} image", "{n} images", n) + "\n")
    return 0


def add_caption(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `caption`."""
    parser.add_argument("dataset_dir", type=Path, metavar="DATASET_DIR")
    parser.add_argument("--model", required=True, help="folder or hub name: BLIP, BLIP-2, GIT, Florence-2 or a tagger")
    parser.add_argument("--edits", type=Path, help="where to write the captions (default: DATASET_DIR/edits.json)")
    parser.add_argument("--all", action="store_true", help="also replace captions, except edited ones")
    parser.add_argument("--detail", choices=["short", "detailed"], default="short", help="detail of Florence-2")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument("--download-only", action="store_true", help="download the model and end")
    _add_progress(parser)
    parser.set_defaults(command=run_caption)


def run_caption(options: argparse.Namespace) -> int:
    """Write captions into the edits, and print their number."""
    quieten_libraries()
    from trainer.captioning import Detail, auto_captions

    edits = options.edits or options.dataset_dir / EDITS_NAME
    if options.download_only:
        from trainer.captioning.captioners import download_captioner

        download_captioner(options.model)
        return 0
    with ProgressBar() as bar:
        count = auto_captions.caption_dataset(
            options.dataset_dir,
            options.model,
            edits,
            only_missing=not options.all,
            batch_size=options.batch_size,
            device=options.device,
            detail=Detail(options.detail),
            progress=ProgressFile(options.progress, bar),
        )
    if not count:
        message = _("No caption was written: every image has one, or the model wrote none.")
    else:
        message = ngettext(
            "{n} caption written to {path}. Prepare the dataset again to use it.",
            "{n} captions written to {path}. Prepare the dataset again to use them.",
            count,
            path=edits,
        )
    sys.stdout.write(f"{message}\n")
    return 0


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `preview`."""
    presets = [preset.value for preset in AugmentationPreset if preset is not AugmentationPreset.CUSTOM]
    parser.add_argument("dataset_dir", type=Path, metavar="DATASET_DIR")
    parser.add_argument("--preset", choices=presets, default="light", help="augmentation.preset of the job")
    parser.add_argument("--variants", type=int, choices=range(1, 17), default=4, metavar="N")
    parser.add_argument("--flip", choices=[flip.value for flip in Flip], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.set_defaults(command=run_preview)


def run_preview(options: argparse.Namespace) -> int:
    """Draw the sheet and print its path."""
    quieten_libraries()
    from trainer.tasks.variant_preview import preview_variants

    augmentation = Augmentation(preset=options.preset, variants=options.variants, flip=options.flip)
    try:
        preview_variants(options.dataset_dir, augmentation, options.seed, options.out)
    except (OSError, ValueError):
        return refuse(not_prepared(options.dataset_dir))
    sys.stdout.write(f"{options.out}\n")
    return 0
