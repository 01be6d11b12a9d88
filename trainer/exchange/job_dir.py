"""Names and files of a job folder: `spec.json` or `sampling.json`, the log, and where its datasets lie here."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trainer.exchange.files import locate, write_text
from trainer.protocol.sampling import SamplingSpec, make_sampling_spec
from trainer.protocol.spec import SPEC_VERSION, Spec, SpecError, make_spec
from trainer.protocol.text import _

SPEC_FILE = "spec.json"
SAMPLING_FILE = "sampling.json"
#: The weights that a training starts from, if it starts from any but its base's.
START_FILE = "start.safetensors"
#: Standard output and error of all attempts at a job.
LOG_FILE = "trainer.log"
#: Environment variable: a JSON object that maps a dataset folder of the spec to its folder on this machine. Set by the
#: process that starts a trainer on another machine, so that the spec is the same on all of them.
DATASETS_VARIABLE = "DARKROOM_DATASETS"

_paths: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def write_spec(job_dir: Path, spec: Spec | SamplingSpec) -> Path:
    """Write `spec.json` or `sampling.json`, creating the job folder; return its path."""
    job_dir.mkdir(parents=True, exist_ok=True)
    path = job_dir / (SPEC_FILE if isinstance(spec, Spec) else SAMPLING_FILE)
    write_text(path, spec.model_dump_json(indent=2) + "\n")
    return path


def read_spec(job_dir: Path) -> Spec:
    """Read the spec of a job folder.

    Raises:
        SpecError: `spec.json` is missing, is not JSON, is of another version, or holds invalid settings.
    """
    try:
        return make_spec(_read_settings(job_dir / SPEC_FILE))
    except FileNotFoundError:
        raise SpecError(
            _("{job_dir} has no spec.json; write one with `python -m trainer new`.", job_dir=job_dir)
        ) from None


def copy_start(job_dir: Path, spec: Spec) -> None:
    """Copy the file that a training starts from (`method.start_from`) into its folder, unless it is there.

    What it holds is checked by the trainer, against `method.start_sha256`.
    """
    source, copy = Path(spec.method.start_from), job_dir / START_FILE
    if spec.method.start_sha256 is None or copy.exists() or not source.is_file():
        return
    job_dir.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{copy.name}.part")
    shutil.copyfile(source, partial)
    partial.replace(copy)


def read_sampling(job_dir: Path) -> SamplingSpec:
    """Read the spec of a sampling job's folder.

    Raises:
        SpecError: `sampling.json` is missing, is not JSON, is of another version, or holds invalid settings.
    """
    try:
        return make_sampling_spec(_read_settings(job_dir / SAMPLING_FILE))
    except FileNotFoundError:
        raise SpecError(
            _("{job_dir} has no sampling.json; write one with `python -m trainer sample --job DIR`.", job_dir=job_dir)
        ) from None


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the JSON object of a spec.

    Raises:
        FileNotFoundError: There is no such file.
        SpecError: It is not JSON, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(_("{path} is not JSON ({error}).", path=path, error=error)) from error
    if not isinstance(content, dict):
        raise SpecError(_("{path} does not hold a JSON object.", path=path))
    if (version := content.get("version", SPEC_VERSION)) != SPEC_VERSION:
        raise SpecError(
            _(
                "{path} has version {version}; this trainer reads version {ours}.",
                path=path,
                version=version,
                ours=SPEC_VERSION,
            )
        )
    return content


def sample_folder(job_dir: Path, epoch: int) -> Path:
    """Return the folder of an epoch's samples, 0 for the base model; they have the same names in each."""
    return job_dir / "samples" / f"epoch-{epoch:03d}"


def dataset_path(dataset: str) -> Path:
    """Return the folder on this machine of a dataset that a spec names."""
    return Path(read_dataset_paths(os.environ).get(dataset, dataset))


def read_dataset_paths(environ: Mapping[str, str]) -> dict[str, str]:
    """Map dataset folders of a spec to folders on this machine; those that are not listed are the same."""
    return _paths.validate_json(environ.get(DATASETS_VARIABLE) or "{}")


def dataset_paths_environment(paths: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variable that passes `paths` to a trainer."""
    return {DATASETS_VARIABLE: _paths.dump_json(dict(paths)).decode()}


#: What is read of a log's end, and what of that is shown.
_TAIL_BYTES, _TAIL_CHARS = 64 * 1024, 1500
#: Colors and cursor moves of a terminal, and other characters without a shape.
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def log_tail(job_dir: Path, *, hide: Iterable[str] = ()) -> str:
    """Return the last lines of a trainer's log as a person can read them; empty if there is none.

    Args:
        job_dir: The job's folder.
        hide: Paths of the machine, which are shown as `…`.
    """
    try:
        with locate(job_dir, LOG_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    # Of a progress bar, which writes over itself, its newest state.
    lines = [_TERMINAL_CODES.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    shown = "\n".join(line for line in lines if line)
    for path in sorted(filter(None, hide), key=len, reverse=True):
        shown = shown.replace(path, "…")
    return shown if len(shown) <= _TAIL_CHARS else shown[-_TAIL_CHARS:].partition("\n")[2]
