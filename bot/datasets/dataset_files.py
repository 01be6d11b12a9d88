"""The files of datasets on disk: receive uploads, merge them, publish prepared folders, and sweep unused ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bot.datasets.dataset import PREPARED, SOURCE, Received, ReceivedFile, Upload
from bot.errors import DatasetRefused, DatasetTooLarge
from trainer.exchange.files import locate
from trainer.protocol.report import DatasetReport
from trainer.protocol.text import _

#: Files that belong to the image of the same stem.
_CAPTION_ENDINGS = frozenset({"txt", "caption", "json"})
#: Folders around an uploaded file.
_MAX_DEPTH = 8
#: Tables refer to other files by name; renamed, or beside another table, they would refer to the wrong ones.
_TABLES = frozenset({"metadata.jsonl", "metadata.csv", "captions.csv"})


# -- receive ------------------------------------------------------------------------------------------------------


async def write_uploads(
    uploads: Sequence[Upload], *, incoming: Path, datasets: Path, max_bytes: int, claim: Callable[[str], None]
) -> Received:
    """Write uploads to `incoming`, then move them to `datasets/<sha256>/source`; `claim` gets the hash before that.

    Raises:
        DatasetTooLarge: Together they have more than `max_bytes`; reading stops there.
        DatasetRefused: There are no files, or only empty ones.
    """
    folder = incoming / secrets.token_hex(8)
    await asyncio.to_thread(folder.mkdir, parents=True)
    try:
        files: list[ReceivedFile] = []
        for upload in uploads:
            # Distinct on file systems that ignore case, too.
            name = free_path(plain_name(upload.name), {file.name.casefold() for file in files})
            left = max_bytes - sum(file.bytes for file in files)
            received = await _write_upload(upload, folder / name, left)
            if received is None:
                raise DatasetTooLarge(file_name=name, max_bytes=max_bytes)
            files.append(received)
        if not any(file.bytes for file in files):
            raise DatasetRefused(_("The upload is empty: it has 0 bytes."))
        sha256 = content_sha256(files)
        source = datasets / sha256 / SOURCE
        claim(sha256)
        await asyncio.to_thread(publish_source, folder, source)
        return Received(sha256=sha256, source=source, files=tuple(files))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def link_uploads(
    paths: Mapping[str, Path], *, incoming: Path, datasets: Path, claim: Callable[[str], None]
) -> Received:
    """As `write_uploads`, for files that are on the disk: they get another name there."""
    with temporary_folder(incoming) as folder:
        for name, path in paths.items():
            link_file(path, folder / name)
        files = tuple(described(folder / name, name) for name in paths)
        sha256 = content_sha256(files)
        source = datasets / sha256 / SOURCE
        claim(sha256)
        publish_source(folder, source)
        return Received(sha256=sha256, source=source, files=files)


async def _write_upload(upload: Upload, path: Path, max_bytes: int) -> ReceivedFile | None:
    """Write one file and flush it to the disk; None if it is too large."""
    digest = hashlib.sha256()
    count = 0
    with path.open("xb") as file:
        async for chunk in upload.chunks:
            count += len(chunk)
            if count > max_bytes:
                return None
            await asyncio.to_thread(_write, file, digest, chunk)
        await asyncio.to_thread(_sync, file)
    return ReceivedFile(name=path.name, sha256=digest.hexdigest(), bytes=count)


def _write(file: BinaryIO, digest: hashlib._Hash, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def content_sha256(files: Sequence[ReceivedFile]) -> str:
    """Return the hash that names a content: of the files' bytes and names, which captions go by and reports show.

    Another server that has the same bytes by another name must not see how they are called here.
    """
    lines = sorted(f"{file.name}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def plain_name(name: str) -> str:
    """Return a file name without folders, control characters or a leading dot, at most 100 characters."""
    base = re.split(r"[/\\]", name)[-1]
    base = "".join(character for character in base if character.isprintable()).strip().lstrip(".")
    stem, dot, ending = base.rpartition(".")
    if dot and stem and len(ending) <= 10:
        return f"{stem[: 99 - len(ending)]}.{ending}"
    return base[:100] or "file"


def plain_path(path: str) -> str:
    """Return the path of a file in a folder: plain names, at most eight folders deep; `..` leads nowhere."""
    parts = [part for part in re.split(r"[/\\]", path) if part.strip(". ")] or ["file"]
    *folders, name = parts
    return "/".join([*(plain_name(folder) for folder in folders[-_MAX_DEPTH:]), plain_name(name)])


def free_path(path: str, taken: Collection[str]) -> str:
    """Return a path that no file has yet: `a/b.png`, `a/b-2.png`, …; `taken` are paths with their case folded."""
    number = 1
    while _numbered(path, number).casefold() in taken:
        number += 1
    return _numbered(path, number)


def dataset_name(file_name: str) -> str:
    """Return a dataset name for a file, or the folder that it is in: lower-case letters, digits, `.-_`; at most 36
    (room for a `-12`).
    """
    folder, is_in_folder, _name = file_name.partition("/")
    stem = folder if is_in_folder else file_name.rpartition(".")[0] or file_name
    slug = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    return slug[:36].strip("-._") or "dataset"


def free_name(wanted: str, taken: Container[str]) -> str:
    """Return the name of a new dataset: as wanted, else with the first number that is not taken."""
    return next(name for name in chain([wanted], (f"{wanted}-{number}" for number in count(2))) if name not in taken)


def _numbered(path: str, number: int) -> str:
    if number == 1:
        return path
    file = PurePosixPath(path)
    return str(file.with_name(f"{file.stem}-{number}{file.suffix}"))


def copy_folder(folder: Path, to: Path, *, max_files: int, max_bytes: int) -> dict[str, Path]:
    """Copy what `folder_files` finds, and return where each copy is by its name in a dataset."""
    found = folder_files(folder, max_files=max_files, max_bytes=max_bytes)
    copies = {name: to / str(number) for number, name in enumerate(found)}
    for name, file in found.items():
        shutil.copyfile(file, copies[name])
    return copies


def folder_files(folder: Path, *, max_files: int, max_bytes: int) -> dict[str, Path]:
    """Return the files below a folder by their names in a dataset.

    Links are not followed, and hidden files and folders are left out.

    Raises:
        DatasetTooLarge, DatasetRefused: There are too many bytes, too many files, or none.
    """
    found: dict[str, Path] = {}
    left, taken = max_bytes, set[str]()
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(above) / name
            if name.startswith(".") or file.is_symlink() or not file.is_file():
                continue
            if len(found) >= max_files:
                raise DatasetRefused(
                    _("The folder has more than {allowed} files. Nothing was kept.", allowed=max_files)
                )
            left -= file.stat().st_size
            if left < 0:
                raise DatasetTooLarge(file_name=folder.name, max_bytes=max_bytes)
            path = free_path(plain_path(file.relative_to(folder.parent).as_posix()), taken)
            taken.add(path.casefold())
            found[path] = file
    if not found:
        raise DatasetRefused(_("The folder has no files that I can read. Nothing was kept."))
    return found


# -- merge --------------------------------------------------------------------------------------------------------


def merge_files(old: Path, new: Received, *, incoming: Path, datasets: Path) -> Received:
    """Make a content of the files in `old` and those of `new`, by hard links; files that are there do not count.

    Raises:
        DatasetRefused: Nothing in `new` is new, or a table of captions collides.
    """
    files = _files_in(old)
    known = {(file.name, file.sha256) for file in files}
    added = [file for file in new.files if (file.name, file.sha256) not in known]
    if not added:
        raise DatasetRefused(_("{title} is in this dataset already. Nothing was changed.", title=new.title))
    names = free_names([file.name for file in added], [file.name for file in files])
    with temporary_folder(incoming) as folder:
        for file in files:
            link_file(old / file.name, folder / file.name)
        for file in added:
            link_file(new.source / file.name, folder / names[file.name])
        renamed = [ReceivedFile(name=names[file.name], sha256=file.sha256, bytes=file.bytes) for file in added]
        merged = (*files, *renamed)
        source = datasets / content_sha256(merged) / SOURCE
        publish_source(folder, source)
        return Received(sha256=source.parent.name, source=source, files=merged)


def free_names(new: Sequence[str], taken: Iterable[str]) -> dict[str, str]:
    """Map new names to names beside the taken ones: `a.png` and its `a.txt` become `a-2.png` and `a-2.txt` together.

    A caption without an image keeps its stem: it is meant for the image that is there.

    Raises:
        DatasetRefused: A table of captions collides.
    """
    names = {name.casefold() for name in taken}
    stems = {_stem(name) for name in names}
    if tables := sorted(name for name in new if name.casefold() in names and _base(name) in _TABLES):
        raise DatasetRefused(
            _(
                "This dataset already has a {table}, and the two cannot be told apart. Put the new images and their "
                "captions into a zip and add the zip.",
                table=tables[0],
            )
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
    has_image = any(name.rpartition(".")[2] not in _CAPTION_ENDINGS for name in renamed)
    return has_image and _stem(renamed[0]) in stems


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _base(path: str) -> str:
    return path.casefold().rpartition("/")[2]


def link_file(file: Path, to: Path) -> None:
    """Give a file another name, in folders that are made."""
    to.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, to)


def _files_in(source: Path) -> list[ReceivedFile]:
    return [described(source / name, name) for name, _size in sorted(file_sizes(source))]


def described(path: Path, name: str) -> ReceivedFile:
    """Read a file that arrived, and return what is stored of it; it is on the disk then."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ReceivedFile(name=name, sha256=digest, bytes=os.fstat(file.fileno()).st_size)


