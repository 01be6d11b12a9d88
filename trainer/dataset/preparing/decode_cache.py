"""What earlier preparations of the same files found out: decoded pictures are linked, not decoded again.

Each dataset folder holds `decoded.jsonl`, one picture a line. Its first line names what decides how a picture comes out
(the limits, the method); only folders that were made in the same way are used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.dataset.images.decode_workers import Decoded, Job
from trainer.dataset.layout import DECODED_NAME, DROPPED, MASKS, PICTURES, THUMBNAILS
from trainer.dataset.limits import Limits
from trainer.dataset.split.group_split import Shares
from trainer.protocol.report import Split, read_report

#: Raise it when a picture would be decoded, stored or measured otherwise.
_DECODING_VERSION = 2
#: Limits that change how a picture comes out, and not only whether it does.
_DECIDING = ("max_stored_pixels", "checked_side_px", "background")

_DECODED = TypeAdapter(Decoded)


class Earlier:
    """Decoded pictures of earlier dataset folders, by the SHA-256 of the files that they came from."""

    def __init__(self, folders: Sequence[Path], limits: Limits) -> None:
        self._pictures: dict[tuple[str, str], tuple[Path, Decoded]] = {}
        for folder in folders:
            for decoded in _read(folder, limits):
                self._pictures.setdefault(decoded.came_as, (folder, decoded))

    def put_in_place(self, job: Job) -> Decoded | None:
        """Link what is known of a job's file to where the job wants it; None if it must be decoded."""
        if (known := self._pictures.get((job.file_sha256, job.mask_file_sha256))) is None:
            return None
        folder, decoded = known
        picture = job.picture_path.with_suffix(Path(decoded.picture).suffix)
        stored = next(
            (path for kind in (PICTURES, DROPPED) if (path := folder / kind / decoded.picture).is_file()), None
        )
        thumbnail = folder / THUMBNAILS / decoded.thumbnail
        mask = folder / MASKS / decoded.mask if decoded.mask else None
        if stored is None or not thumbnail.is_file() or (mask is not None and not mask.is_file()):
            return None
        _link(stored, picture)
        _link(thumbnail, job.thumbnail_path)
        if mask is not None and not (target := job.mask_folder / mask.name).exists():
            job.mask_folder.mkdir(exist_ok=True)
            _link(mask, target)
        return replace(decoded, picture=picture.name, thumbnail=job.thumbnail_path.name)


def known_sides(folders: Iterable[Path], shares: Shares) -> dict[str, Split]:
    """Which split each picture was in, by pixel hash; the first folder that knows a picture decides.

    A folder that was split by other shares or another seed has no say, nor has one that was too small to be split.
    """
    sides: dict[str, Split] = {}
    for folder in folders:
        try:
            report = read_report(folder)
        except (OSError, ValidationError):
            continue
        if (report.shares, report.split_seed) != ((shares.validation, shares.test), shares.seed):
            continue
        if report.counts.train == report.counts.kept:
            continue
        for image in report.images:
            if image.split is not None and image.pixels_sha256 is not None:
                sides.setdefault(image.pixels_sha256, image.split)
    return sides


def write_decoded(folder: Path, pictures: Iterable[Decoded], limits: Limits) -> None:
    """Leave for the next preparation what was found out in this one."""
    with (folder / DECODED_NAME).open("wb") as file:
        file.write(json.dumps(_made_by(limits)).encode() + b"\n")
        for decoded in pictures:
            file.write(_DECODED.dump_json(decoded) + b"\n")


def _read(folder: Path, limits: Limits) -> Iterable[Decoded]:
    """What a folder holds; nothing if it holds nothing of use: everything can be decoded again."""
    try:
        with (folder / DECODED_NAME).open("rb") as file:
            if json.loads(next(file, b"null")) != _made_by(limits):
                return
            for line in file:
                yield _DECODED.validate_json(line)
    except (OSError, ValueError):
        return


def _made_by(limits: Limits) -> Mapping[str, object]:
    values = json.loads(json.dumps(asdict(limits)))
    return {"version": _DECODING_VERSION} | {name: values[name] for name in _DECIDING}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
