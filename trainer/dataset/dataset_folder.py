"""The dataset folder: the names of its files, and its atomic replacement."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DatasetError
from trainer.exchange.files import sync
from trainer.protocol.text import _

#: Kept images, dropped images, and thumbnails of both.
IMAGES, DROPPED, THUMBNAILS = "images", "dropped", "thumbnails"
#: Of cropped images: the whole ones, and their thumbnails.
UNCROPPED, UNCROPPED_THUMBNAILS = "uncropped", "uncropped/thumbnails"
#: Masks (where the loss of an image counts), named by their content.
MASKS = "masks"
#: Contact sheets.
SHEETS = "sheets"
#: The user's changes, and the measurements of each image; both are for the next preparation.
EDITS_NAME, DECODED_NAME = "edits.json", "decoded.jsonl"
#: Marks a folder as made by `trainer prepare`, so that it may be replaced.
REPORT_NAME = "report.json"


@contextmanager
def publish_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; it replaces `out` if the body succeeds, and is deleted if it fails.

    Raises:
        DatasetError: `out` is in use for something else, or cannot be written.
    """
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean_up_killed(out)
        partial = out.parent / f".{out.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        message = _("{folder} cannot be written: {error}.", folder=out.parent, error=error.strerror)
        raise DatasetError(message, _("Choose another --out.")) from error
    try:
        yield partial
        _replace(out, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()) and not (out / REPORT_NAME).is_file():
            message = _("{out} is not empty and was not made by `trainer prepare`, so it is not replaced.", out=out)
            raise DatasetError(message, _("Choose another --out."))
    elif out.exists() or out.is_symlink():
        raise DatasetError(_("{out} is not a folder.", out=out), _("Choose another --out."))


def _replace(out: Path, partial: Path) -> None:
    """Rename twice: between the renames `out` is missing for a moment, but it is never incomplete."""
    old = partial.with_suffix(".old")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up_killed(out: Path) -> None:
    """Remove the folders of killed preparations; restore `out` if one was killed between its two renames."""
    for path in out.parent.glob(f".{out.name}.*"):
        *_name, pid_and_suffix = path.name.rpartition(f".{out.name}.")
        pid, _dot, suffix = pid_and_suffix.partition(".")
        if suffix not in ("partial", "old") or not pid.isdigit() or _is_running(int(pid)):
            continue
        if suffix == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
