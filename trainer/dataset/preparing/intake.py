"""Entries become pictures with captions: each file is read once, told by its content, and decoded or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.archives import OPENED, RefusedError
from trainer.dataset.captions.labels import Caption, Labels
from trainer.dataset.entry import Entry
from trainer.dataset.images.decode_workers import Job, Known, Outcome, decode_all
from trainer.dataset.images.decoding import PictureError
from trainer.dataset.images.mask_files import find_masks
from trainer.dataset.kinds import HEAD_BYTES, Kind, has_caption_name, has_image_name, sniff
from trainer.dataset.layout import MASKS, PICTURES, THUMBNAILS
from trainer.dataset.limits import Limits
from trainer.dataset.progress import Progress
from trainer.dataset.sources.source_readers import Sources
from trainer.protocol.report import FindingKind, RefusalKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One picture that was handed in."""

    #: From 1, in natural order of the sources; what people call it by.
    number: int
    source: str
    class_name: str
    #: How often it is seen for each time that another is (kohya's `10_name`).
    repeats: int = 1
    outcome: Outcome
    caption: Caption | None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where decoded pictures and their thumbnails go."""

    root: Path

    def picture(self, number: int) -> Path:
        """Without an extension, which the picture decides."""
        return self.root / PICTURES / f"{number:04}"

    def thumbnail(self, number: int) -> Path:
        return self.root / THUMBNAILS / f"{number:04}.jpg"

    @property
    def masks(self) -> Path:
        """Made when there is a mask."""
        return self.root / MASKS

    def make(self) -> None:
        self.picture(0).parent.mkdir()
        self.thumbnail(0).parent.mkdir()


def take_in(
    sources: Sources, folder: Folder, limits: Limits, progress: Progress, known: Known = lambda job: None
) -> list[Found]:
    """Read every entry and decode every picture that `known` does not; adds to `sources.refused` what is refused."""
    intake = _Intake(sources, folder, limits, progress)
    outcomes: dict[int, Outcome] = dict(decode_all(intake.jobs(), limits, known=known))
    outcomes |= intake.unreadable
    outcomes |= {number: outcomes[first] for number, first in intake.copies.items()}
    intake.labels.join(intake.pictures.values())
    found = [_found(number, entry, outcomes[number], intake.labels) for number, entry in intake.pictures.items()]
    for source, refusal in intake.labels.unused():
        sources.refuse(source, refusal)
    return found


def _found(number: int, entry: Entry, outcome: Outcome, labels: Labels) -> Found:
    label = labels.of(entry)
    return Found(
        number=number,
        source=entry.source,
        class_name=label.class_name,
        repeats=label.repeats,
        outcome=outcome,
        caption=label.caption,
    )


class _Intake:
    """What is known after each entry; `jobs` fills it."""

    def __init__(self, sources: Sources, folder: Folder, limits: Limits, progress: Progress) -> None:
        self._sources = sources
        self._folder = folder
        self._limits = limits
        self._progress = progress
        self.pictures: dict[int, Entry] = {}
        self.unreadable: dict[int, PictureError] = {}
        #: Files that are equal byte for byte need decoding once.
        self.copies: dict[int, int] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._masks = find_masks(sources.entries)
        self.labels = Labels(limits)

    def jobs(self) -> Iterator[Job]:
        total = len(self._sources.entries)
        for done, entry in enumerate(self._sources.entries):
            self._progress("reading", done, total)
            if entry.source in self._masks.sources:
                continue
            with self._refusing(entry):
                data = entry.read()
                kind = sniff(data[:HEAD_BYTES])
                if kind is Kind.OTHER and has_caption_name(entry.path) and entry.told is None:
                    self.labels.add(entry, data)
                elif kind in (Kind.PICTURE, Kind.FOREIGN_PICTURE) or has_image_name(entry.path) or entry.told:
                    yield from self._add_picture(entry, data, kind)
                else:
                    raise _not_taken(kind, is_inside="!" in entry.source, is_empty=not data)
        for source, reason in self._masks.unused.items():
            self._sources.refuse(source, RefusedError(RefusalKind.UNSUPPORTED, reason))
        self._progress("reading", total, total)

    @contextmanager
    def _refusing(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except RefusedError as refusal:
            self._sources.refuse(entry.source, refusal)
        except OSError as error:
            unread = RefusedError(RefusalKind.DAMAGED, f"it cannot be read ({error.strerror or error})")
            self._sources.refuse(entry.source, unread)

    def _mask(self, entry: Entry) -> bytes | None:
        """The mask file of a picture, if it has one that can be read."""
        mask = self._masks.of_picture.get(entry.source)
        if mask is not None:
            with self._refusing(mask):
                return mask.read()
        return None

    def _add_picture(self, entry: Entry, data: bytes, kind: Kind) -> Iterator[Job]:
        number = len(self.pictures) + 1
        self.pictures[number] = entry
        if kind is not Kind.PICTURE:
            self.unreadable[number] = _not_a_picture(kind, is_empty=not data)
            return
        mask = self._mask(entry)
        file_sha256 = hashlib.sha256(data).hexdigest()
        mask_file_sha256 = "" if mask is None else hashlib.sha256(mask).hexdigest()
        first = self._numbers.setdefault((file_sha256, mask_file_sha256), number)
        if first != number:
            self.copies[number] = first
            return
        yield Job(
            number=number,
            data=data,
            file_sha256=file_sha256,
            picture_path=self._folder.picture(number),
            thumbnail_path=self._folder.thumbnail(number),
            mask_folder=self._folder.masks,
            mask=mask,
            mask_file_sha256=mask_file_sha256,
        )


def _not_a_picture(kind: Kind, *, is_empty: bool) -> PictureError:
    if is_empty:
        return PictureError(FindingKind.CORRUPT, "it is empty (0 bytes)")
    if kind is Kind.FOREIGN_PICTURE:
        message = "its format is not read (PNG, JPEG, WebP, AVIF, HEIC, GIF, BMP and TIFF are)"
        return PictureError(FindingKind.UNSUPPORTED, message)
    return PictureError(FindingKind.CORRUPT, "its content is no picture, whatever its name says")


def _not_taken(kind: Kind, *, is_inside: bool, is_empty: bool) -> RefusedError:
    if kind in OPENED or kind is Kind.ARCHIVE:
        if is_inside:
            return RefusedError(RefusalKind.NESTED_ARCHIVE, "it is an archive within an archive, which is not opened")
        return RefusedError(
            RefusalKind.UNSUPPORTED, "it is an archive of a kind that is not opened; zip, tar and 7z are"
        )
    if kind is Kind.PARQUET:
        return RefusedError(
            RefusalKind.UNSUPPORTED, "it is a Parquet file, which is read only in a folder on the server"
        )
    if is_empty:
        return RefusedError(RefusalKind.UNSUPPORTED, "it is empty (0 bytes)")
    if is_inside:
        return RefusedError(RefusalKind.UNSUPPORTED, "it is neither a picture nor a caption")
    return RefusedError(RefusalKind.UNSUPPORTED, "it is neither a picture, nor an archive, nor a caption")
