"""Reuses earlier preparations: decoded images are linked instead of decoded again, and images keep their splits.

Each dataset folder has a file `decoded.jsonl`: a line that identifies the decoding method and the limits that affect
its result, then one image a line. A folder that was prepared with another method or other limits is not reused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from trainer.dataset.dataset_folder import (
    DECODED_NAME,
    DROPPED,
    IMAGES,
    MASKS,
    THUMBNAILS,
    UNCROPPED,
    UNCROPPED_THUMBNAILS,
)
from trainer.dataset.images.decode_workers import DecodeTask
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.images.perceptual_hash import NO_HASHES
from trainer.dataset.input_files import Limits
from trainer.dataset.split.group_split import Shares
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import Split

#: Raise it when an image would be decoded, stored or measured differently.
_DECODING_VERSION = 10
#: Limits that change how an image is decoded, and not only whether.
_DECODING_LIMITS = ("max_stored_pixels", "checked_side_px", "background")

_PIXELS = TypeAdapter(ImagePixels)


class DecodedImages:
    """The decoded images of a preparation in `decoded.jsonl`: most of what was measured is in memory only when used."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._file = (folder / DECODED_NAME).open("w+b")
        self._file.write(json.dumps(_cache_key(limits)).encode() + b"\n")
        #: By file name of the stored image, which copies of one file share.
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def add(self, pixels: ImagePixels) -> ImagePixels:
        """Write a decoded image; return it without what finds others that are like it, four fifths of its memory."""
        self._offsets[pixels.image] = self._file.seek(0, os.SEEK_END)
        self._file.write(_PIXELS.dump_json(pixels) + b"\n")
        return replace(pixels, hashes=NO_HASHES, feature=b"")

    def read(self, pixels: ImagePixels) -> ImagePixels:
        """Return an image as it was added; 0.03 ms."""
        self._file.seek(self._offsets[pixels.image])
        return _PIXELS.validate_json(self._file.readline())


class DecodeCache:
    """Decoded images of earlier dataset folders, by the hashes of their input files."""

    def __init__(self, folders: Sequence[Path], limits: Limits) -> None:
        #: Folder, and position in its file.
        self._images: dict[tuple[str, str], tuple[Path, int]] = {}
        for folder in folders:
            for position, pixels in _read_decoded(folder, limits):
                self._images.setdefault(pixels.input_key, (folder, position))

    def __len__(self) -> int:
        return len(self._images)

    def link(self, task: DecodeTask) -> ImagePixels | None:
        """Link the cached files of a task to its paths; None if it must be decoded."""
        if (cached := self._images.get(task.input_key)) is None:
            return None
        folder, position = cached
        with (folder / DECODED_NAME).open("rb") as file:
            file.seek(position)
            pixels = _PIXELS.validate_json(file.readline())
        image = task.image_path.with_suffix(Path(pixels.image).suffix)
        # Of a cropped image the whole one: what is under `IMAGES` is a part of it.
        stored = _first_file(folder / name / pixels.image for name in (UNCROPPED, IMAGES, DROPPED))
        thumbnail = _first_file(folder / name / pixels.thumbnail for name in (UNCROPPED_THUMBNAILS, THUMBNAILS))
        mask = folder / MASKS / pixels.mask if pixels.mask else None
        if stored is None or thumbnail is None or (mask is not None and not mask.is_file()):
            return None
        _link(stored, image)
        _link(thumbnail, task.thumbnail_path)
        if mask is not None and not (target := task.root / MASKS / mask.name).exists():
            target.parent.mkdir(exist_ok=True)
            _link(mask, target)
        return replace(pixels, image=image.name, thumbnail=task.thumbnail_path.name)


def _first_file(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def previous_splits(folders: Iterable[Path], shares: Shares) -> dict[str, Split]:
    """The split of each image in earlier dataset folders, by pixel hash; the first folder with an image counts.

    Folders that were split by other shares or another seed, or were too small to be split, are ignored.
    """
    splits: dict[str, Split] = {}
    for folder in folders:
        try:
            report = read_report(folder)
        except (OSError, ValidationError):
            continue
        has_same_shares = (report.shares, report.split_seed) == ((shares.validation, shares.test), shares.seed)
        if has_same_shares and report.counts.train < report.counts.kept:
            for image in report.images:
                if image.split and image.pixels_sha256 and not image.is_regularization:
                    splits.setdefault(image.pixels_sha256, image.split)
    return splits


def _read_decoded(folder: Path, limits: Limits) -> Iterator[tuple[int, ImagePixels]]:
    """The cached images of a folder and their positions, up to the first damaged line: the others are decoded again."""
    try:
        with (folder / DECODED_NAME).open("rb") as file:
            line = file.readline()
            if json.loads(line or b"null") != _cache_key(limits):
                return
            position = len(line)
            for line in file:
                yield position, _PIXELS.validate_json(line)
                position += len(line)
    except (OSError, ValueError):
        return


def _cache_key(limits: Limits) -> Mapping[str, object]:
    values = json.loads(json.dumps(asdict(limits)))
    return {"version": _DECODING_VERSION} | {name: values[name] for name in _DECODING_LIMITS}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