def file_sizes(source: Path) -> list[tuple[str, int]]:
    """Return (path below the folder, bytes) of each uploaded file."""
    files = (path for path in source.rglob("*") if path.is_file())
    return [(path.relative_to(source).as_posix(), path.stat().st_size) for path in files]


# -- folders ------------------------------------------------------------------------------------------------------


@contextmanager
def temporary_folder(incoming: Path) -> Iterator[Path]:
    """Make a folder below `incoming` and delete it afterwards."""
    folder = incoming / secrets.token_hex(8)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_source(folder: Path, source: Path) -> None:
    """Move a received folder to its place, unless the same content is there already."""
    source.parent.mkdir(parents=True, exist_ok=True)
    # The sweep leaves recently touched contents alone.
    os.utime(source.parent)
    try:
        folder.rename(source)
    except OSError:
        if not source.exists():
            raise


def publish_prepared(part: Path, folder: Path) -> None:
    """Give a finished folder its final name."""
    # The row that follows survives a power cut, so these files must too. One `sync` is cheaper than an fsync per image.
    os.sync()
    part.rename(folder)


def touch(*folders: Path) -> None:
    """Restart the grace period of folders, so that a sweep leaves them alone."""
    for folder in folders:
        if folder.is_dir():
            os.utime(folder)


