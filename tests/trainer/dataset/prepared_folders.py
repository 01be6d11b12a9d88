"""Writes prepared dataset folders directly, without a preparation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from tests.trainer.dataset.image_files import noise
from trainer.protocol.report import Counts, DatasetReport, Image, Split


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One image of a dataset."""

    image: PILImage.Image
    split: Split = Split.TRAIN
    caption: str = "a cat"
    group: int | None = None
    repeats: int = 1
    is_regularization: bool = False
    has_thumbnail: bool = True


def drawn(seed: int, split: Split = Split.TRAIN, *, size: tuple[int, int] = (96, 96), **fields: object) -> Drawn:
    return Drawn(**{"image": noise(seed, *size), "split": split, **fields})  # type: ignore[arg-type]


def write_dataset(folder: Path, drawings: Sequence[Drawn]) -> Path:
    """Write `report.json`, images and thumbnails, and return the folder."""
    for name in ("images", "thumbnails"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = [_write(folder, number, one) for number, one in enumerate(drawings, start=1)]
    counts = {split: sum(image.split is split for image in images) for split in Split}
    report = DatasetReport(
        digest=folder.name,
        counts=Counts(images=len(images), kept=len(images), dropped=0, refused=0, captioned=len(images), **counts),
        summary="",
        images=tuple(images),
    )
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def _write(folder: Path, number: int, one: Drawn) -> Image:
    path, thumbnail = f"images/{number:04d}.png", f"thumbnails/{number:04d}.jpg"
    one.image.save(folder / path)
    if one.has_thumbnail:
        one.image.save(folder / thumbnail, "JPEG", quality=92)
    return Image(
        source=f"{folder.name}/{number}.png",
        status="kept",
        group=number if one.group is None else one.group,
        split=one.split,
        caption=one.caption,
        repeats=one.repeats,
        is_regularization=one.is_regularization,
        pixels_sha256=hashlib.sha256(one.image.tobytes()).hexdigest(),
        width=one.image.width,
        height=one.image.height,
        path=path,
        thumbnail=thumbnail if one.has_thumbnail else None,
    )
