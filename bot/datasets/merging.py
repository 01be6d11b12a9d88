"""More files for a dataset: the old ones by hard link, the new ones beside them, as a new content."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from bot.datasets.dataset import Received, ReceivedFile
from bot.datasets.receiving import SOURCE, content_sha256, publish_source
from bot.errors import DatasetRefused

#: What belongs to the picture of the same stem.
_CAPTION_ENDINGS = frozenset({"txt", "caption", "json"})
#: Tables name other files by their names; renamed, or beside another table, they would speak of the wrong ones.
_TABLES = frozenset({"metadata.jsonl", "metadata.csv", "captions.csv"})


def merge(old: Path, new: Received, *, incoming: Path, datasets: Path) -> Received:
    """A content of the files in `old` and those of `new`; files that are there already do not count.

    Raises:
        DatasetRefused: nothing in `new` is new, or a table of captions collides.
    """
    files = _files_in(old)
    known = {(file.name, file.sha256) for file in files}
    added = [file for file in new.files if (file.name, file.sha256) not in known]
    if not added:
        raise DatasetRefused(f"{new.title} is in this dataset already. Nothing was changed.")
    names = free_names([file.name for file in added], [file.name for file in files])
    folder = incoming / secrets.token_hex(8)
    folder.mkdir(parents=True)
    try:
        for file in files:
            os.link(old / file.name, folder / file.name)
        for file in added:
            os.link(new.source / file.name, folder / names[file.name])
        renamed = [ReceivedFile(name=names[file.name], sha256=file.sha256, bytes=file.bytes) for file in added]
        whole = (*files, *renamed)
        source = datasets / content_sha256(whole) / SOURCE
        publish_source(folder, source)
        return Received(sha256=source.parent.name, source=source, files=whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_names(new: Sequence[str], taken: Iterable[str]) -> dict[str, str]:
    """New name → name beside the taken ones: `a.png` and its `a.txt` become `a-2.png` and `a-2.txt` together.

    A caption alone keeps the stem of a picture that is there: it is meant for it.

    Raises:
        DatasetRefused: a table of captions collides.
    """
    names = {name.casefold() for name in taken}
    stems = {_stem(name) for name in names}
    if tables := sorted(name for name in new if name.casefold() in names & _TABLES):
        raise DatasetRefused(
            f"This dataset has a {tables[0]} already, and two cannot be told apart. "
            "Put the new pictures and their captions into a zip, and add that."
        )
    families: dict[str, list[str]] = {}
    for name in new:
        families.setdefault(_stem(name.casefold()), []).append(name)
    found: dict[str, str] = {}
    for family in families.values():
        number = 1
        while _collides(family, number, names, stems):
            number += 1
        found |= {name: _numbered(name, number) for name in family}
        names |= {found[name].casefold() for name in family}
        stems.add(_stem(found[family[0]].casefold()))
    return found


def _collides(family: Sequence[str], number: int, names: set[str], stems: set[str]) -> bool:
    renamed = [_numbered(name, number).casefold() for name in family]
    if any(name in names for name in renamed):
        return True
    has_picture = any(name.rpartition(".")[2] not in _CAPTION_ENDINGS for name in renamed)
    return has_picture and _stem(renamed[0]) in stems


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _numbered(name: str, number: int) -> str:
    if number == 1:
        return name
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"


def _files_in(source: Path) -> list[ReceivedFile]:
    found = []
    for path in sorted(source.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(ReceivedFile(name=path.name, sha256=digest, bytes=path.stat().st_size))
    return found
