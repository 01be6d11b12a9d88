"""What was handed in, and what became of it: values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trainer.protocol.edits import Edits
from trainer.protocol.report import Counts


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that somebody hands in."""

    #: As its owner calls it; anything may stand in it.
    name: str
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, kw_only=True)
class ReceivedFile:
    """A file that arrived whole."""

    #: A plain file name, unique among the files that came with it.
    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Received:
    """Files that arrived together, in their place and not opened yet."""

    #: Of the one file, or over the sorted (name, SHA-256) of several.
    sha256: str
    #: Holds the files under their names.
    source: Path
    files: tuple[ReceivedFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def title(self) -> str:
        """What to call it to the person who handed it in."""
        return title_of([file.name for file in self.files])


def title_of(names: Sequence[str]) -> str:
    """What to call files that came together: `momo.zip`, or `momo.png and 3 more`."""
    rest = len(names) - 1
    return names[0] + (f" and {rest} more" if rest else "")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset that can be trained on."""

    id: int
    guild_id: int
    owner_id: int
    #: Unique in its server; also a valid name of a job.
    name: str
    #: Of what was handed in.
    sha256: str
    #: What `trainer prepare` wrote (absolute): report.json, pictures, sheets. Goes into the spec; never changes.
    folder: Path
    #: `<sha256>/<revision>` of the dataset that this one grew out of; empty if of none.
    earlier: str
    #: All that people decided, the newest not in `folder` yet where `is_pending`.
    edits: Edits
    #: Decided and not applied: `DatasetStore.apply` makes the next revision.
    is_pending: bool
    counts: Counts
    #: The report's paragraph in plain words.
    summary: str
    created_at: datetime

    @property
    def source(self) -> Path:
        """Holds the files that were handed in."""
        return self.folder.parent / "source"
