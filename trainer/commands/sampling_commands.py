"""The commands that draw: `sample`, and `adapter`, which checks a file to draw with."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.commands.job_processes import run_job, sample_jobs
from trainer.commands.terminal import refuse
from trainer.exchange.event_file import read_all_events
from trainer.exchange.job_dir import SAMPLING_FILE, read_spec, write_spec
from trainer.exchange.kept_epochs import kept_epochs
from trainer.models.adapter_header import read_adapter_header
from trainer.protocol.run_options import JobKind, RunOptions
from trainer.protocol.sampling import SamplingSpec, make_sampling_spec
from trainer.protocol.spec import SpecError
from trainer.protocol.text import LANGUAGES, _, current_language, speak


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sample`."""
    parser.add_argument("job_dir", nargs="?", type=Path, metavar="JOB_DIR", help="with a sampling.json; or else:")
    parser.add_argument("--job", action="append", default=[], type=Path, metavar="DIR", help="a training to draw with")
    parser.add_argument("--epochs", metavar="4,8,12", help="of each --job (default: its best)")
    parser.add_argument("--file", action="append", default=[], type=Path, metavar="FILE", help="a LoRA from elsewhere")
    parser.add_argument("--base", help="to draw with (default: that of the job)")
    parser.add_argument("--with-base", action="store_true", help="draw the base alone, too")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what is not wanted")
    parser.add_argument("--seeds", default="1234", metavar="1,2")
    parser.add_argument("--strengths", default="1", metavar="0.6,1", help="0 to 1.5")
    parser.add_argument("--steps", type=int, default=25, metavar="N")
    parser.add_argument("--guidance", type=float, default=7.0, metavar="X")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="default: the square that was trained at")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/sampling/1, 2, … of the first --job")
    RunOptions.add_shared_arguments(parser)
    # The bot sets it.
    parser.add_argument(
        "--stay", type=float, default=0.0, metavar="S", help="then wait S seconds for another job on standard input"
    )
    parser.set_defaults(command=run_sample)


def run_sample(arguments: argparse.Namespace) -> int:
    """Draw a sampling job; without its folder, make one of the other arguments first."""
    if arguments.job_dir is None:
        try:
            arguments.job_dir = _make_job(arguments)
        except OSError as error:
            return refuse(f"{error.filename}: {error.strerror}.")
        sys.stdout.write(f"{arguments.job_dir}\n")
        sys.stdout.flush()
    options = options_of(arguments)
    if not options.stay_s:
        return run_job(options)
    channel = os.dup(0)
    return sample_jobs(options, channel, channel)


def options_of(arguments: argparse.Namespace) -> RunOptions:
    """Return the options that were parsed by a parser with `add_sample`."""
    return RunOptions(
        job_dir=arguments.job_dir,
        kind=JobKind.SAMPLE,
        attempt=arguments.attempt,
        micro_batch=arguments.micro_batch,
        language=arguments.language,
        stay_s=arguments.stay,
    )


def _make_job(arguments: argparse.Namespace) -> Path:
    """Write the folder of a sampling job; return it.

    Raises:
        SpecError: The arguments are wrong, or the folder holds another job.
    """
    if not (arguments.job or arguments.file or arguments.base):
        raise SpecError(_("Say what to draw with: --job DIR, --file FILE or --base MODEL; or give the job's folder."))
    if not arguments.prompt:
        raise SpecError(_("Say what to draw: --prompt TEXT."))
    if arguments.out is None and not arguments.job:
        raise SpecError(_("Name a folder for the images: --out DIR."))
    spec = _spec_from_arguments(arguments)
    folder: Path = arguments.out or _next_folder(arguments.job[0] / "sampling")
    if (folder / SAMPLING_FILE).exists():
        raise SpecError(_("{folder} holds another sampling job. Choose another folder.", folder=folder))
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(arguments.file):
        copied = folder / _copied_name(number, path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    write_spec(folder, spec)
    return folder


def _spec_from_arguments(arguments: argparse.Namespace) -> SamplingSpec:
    jobs = {path.resolve(): read_spec(path) for path in arguments.job}
    epochs: list[int | None] = [None]
    if arguments.epochs:
        if not all(part.isdecimal() for part in _parts(arguments.epochs)):
            raise SpecError(_("--epochs {text} is not a list of numbers, such as 4,8,12.", text=arguments.epochs))
        epochs = [int(part) for part in _parts(arguments.epochs)]
    models: list[dict[str, Any]] = []
    for number, (path, spec) in enumerate(jobs.items()):
        name = spec.name if [each.name for each in jobs.values()].count(spec.name) == 1 else f"{spec.name} {number + 1}"
        try:
            kept = kept_epochs(path, read_all_events(path))
        except ValidationError as error:
            raise SpecError(_("The training {label} cannot be read ({error}).", label=name, error=error)) from error
        for epoch in epochs:
            label = name if epoch is None else _("{name}, epoch {epoch}", name=name, epoch=epoch)
            if (kept.best if epoch is None else epoch) not in kept.paths:
                raise SpecError(" ".join(kept.why_missing(label)))
            models.append({"kind": "job", "label": label, "job_dir": str(path), "epoch": epoch})
    for number, path in enumerate(arguments.file):
        models.append({"kind": "file", "label": path.stem[:60], "path": _copied_name(number, path)})
    if arguments.with_base or not models:
        models.insert(0, {"kind": "base", "label": _("base")})
    bases = [spec.base.model_dump(mode="json") for spec in jobs.values()]
    size = {}
    if arguments.size:
        width, _x, height = arguments.size.lower().partition("x")
        size = {"width": _number(width), "height": _number(height)}
    return make_sampling_spec(
        {
            "base": {"source": arguments.base} if arguments.base else bases[0] if bases else {},
            "models": models,
            "prompts": [{"prompt": prompt, "negative": arguments.negative} for prompt in arguments.prompt],
            "seeds": [_number(text) for text in _parts(arguments.seeds)],
            "strengths": [_number(text) for text in _parts(arguments.strengths)],
            "steps": arguments.steps,
            "guidance": arguments.guidance,
            **size,
        }
    )


def _copied_name(number: int, path: Path) -> str:
    return f"adapters/{number + 1}/{path.name}"


def _next_folder(parent: Path) -> Path:
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _number(text: str) -> float | str:
    """Return a number; or the text, which the spec then refuses with a sentence."""
    try:
        return int(text) if text.strip().isdecimal() else float(text)
    except ValueError:
        return text


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `adapter`."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--language", choices=tuple(LANGUAGES), default=current_language(), help="of a refusal")
    parser.set_defaults(command=run_adapter)


def run_adapter(arguments: argparse.Namespace) -> int:
    """Print what the header of an adapter file says as JSON, or why it cannot be used; nothing of it is loaded."""
    speak(arguments.language)
    try:
        facts = read_adapter_header(arguments.file)
    except OSError as error:
        return refuse(_("{file} cannot be read ({error}).", file=arguments.file, error=error.strerror))
    sys.stdout.write(f"{facts.model_dump_json()}\n")
    return 0
