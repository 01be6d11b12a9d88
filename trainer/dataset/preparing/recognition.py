"""Decides which entries are read: roles by the layout of their folders, and masks, of which a few are looked at."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from trainer.dataset.dataset_folder import IMAGES, THUMBNAILS
from trainer.dataset.images.decode_workers import DecodeTask, decode_all
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.images.mask_files import is_black_and_white, is_gray
from trainer.dataset.input_files import HEAD_BYTES, FileKind, Limits, RefusedError, SourceEntry, has_image_name, sniff
from trainer.dataset.mask_names import MaskGroup, MaskIndex
from trainer.protocol.edits import Layout
from trainer.protocol.report import FileRole, RecognizedFiles

#: Of each folder of masks, so many are looked at: a class can be called "masks".
_LOOKED_AT = 5
_READ = (FileRole.IMAGE, FileRole.REGULARIZATION)


class Recognition:
    """The entries by role."""

    def __init__(self, entries: Sequence[SourceEntry], root: Path, limits: Limits, layout: Layout) -> None:
        """Find the masks among the entries.

        Args:
            entries: All entries, with the roles that the layout of their folders gives them.
            root: For temporary files.
            limits: For decoding.
            layout: Whether masks are recognized.
        """
        self._others = [entry for entry in entries if entry.role not in _READ]
        #: Images, their texts, and files of other kinds.
        self.entries = [entry for entry in entries if entry.role in _READ]
        self.masks = MaskIndex(self.entries if layout is Layout.AUTO else ())
        if rejected := set(_rejected(self.masks, root, limits)):
            controls = {
                entry.source for group in rejected for entry in self.masks.doubtful[group] if _is_conditioning(group)
            }
            self._others += [_control(entry) for entry in self.entries if entry.source in controls]
            self.entries = [entry for entry in self.entries if entry.source not in controls]
            self.masks = MaskIndex(self.entries, rejected)

    def recognized(self, clutter: int) -> tuple[RecognizedFiles, ...]:
        """All files that are no ordinary images, by role and folder; so many are clutter."""
        counts: Counter[tuple[FileRole, str]] = Counter()
        for entry in (*self._others, *self.entries):
            role = FileRole.MASK if entry.source in self.masks.sources else entry.role
            if role is FileRole.MASK:
                counts[role, f"{entry.source.rpartition('/')[0]}/" if "/" in entry.source else ""] += 1
            elif role is FileRole.REGULARIZATION and not has_image_name(entry.path):
                continue
            elif role is not FileRole.IMAGE:
                above = entry.source.removesuffix(entry.path)
                counts[role, above + entry.role_folder if entry.role_folder else ""] += 1
        if clutter:
            counts[FileRole.CLUTTER, ""] = clutter
        order = list(FileRole)
        rows = sorted(counts.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
        return tuple(RecognizedFiles(role=role, folder=folder, files=files) for (role, folder), files in rows)


def _control(entry: SourceEntry) -> SourceEntry:
    return replace(entry, role=FileRole.CONTROL, role_folder=f"{entry.path.rpartition('/')[0]}/")


def _is_conditioning(group: MaskGroup) -> bool:
    return group[1].rpartition("/")[2].startswith("conditioning")


def _rejected(masks: MaskIndex, root: Path, limits: Limits) -> Iterator[MaskGroup]:
    """Yield the groups of which most of the files that are looked at cannot be masks."""
    groups = {group: _spread(entries, _LOOKED_AT) for group, entries in masks.doubtful.items()}
    looked_at = [(group, entry) for group, entries in groups.items() for entry in entries]
    verdicts: dict[MaskGroup, list[bool]] = {group: [] for group in groups}
    with tempfile.TemporaryDirectory(dir=root, prefix=".masks-") as scratch:
        folder = Path(scratch)
        for name in (IMAGES, THUMBNAILS):
            (folder / name).mkdir()
        # Decoded like images, in the confined processes.
        tasks = _tasks([entry for _group, entry in looked_at], folder)
        for number, result in decode_all(tasks, limits) if looked_at else ():
            if isinstance(result, ImagePixels):
                group, _entry = looked_at[number]
                verdicts[group].append(_can_be_mask(group, result, folder))
    yield from (group for group, verdict in verdicts.items() if 2 * sum(verdict) < len(verdict))


def _spread(entries: Sequence[SourceEntry], most: int) -> Sequence[SourceEntry]:
    return entries[:: max(1, len(entries) // most)][:most]


def _tasks(entries: Sequence[SourceEntry], folder: Path) -> Iterator[DecodeTask]:
    for number, entry in enumerate(entries):
        # What cannot be read is reported when it is read as a mask.
        with suppress(RefusedError, OSError):
            data = entry.read()
            if sniff(data[:HEAD_BYTES]) is FileKind.IMAGE:
                digest = hashlib.sha256(data).hexdigest()
                yield DecodeTask(number=number, data=data, file_sha256=digest, root=folder)


def _can_be_mask(group: MaskGroup, pixels: ImagePixels, folder: Path) -> bool:
    if pixels.mask is not None:
        return True  # a cut-out: its transparency counts
    with Image.open(folder / THUMBNAILS / pixels.thumbnail) as thumbnail:
        # Gray pictures in a folder `conditioning` are depth maps as often as masks.
        return is_black_and_white(thumbnail) if _is_conditioning(group) else is_gray(thumbnail)
