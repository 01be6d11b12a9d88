"""Revisions of a content: folders that never change, each named after what was decided about it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bot.datasets.dataset import Dataset
from bot.datasets.receiving import PREPARED
from bot.db import Row
from trainer.protocol.edits import Edits
from trainer.protocol.report import Counts, DatasetReport, read_report


def revision_name(edits: Edits, earlier: str = "") -> str:
    """The folder of a revision: `prepared` as handed in, `prepared-0123456789ab` with edits or an earlier dataset.

    `earlier` (`<sha256>/<revision>`) counts too: the same files with sides that were held are another split.
    """
    if edits == Edits() and not earlier:
        return PREPARED
    # Sorted: who decided first is no difference.
    lines = f"{json.dumps(edits.model_dump(mode='json'), sort_keys=True)}\n{earlier}\n"
    return f"{PREPARED}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def dataset_of(row: Row, datasets: Path) -> Dataset:
    """The dataset of a row; `datasets` holds the contents."""
    edits = Edits.model_validate_json(row["edits"])
    return Dataset(
        id=row["id"],
        guild_id=row["guild_id"],
        owner_id=row["owner_id"],
        name=row["name"],
        sha256=row["sha256"],
        folder=datasets / row["sha256"] / row["revision"],
        earlier=row["earlier"],
        edits=edits,
        is_pending=revision_name(edits, row["earlier"]) != row["revision"],
        counts=Counts.model_validate_json(row["counts"]),
        summary=row["summary"],
        created_at=datetime.fromtimestamp(row["created_at"], UTC),
    )


def report_in(folder: Path) -> DatasetReport | None:
    """The report of a prepared folder; None if it is missing, or of another version and to be made again."""
    try:
        return read_report(folder)
    except (FileNotFoundError, ValidationError):
        return None


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a report that can be read."""
    return report_in(folder) is not None


def publish(part: Path, folder: Path) -> None:
    """Give a finished folder its name."""
    # The row that comes next survives a power cut, so these files must too; one call instead of one fsync a picture.
    os.sync()
    part.rename(folder)


def make_young(*folders: Path) -> None:
    """Start the grace time of folders anew, so that a sweep leaves them alone."""
    for folder in folders:
        if folder.is_dir():
            os.utime(folder)


def remove(*folders: Path) -> None:
    """Delete folders, those that are not there in silence."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(incoming: Path, datasets: Path, *, contents: set[str], revisions: set[str], before: float) -> int:
    """Delete what nothing uses and was last touched before that time; returns how many folders.

    `contents`: SHA-256 of living datasets and of uploads, whose source is kept. `revisions`: every `<sha256>/<folder>`
    that is a dataset's newest, or that a job's spec names.
    """
    left_over = list(incoming.glob("*"))
    for content in datasets.glob("*"):
        below = [folder for folder in content.glob("*") if folder.is_dir()]
        kept = [folder for folder in below if _is_kept(folder, contents, revisions)]
        if kept or content.name in contents:
            left_over += [folder for folder in below if folder not in kept]
        else:
            left_over.append(content)
    old = [folder for folder in left_over if folder.stat().st_mtime < before]
    remove(*old)
    return len(old)


def _is_kept(folder: Path, contents: set[str], revisions: set[str]) -> bool:
    if folder.name.startswith(PREPARED):
        return f"{folder.parent.name}/{folder.name}" in revisions
    return folder.parent.name in contents
