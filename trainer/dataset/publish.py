"""A folder that is there whole or not at all, whenever the process dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DatasetError

#: What marks a folder as one of ours, which may be replaced.
REPORT_NAME = "report.json"


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        DatasetError: `out` is in use for something else, or cannot be written.
    """
    _check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(out)
        partial = out.parent / f".{out.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise DatasetError(f"{out.parent} cannot be written: {error.strerror}.", "Choose another --out.") from error
    try:
        yield partial
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()) and not (out / REPORT_NAME).is_file():
            message = f"{out} is not empty and was not made by `trainer prepare`, so it is not replaced."
            raise DatasetError(message, "Choose another --out.")
    elif out.exists() or out.is_symlink():
        raise DatasetError(f"{out} is not a folder.", "Choose another --out.")


def _replace(out: Path, partial: Path) -> None:
    """Two renames: between them `out` is missing for a moment, but never half there."""
    old = partial.with_suffix(".old")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _remove_left_overs(out: Path) -> None:
    """What preparations left behind that were killed."""
    for left in out.parent.glob(f".{out.name}.*"):
        _, _, pid_and_suffix = left.name.rpartition(f".{out.name}.")
        pid, _, suffix = pid_and_suffix.partition(".")
        if suffix not in ("partial", "old") or not pid.isdigit() or _is_running(int(pid)):
            continue
        if suffix == "old" and not out.exists():
            left.rename(out)  # killed between the two renames
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
