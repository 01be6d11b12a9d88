"""Reuses earlier preparations: decoded images are linked instead of decoded again, and images keep their splits.

Each dataset folder has a file `decoded.jsonl`: a line that identifies the decoding method and the limits that affect
its result, then one image a line. A folder that was prepared with another method or other limits is not reused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

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
from trainer.dataset.input_files import Limits
from trainer.dataset.split.group_split import Shares
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import Split

#: Raise it when an image would be decoded, stored or measured differently.
_DECODING_VERSION = 8
#: Limits that change how an image is decoded, and not only whether.
_DECODING_LIMITS = ("max_stored_pixels", "checked_side_px", "background")

_PIXELS = TypeAdapter(ImagePixels)


class DecodeCache:
    """Decoded images of earlier dataset folders, by the hashes of their input files."""

    def __init__(self, folders: Sequence[Path], limits: Limits) -> None:
        self._images: dict[tuple[str, str], tuple[Path, ImagePixels]] = {}
        for folder in folders:
            for pixels in _read_decoded(folder, limits):
                self._images.setdefault(pixels.input_key, (folder, pixels))

    def __len__(self) -> int:
        return len(self._images)

    def link(self, task: DecodeTask) -> ImagePixels | None:
        """Link the cached files of a task to its paths; None if it must be decoded."""
        if (cached := self._images.get(task.input_key)) is None:
            return None
        folder, pixels = cached
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


def write_decoded(folder: Path, images: Iterable[ImagePixels], limits: Limits) -> None:
    """Write the cache of this preparation; identical input files were decoded once and are written once."""
    with (folder / DECODED_NAME).open("wb") as file:
        file.write(json.dumps(_cache_key(limits)).encode() + b"\n")
        for pixels in {pixels.input_key: pixels for pixels in images}.values():
            file.write(_PIXELS.dump_json(pixels) + b"\n")


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


def _read_decoded(folder: Path, limits: Limits) -> Iterable[ImagePixels]:
    """The cached images of a folder, up to the first damaged line: the others are decoded again."""
    try:
        with (folder / DECODED_NAME).open("rb") as file:
            if json.loads(next(file, b"null")) != _cache_key(limits):
                return
            for line in file:
                yield _PIXELS.validate_json(line)
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