def remove(*folders: Path) -> None:
    """Delete folders; missing ones are ignored."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def pack_report(folder: Path, report: DatasetReport, out: Path) -> Path:
    """Write a zip of the report's pages, sheets and thumbnails; files that are missing are left out."""
    thumbnails = [image.thumbnail for image in report.images if image.thumbnail]
    # Images are compressed already.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in dict.fromkeys([*report.pages, "report.json", *report.sheets, *thumbnails]):
            with suppress(FileNotFoundError):
                archive.write(locate(folder, name), name)
    return out


def sweep(incoming: Path, datasets: Path, *, contents: set[str], revisions: set[str], before: float) -> int:
    """Delete unused folders that were last touched before a time; return how many.

    Args:
        incoming: Unfinished uploads.
        datasets: One folder per content.
        contents: SHA-256 of datasets and pending uploads, whose source is kept.
        revisions: Every `<sha256>/<folder>` that is a dataset's newest, or that a job's spec names.
        before: Seconds since the epoch.
    """
    unused = list(incoming.glob("*"))
    for content in datasets.glob("*"):
        below = [folder for folder in content.glob("*") if folder.is_dir()]
        kept = [folder for folder in below if _is_used(folder, contents, revisions)]
        if kept or content.name in contents:
            unused += [folder for folder in below if folder not in kept]
        else:
            unused.append(content)
    old = [folder for folder in unused if folder.stat().st_mtime < before]
    remove(*old)
    return len(old)


def _is_used(folder: Path, contents: set[str], revisions: set[str]) -> bool:
    if folder.name.startswith(PREPARED):
        return f"{folder.parent.name}/{folder.name}" in revisions
    return folder.parent.name in contents
