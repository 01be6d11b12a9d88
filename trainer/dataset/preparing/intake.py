"""Reads the sources: each file is recognized by its content, and decoded, taken as captions, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.console import Progress
from trainer.dataset.archives import READABLE_ARCHIVES
from trainer.dataset.archives.archive import is_one_of_several
from trainer.dataset.captions.labels import LabelIndex
from trainer.dataset.dataset_folder import IMAGES, THUMBNAILS
from trainer.dataset.images.decode_workers import CacheLookup, DecodeResult, DecodeTask, decode_all
from trainer.dataset.images.decoding import ImageError
from trainer.dataset.images.image_record import ImagePixels, ImageRecord
from trainer.dataset.input_files import (
    HEAD_BYTES,
    PROGRAM_SIGNATURES,
    FileKind,
    Limits,
    RefusedError,
    SourceEntry,
    document_format,
    has_caption_name,
    has_image_name,
    has_raw_name,
    is_part_name,
    is_svg,
    sniff,
    unsupported_format,
)
from trainer.dataset.preparing.recognition import Recognition
from trainer.dataset.sources.source_readers import Sources
from trainer.protocol.report import Finding, FindingKind, RefusalKind
from trainer.protocol.text import _, ngettext


def read_images(
    sources: Sources,
    root: Path,
    limits: Limits,
    progress: Progress,
    *,
    cached: CacheLookup = lambda task: None,
    decoded: Callable[[ImagePixels], ImagePixels] = lambda pixels: pixels,
) -> list[ImageRecord]:
    """Read every entry and decode every image that is not cached; `decoded` gets each, and returns what is kept of it.

    Refused entries are added to `sources.refused`, what is no ordinary image to `sources.recognized`, and columns that
    were chosen by their content to `sources.caption_columns`.
    """
    for name in (IMAGES, THUMBNAILS):
        (root / name).mkdir()
    found = Recognition(sources.entries, root, limits, sources.layout)
    sources.recognized += found.recognized(sources.clutter)
    reader = _Reader(sources, found, root, limits, progress)
    results: dict[int, DecodeResult] = {
        number: decoded(result) if isinstance(result, ImagePixels) else result
        for number, result in decode_all(reader.tasks(), limits, cached=cached)
    }
    results |= reader.unreadable
    results |= {number: results[first] for number, first in reader.copies.items()}
    reader.labels.join(reader.images.values())
    sources.caption_columns += reader.labels.caption_columns
    records = [_record(number, entry, results[number], reader.labels) for number, entry in reader.images.items()]
    for source, refusal in reader.labels.unused():
        sources.refuse(source, refusal)
    sources.release_entries()
    return records


def _record(number: int, entry: SourceEntry, result: DecodeResult, labels: LabelIndex) -> ImageRecord:
    record = ImageRecord(
        number=number,
        source=entry.source,
        labels=labels.of(entry),
        pixels=result if isinstance(result, ImagePixels) else None,
    )
    if not isinstance(result, ImageError):
        return record
    return record.with_findings(
        Finding(
            kind=result.kind,
            measure=result.measure,
            threshold=result.threshold,
            action="dropped",
            message=result.message,
            detail=result.detail,
        )
    )


class _Reader:
    """Iterates over the entries once; `tasks` fills the attributes."""

    def __init__(self, sources: Sources, found: Recognition, root: Path, limits: Limits, progress: Progress) -> None:
        self._sources = sources
        self._root = root
        self._progress = progress
        self._limits = limits
        self._entries, self._masks = found.entries, found.masks
        self.labels = LabelIndex(limits, sources.caption_column)
        #: Entries of the images by number.
        self.images: dict[int, SourceEntry] = {}
        self.unreadable: dict[int, ImageError] = {}
        #: Number of the first of several identical files, which is decoded for all of them.
        self.copies: dict[int, int] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        #: Sources of images beyond the limit, and of archives inside an archive.
        self._left_out: list[str] = []
        self._nested: list[str] = []

    def tasks(self) -> Iterator[DecodeTask]:
        total = len(self._entries)
        for done, entry in enumerate(self._entries):
            self._progress("reading", done, total)
            if entry.source not in self._masks.sources:
                with self._refused_on_error(entry):
                    yield from self._read(entry)
        for source, reason in self._masks.unused.items():
            self._sources.refuse(source, RefusedError(RefusalKind.WITHOUT_IMAGE, reason))
        if self._nested:
            reason = ngettext(
                "it is an archive inside an archive, which is not opened",
                "it and {more} more are archives inside an archive, which are not opened",
                len(self._nested),
                more=len(self._nested) - 1,
            )
            self._sources.refuse(self._nested[0], RefusedError(RefusalKind.NESTED_ARCHIVE, reason))
        if self._left_out:
            most, rest = f"{self._limits.max_images:,}", len(self._left_out)
            reason = ngettext(
                "it is beyond the {most} images that a dataset may have",
                "it and the images after it, {n} in all, are beyond the {most} that a dataset may have",
                rest,
                most=most,
            )
            self._sources.refuse(self._left_out[0], RefusedError(RefusalKind.TOO_MANY, reason))
        self._progress("reading", total, total)

    def _read(self, entry: SourceEntry) -> Iterator[DecodeTask]:
        self.labels.require_room(entry)
        if len(self.images) >= self._limits.max_images and (has_image_name(entry.path) or entry.row_labels):
            self._left_out.append(entry.source)
            return
        data = entry.read()
        kind = entry.kind or sniff(data[:HEAD_BYTES])
        is_row = entry.row_labels is not None
        is_text = kind is FileKind.OTHER or is_svg(data[:HEAD_BYTES])
        if is_text and has_caption_name(entry.path) and not is_row:
            self.labels.add(entry, data)
        elif kind in (FileKind.IMAGE, FileKind.UNSUPPORTED_IMAGE) or has_image_name(entry.path) or is_row:
            yield from self._add_image(entry, data, kind)
        elif document_format(entry.path):
            raise _unsupported(entry.path, kind, data, is_inside="!" in entry.source)
        elif "!" in entry.source and (kind in READABLE_ARCHIVES or kind is FileKind.UNSUPPORTED_ARCHIVE):
            self._nested.append(entry.source)
        else:
            raise _unsupported(entry.path, kind, data, is_inside="!" in entry.source)

    def _add_image(self, entry: SourceEntry, data: bytes, kind: FileKind) -> Iterator[DecodeTask]:
        number = len(self.images) + 1
        self.images[number] = entry
        if kind is not FileKind.IMAGE or has_raw_name(entry.path):
            self.unreadable[number] = _not_an_image(entry.path, data)
            return
        mask = self._read_mask(entry)
        task = DecodeTask(
            number=number,
            data=data,
            file_sha256=hashlib.sha256(data).hexdigest(),
            mask=mask,
            mask_file_sha256="" if mask is None else hashlib.sha256(mask).hexdigest(),
            root=self._root,
        )
        first = self._numbers.setdefault(task.input_key, number)
        if first == number:
            yield task
        else:
            self.copies[number] = first

    def _read_mask(self, entry: SourceEntry) -> bytes | None:
        mask = self._masks.by_image.get(entry.source)
        if mask is not None:
            with self._refused_on_error(mask):
                return mask.read()
        return None

    @contextmanager
    def _refused_on_error(self, entry: SourceEntry) -> Iterator[None]:
        try:
            yield
        except RefusedError as refusal:
            self._sources.refuse(entry.source, refusal)
        except OSError as error:
            reason = _("it cannot be read ({error})", error=error.strerror or error)
            self._sources.refuse(entry.source, RefusedError(RefusalKind.DAMAGED, reason))


def _not_an_image(name: str, data: bytes) -> ImageError:
    if not data:
        return ImageError(FindingKind.CORRUPT, _("it is empty (0 bytes)"))
    if has_raw_name(name):
        return ImageError(FindingKind.UNSUPPORTED, _("it is a raw file of a camera; export it as JPEG or PNG"))
    formats = "PNG, JPEG, WebP, AVIF, HEIC, GIF, BMP, TIFF"
    if known := unsupported_format(name, data[:HEAD_BYTES]):
        reason = _("its format, {name}, is not supported ({formats} are)", name=known, formats=formats)
        return ImageError(FindingKind.UNSUPPORTED, reason)
    if data.startswith(b"version https://git-lfs.github.com/"):
        return ImageError(
            FindingKind.CORRUPT, _("it is a pointer of Git LFS; the image itself is fetched by git lfs pull")
        )
    if _is_web_page(data):
        return ImageError(FindingKind.CORRUPT, _("it is a web page under the name of an image; download it again"))
    if sniff(data[:HEAD_BYTES]) is FileKind.UNSUPPORTED_IMAGE:
        return ImageError(FindingKind.UNSUPPORTED, _("its format is not supported ({formats} are)", formats=formats))
    return ImageError(FindingKind.CORRUPT, _("it has the name of an image, but its content is not one"))


def _is_web_page(data: bytes) -> bool:
    """True for what a site sent instead of the file, such as a page about a quota."""
    return data[:HEAD_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _unsupported(name: str, kind: FileKind, data: bytes, *, is_inside: bool) -> RefusedError:
    """The refusal of a file that is neither an image nor captions."""
    if is_part_name(name):
        return is_one_of_several()
    if document := document_format(name):
        reason = _(
            "it is a document of {program}, which is not opened; save its images as files, and its table as CSV",
            program=document,
        )
    elif kind in READABLE_ARCHIVES or kind is FileKind.UNSUPPORTED_ARCHIVE:
        known = unsupported_format(name, data[:HEAD_BYTES])
        reason = _("{name} archives are not opened; make it a zip, tar or 7z", name=known or kind.name)
    elif kind is FileKind.PARQUET:
        reason = _("it is a Parquet file, which is read only in a folder on the server")
    elif not data:
        reason = _("it is empty (0 bytes)")
    elif data.startswith(PROGRAM_SIGNATURES):
        reason = _("it is a program, or an archive that unpacks itself; make it a plain zip")
    elif not is_inside and _is_web_page(data):
        reason = _("it is a web page, which a site sent instead of the file; download it again")
    elif is_inside:
        reason = _("it is neither an image nor a caption")
    else:
        reason = _("it is neither an image, nor an archive, nor a caption")
    return RefusedError(RefusalKind.UNSUPPORTED, reason)
