"""One file, table row or download that was handed in, not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What the row of a dataset, or the line of a list, says of its picture."""

    caption: str = ""
    class_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One thing that may be a picture or say something of pictures."""

    #: As the report names it: the path below the input, `archive.zip!member` inside an archive.
    source: str
    #: Path within its folder or archive; a caption belongs to the picture of the same `scope` and stem.
    path: str
    #: Which folder or archive; all loose files share one.
    scope: int
    #: Raises RefusedError.
    read: Callable[[], bytes]
    #: Name of the folder that was handed in: it may be kohya's.
    above: str = ""
    #: Present for rows and lines: they promise a picture, whatever their path says.
    told: Told | None = None
