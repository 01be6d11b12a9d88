"""Entries become pictures with captions: each file is read once, told by its content, and decoded or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.archive import RefusedError
from trainer.dataset.captions import CaptionError, read_caption
from trainer.dataset.kinds import CAPTION_EXTENSIONS, HEAD_BYTES, Kind, has_caption_name, has_image_name, sniff
from trainer.dataset.limits import Limits
from trainer.dataset.names import same_name_key, stem_key
from trainer.dataset.picture import PictureError
from trainer.dataset.sources import Entry, Sources, class_folders
from trainer.dataset.workers import Job, Outcome, decode_all
from trainer.protocol.report import FindingKind, RefusalKind

#: Phase, done, total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a sidecar says; `problem` where it cannot be read."""

    source: str
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One picture that was handed in."""

    #: From 1, in natural order of the sources; what people call it by.
    number: int
    source: str
    class_name: str
    outcome: Outcome
    caption: Caption | None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where decoded pictures and their thumbnails go."""

    root: Path

    def picture(self, number: int) -> Path:
        return self.root / "images" / f"{number:04}.png"

    def thumbnail(self, number: int) -> Path:
        return self.root / ".thumbnails" / f"{number:04}.png"

    def make(self) -> None:
        self.picture(0).parent.mkdir()
        self.thumbnail(0).parent.mkdir()


def take_in(sources: Sources, folder: Folder, limits: Limits, progress: Progress) -> list[Found]:
    """Read every entry and decode every picture; what is refused is added to `sources.refused`."""
    intake = _Intake(sources, folder, limits, progress)
    outcomes: dict[int, Outcome] = dict(decode_all(intake.jobs(), limits))
    outcomes |= intake.unreadable
    outcomes |= {number: outcomes[first] for number, first in intake.copies.items()}
    classes = class_folders(intake.pictures.values())
    found = [
        Found(
            number=number,
            source=entry.source,
            class_name=classes[entry.source],
            outcome=outcomes[number],
            caption=intake.caption_of(entry),
        )
        for number, entry in intake.pictures.items()
    ]
    intake.refuse_unused_captions()
    return found


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
        self._numbers: dict[bytes, int] = {}
        self._captions: dict[tuple[int, str, str], Caption] = {}
        self._used: set[str] = set()

    def jobs(self) -> Iterator[Job]:
        total = len(self._sources.entries)
        for done, entry in enumerate(self._sources.entries):
            self._progress("reading", done, total)
            try:
                data = entry.read()
                kind = sniff(data[:HEAD_BYTES])
                if kind is Kind.OTHER and has_caption_name(entry.path):
                    self._add_caption(entry, data)
                elif kind is Kind.PICTURE or kind is Kind.FOREIGN_PICTURE or has_image_name(entry.path):
                    yield from self._add_picture(entry, data, kind)
                else:
                    raise _not_taken(kind, is_inside="!" in entry.source, is_empty=not data)
            except RefusedError as refusal:
                self._sources.refuse(entry.source, refusal)
            except OSError as error:
                unread = RefusedError(RefusalKind.DAMAGED, f"it cannot be read ({error.strerror or error})")
                self._sources.refuse(entry.source, unread)
        self._progress("reading", total, total)

    def _add_picture(self, entry: Entry, data: bytes, kind: Kind) -> Iterator[Job]:
        number = len(self.pictures) + 1
        self.pictures[number] = entry
        if kind is not Kind.PICTURE:
            self.unreadable[number] = _not_a_picture(kind, is_empty=not data)
            return
        first = self._numbers.setdefault(hashlib.sha256(data).digest(), number)
        if first != number:
            self.copies[number] = first
            return
        yield Job(
            number=number,
            data=data,
            picture_path=self._folder.picture(number),
            thumbnail_path=self._folder.thumbnail(number),
        )

    def _add_caption(self, entry: Entry, data: bytes) -> None:
        extension = "." + same_name_key(entry.path).rpartition(".")[2]
        key = entry.scope, stem_key(entry.path), extension
        try:
            if len(data) > self._limits.max_caption_bytes:
                raise CaptionError(f"it is longer than {self._limits.max_caption_bytes // 1024} KiB")
            self._captions[key] = Caption(source=entry.source, text=read_caption(data))
        except CaptionError as error:
            self._captions[key] = Caption(source=entry.source, problem=str(error))

    def caption_of(self, entry: Entry) -> Caption | None:
        """The picture's sidecar, `cat.txt` or `cat.png.txt` for `cat.png`: the first that holds words."""
        keys = [(stem, ext) for ext in CAPTION_EXTENSIONS for stem in (stem_key(entry.path), same_name_key(entry.path))]
        held = [caption for stem, ext in keys if (caption := self._captions.get((entry.scope, stem, ext)))]
        self._used |= {caption.source for caption in held}
        return next((caption for caption in held if caption.text), held[0] if held else None)

    def refuse_unused_captions(self) -> None:
        """Report text files that stand beside no picture: often a typing error in a name."""
        for caption in self._captions.values():
            if caption.source not in self._used:
                refusal = RefusedError(RefusalKind.UNSUPPORTED, "it is a text, but no picture has its name")
                self._sources.refuse(caption.source, refusal)


def _not_a_picture(kind: Kind, *, is_empty: bool) -> PictureError:
    if is_empty:
        return PictureError(FindingKind.CORRUPT, "it is empty (0 bytes)")
    if kind is Kind.FOREIGN_PICTURE:
        message = "its format is not read (PNG, JPEG, WebP, AVIF, GIF, BMP and TIFF are)"
        return PictureError(FindingKind.UNSUPPORTED, message)
    return PictureError(FindingKind.CORRUPT, "its content is no picture, whatever its name says")


def _not_taken(kind: Kind, *, is_inside: bool, is_empty: bool) -> RefusedError:
    if kind in (Kind.ZIP, Kind.ARCHIVE):
        if is_inside:
            return RefusedError(RefusalKind.NESTED_ARCHIVE, "it is an archive within an archive, which is not opened")
        return RefusedError(RefusalKind.UNSUPPORTED, "it is an archive of a kind that is not opened; only zip is")
    if is_empty:
        return RefusedError(RefusalKind.UNSUPPORTED, "it is empty (0 bytes)")
    if is_inside:
        return RefusedError(RefusalKind.UNSUPPORTED, "it is neither a picture nor a caption")
    return RefusedError(RefusalKind.UNSUPPORTED, "it is neither a picture, nor a zip archive, nor a caption")
