"""Reads the sources: each file is recognized by its content, and decoded, taken as captions, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.console import Progress
from trainer.dataset.archives import READABLE_ARCHIVES
from trainer.dataset.captions.labels import LabelIndex
from trainer.dataset.dataset_folder import IMAGES, THUMBNAILS
from trainer.dataset.images.decode_workers import CacheLookup, DecodeResult, DecodeTask, decode_all
from trainer.dataset.images.decoding import ImageError
from trainer.dataset.images.image_record import ImagePixels, ImageRecord
from trainer.dataset.images.mask_files import MaskIndex
from trainer.dataset.input_files import (
    HEAD_BYTES,
    FileKind,
    Limits,
    RefusedError,
    SourceEntry,
    has_caption_name,
    has_image_name,
    is_svg,
    sniff,
)
from trainer.dataset.sources.source_readers import Sources
from trainer.protocol.report import Finding, FindingKind, RefusalKind
from trainer.protocol.text import _, ngettext


def read_images(
    sources: Sources, root: Path, limits: Limits, progress: Progress, cached: CacheLookup = lambda task: None
) -> list[ImageRecord]:
    """Read every entry and decode every image that is not cached; refused entries are added to `sources.refused`."""
    for name in (IMAGES, THUMBNAILS):
        (root / name).mkdir()
    reader = _Reader(sources, root, limits, progress)
    results: dict[int, DecodeResult] = dict(decode_all(reader.tasks(), limits, cached=cached))
    results |= reader.unreadable
    results |= {number: results[first] for number, first in reader.copies.items()}
    reader.labels.join(reader.images.values())
    records = [_record(number, entry, results[number], reader.labels) for number, entry in reader.images.items()]
    for source, refusal in reader.labels.unused():
        sources.refuse(source, refusal)
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
        )
    )


class _Reader:
    """Iterates over the entries once; `tasks` fills the attributes."""

    def __init__(self, sources: Sources, root: Path, limits: Limits, progress: Progress) -> None:
        self._sources = sources
        self._root = root
        self._progress = progress
        self._limits = limits
        self._masks = MaskIndex(sources.entries)
        self.labels = LabelIndex(limits)
        #: Entries of the images by number.
        self.images: dict[int, SourceEntry] = {}
        self.unreadable: dict[int, ImageError] = {}
        #: Number of the first of several identical files, which is decoded for all of them.
        self.copies: dict[int, int] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        #: Sources of images beyond the limit.
        self._left_out: list[str] = []

    def tasks(self) -> Iterator[DecodeTask]:
        total = len(self._sources.entries)
        for done, entry in enumerate(self._sources.entries):
            self._progress("reading", done, total)
            if entry.source not in self._masks.sources:
                with self._refused_on_error(entry):
                    yield from self._read(entry)
        for source, reason in self._masks.unused.items():
            self._sources.refuse(source, RefusedError(RefusalKind.UNSUPPORTED, reason))
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
        else:
            raise _unsupported(kind, is_inside="!" in entry.source, is_empty=not data)

    def _add_image(self, entry: SourceEntry, data: bytes, kind: FileKind) -> Iterator[DecodeTask]:
        number = len(self.images) + 1
        self.images[number] = entry
        if kind is not FileKind.IMAGE:
            self.unreadable[number] = _not_an_image(kind, is_empty=not data)
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


def _not_an_image(kind: FileKind, *, is_empty: bool) -> ImageError:
    if is_empty:
        return ImageError(FindingKind.CORRUPT, _("it is empty (0 bytes)"))
    if kind is FileKind.UNSUPPORTED_IMAGE:
        formats = "PNG, JPEG, WebP, AVIF, HEIC, GIF, BMP, TIFF"
        return ImageError(FindingKind.UNSUPPORTED, _("its format is not supported ({formats} are)", formats=formats))
    return ImageError(FindingKind.CORRUPT, _("it has the name of an image, but its content is not one"))


def _unsupported(kind: FileKind, *, is_inside: bool, is_empty: bool) -> RefusedError:
    """The refusal of a file that is neither an image nor captions."""
    is_archive = kind in READABLE_ARCHIVES or kind is FileKind.UNSUPPORTED_ARCHIVE
    if is_archive and is_inside:
        return RefusedError(RefusalKind.NESTED_ARCHIVE, _("it is an archive inside an archive, which is not opened"))
    if is_archive:
        reason = _("it is an archive in an unsupported format; zip, tar and 7z are supported")
    elif kind is FileKind.PARQUET:
        reason = _("it is a Parquet file, which is read only in a folder on the server")
    elif is_empty:
        reason = _("it is empty (0 bytes)")
    elif is_inside:
        reason = _("it is neither an image nor a caption")
    else:
        reason = _("it is neither an image, nor an archive, nor a caption")
    return RefusedError(RefusalKind.UNSUPPORTED, reason)
