"""Uploaded files, the dataset that they become, and who may change it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bot.db import Row, as_stored
from bot.errors import DatasetRefused, Explained, NotYourDataset
from trainer.protocol.edits import Edits
from trainer.protocol.report import REPORT_VERSION, Counts
from trainer.protocol.text import N_, ngettext

#: Folders of one content: the uploaded files, and what `trainer prepare` made of them.
SOURCE, PREPARED = "source", "prepared"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that is about to be received."""

    #: As its owner calls it; untrusted.
    name: str
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, kw_only=True)
class ReceivedFile:
    """A file that arrived completely."""

    #: A plain file name, or a path of plain names if folders came; unique among the files that came with it.
    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Received:
    """Files that arrived together, stored and not opened yet."""

    #: Over the sorted (name, SHA-256) pairs of the files.
    sha256: str
    #: Folder that holds the files under their names.
    source: Path
    files: tuple[ReceivedFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def title(self) -> str:
        return title_of([file.name for file in self.files])


def title_of(names: Sequence[str]) -> str:
    """Name files in one phrase: `momo.zip`, `momo.png and 3 more`, or `momo (40 files)` if all are in a folder."""
    folders = {name.partition("/")[0] for name in names}
    if len(folders) == 1 and "/" in names[0]:
        return ngettext("{folder} ({n} file)", "{folder} ({n} files)", len(names), folder=folders.pop())
    rest = len(names) - 1
    return ngettext("{name} and {n} more", "{name} and {n} more", rest, name=names[0]) if rest else names[0]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared dataset of one server."""

    id: int
    guild_id: int
    owner_id: int
    #: Unique in its server; also a valid job name.
    name: str
    #: Of the uploaded files.
    sha256: str
    #: All of these files together.
    bytes: int
    #: What `trainer prepare` wrote (absolute): report.json, images, sheets. Goes into the spec; never changes.
    folder: Path
    #: `<sha256>/<revision>` of the dataset that this one grew out of; empty if there is none.
    earlier: str
    #: All decisions; while `is_pending`, the newest are not in `folder` yet.
    edits: Edits
    #: There are decisions that `DatasetStore.apply` has not turned into a revision yet.
    is_pending: bool
    #: Of the data that training sees (`DatasetReport.digest`).
    digest: str
    #: Version of the report in `folder`; 0 if unknown.
    report_version: int
    counts: Counts
    #: The report's summary, one sentence a line.
    summary: str
    #: Only for its owner, `guests` and managers: others do not find it, and do not see what was trained on it.
    is_private: bool = False
    #: Members whom the owner of a private dataset named.
    guests: tuple[int, ...] = ()
    created_at: datetime

    @classmethod
    def from_row(cls, row: Row, datasets: Path) -> Dataset:
        """Build a dataset from its row; `datasets` is the folder of all contents."""
        edits = Edits.model_validate_json(row["edits"])
        values = as_stored(cls, row) | {
            "folder": datasets / row["sha256"] / row["revision"],
            "edits": edits,
            "is_pending": revision_name(edits, row["earlier"]) != row["revision"],
            "counts": Counts.model_validate_json(row["counts"]),
            "is_private": bool(row["is_private"]),
            "guests": tuple(json.loads(row["guests"])),
            "created_at": datetime.fromtimestamp(row["created_at"], UTC),
        }
        return cls(**values)

    @property
    def source(self) -> Path:
        """Folder of the uploaded files."""
        return self.folder.parent / SOURCE

    @property
    def is_current(self) -> bool:
        """False if the prepared folder has a report of another version and must be made again."""
        return self.report_version == REPORT_VERSION


def revision_name(edits: Edits, earlier: str = "") -> str:
    """Return the folder name of a revision: `prepared` as uploaded, else `prepared-0123456789ab`.

    `earlier` (`<sha256>/<revision>`) is part of the hash: the same files with inherited splits are another dataset.
    """
    if edits == Edits() and not earlier:
        return PREPARED
    # Sorted, so that the order of decisions makes no difference.
    lines = f"{json.dumps(edits.model_dump(mode='json'), sort_keys=True)}\n{earlier}\n"
    return f"{PREPARED}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


class PrivateCopy(Explained, DatasetRefused):
    """Files that are another member's private dataset."""

    sentence = N_(
        "Another member has exactly these files as a private dataset, and can let you use it "
        "(/dataset privacy). Nothing was kept."
    )


def may_see(dataset: Dataset, *, user_id: int, can_manage: bool) -> bool:
    """Return whether a member may see a dataset and train on it."""
    return not dataset.is_private or can_manage or user_id == dataset.owner_id or user_id in dataset.guests


def may_mix(mixed: Dataset, dataset: Dataset) -> bool:
    """Return whether a training on `dataset` may use `mixed` too: everyone who may see the one may see the other."""
    if not mixed.is_private:
        return True
    return dataset.is_private and {dataset.owner_id, *dataset.guests} <= {mixed.owner_id, *mixed.guests}


def may_change(dataset: Dataset, *, user_id: int, can_manage: bool) -> bool:
    """Return whether a member may change a dataset: its owner, or a manager of the server."""
    return can_manage or user_id == dataset.owner_id


def require_seen(known: Dataset | None, user_id: int) -> None:
    """Raise unless a member who uploads the files of an existing dataset may see that dataset.

    Raises:
        PrivateCopy: They may not.
    """
    if known is not None and not may_see(known, user_id=user_id, can_manage=False):
        raise PrivateCopy


def require_change(dataset: Dataset, *, user_id: int, can_manage: bool) -> None:
    """Raise unless a member may change a dataset.

    Raises:
        NotYourDataset: The member is neither its owner nor a manager.
    """
    if not may_change(dataset, user_id=user_id, can_manage=can_manage):
        raise NotYourDataset(name=dataset.name, owner_id=dataset.owner_id)
