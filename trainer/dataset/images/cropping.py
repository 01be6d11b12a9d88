"""Crops images to the part that a person chose; the whole image stays aside, for another crop and for what it is like.

Hashes, measures and duplicates are of the whole image: a crop moves no image to another split, and decisions about it
stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.dataset.dataset_folder import IMAGES, MASKS, THUMBNAILS, UNCROPPED, UNCROPPED_THUMBNAILS
from trainer.dataset.images.decode_workers import THUMBNAIL_PX
from trainer.dataset.images.decoding import open_for_bucket
from trainer.dataset.images.image_record import CroppedFiles, ImagePixels, ImageRecord
from trainer.dataset.images.mask_files import open_mask, store_mask
from trainer.dataset.input_files import Limits
from trainer.protocol.edits import Crop
from trainer.protocol.report import Finding, FindingKind
from trainer.protocol.text import _

#: As the decoders store: a JPEG at a quality that no model can tell from the original, all else without loss.
_HOW: Mapping[str, Mapping[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".png": {"compress_level": 1},
    ".webp": {"lossless": True},
}


def crop_images(
    records: Sequence[ImageRecord], root: Path, crops: Mapping[str, Crop], limits: Limits
) -> list[ImageRecord]:
    """Return the records, in order; the kept ones with a crop have their files in `root` replaced.

    Args:
        records: Assessed images.
        root: The dataset folder with their files.
        crops: By pixel hash.
        limits: For the size of what is stored.

    Raises:
        UnreadableFilesError: A stored file is damaged.
    """

    def cropped(record: ImageRecord) -> ImageRecord:
        crop = crops.get(record.pixels.pixels_sha256) if record.pixels is not None and record.is_kept else None
        return record if crop is None else _crop(record, root, crop, limits)

    return [cropped(record) for record in records]


def _crop(record: ImageRecord, root: Path, crop: Crop, limits: Limits) -> ImageRecord:
    pixels = record.pixels
    assert pixels is not None, "a kept image has pixels"
    (root / UNCROPPED_THUMBNAILS).mkdir(parents=True, exist_ok=True)
    (root / IMAGES / pixels.image).rename(root / UNCROPPED / pixels.image)
    (root / THUMBNAILS / pixels.thumbnail).rename(root / UNCROPPED_THUMBNAILS / pixels.thumbnail)
    part = _part(root, pixels, crop, limits)
    part.save(root / IMAGES / pixels.image, **_HOW[Path(pixels.image).suffix])
    part.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    part.save(root / THUMBNAILS / pixels.thumbnail, "JPEG", quality=92, subsampling=0)
    width, height = crop.size(pixels.width, pixels.height)
    mask, finding = _crop_mask(root, pixels.mask, crop)
    files = CroppedFiles(crop=crop, width=width, height=height, mask=mask)
    return replace(record, cropped=files).with_findings(*finding)


def _part(root: Path, pixels: ImagePixels, crop: Crop, limits: Limits) -> Image.Image:
    """The chosen part, no larger than a whole image is stored; of a large JPEG only what it needs is decoded."""
    width, height = crop.size(pixels.width, pixels.height)
    share = min(1.0, (limits.max_stored_pixels / (width * height)) ** 0.5)
    wanted = max(1, round(width * share)), max(1, round(height * share))
    whole_size = max(1, round(pixels.width * share)), max(1, round(pixels.height * share))
    whole = open_for_bucket(root, f"{UNCROPPED}/{pixels.image}", whole_size)
    part = whole.crop(crop.box(*whole.size))
    fits = part.width * part.height <= limits.max_stored_pixels
    return part if fits else part.resize(wanted, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _crop_mask(root: Path, mask: str | None, crop: Crop) -> tuple[str | None, tuple[Finding, ...]]:
    if mask is None:
        return None, ()
    whole = open_mask(root, f"{MASKS}/{mask}")
    part = whole.crop(crop.box(*whole.size))
    if part.getextrema()[1] == 0:
        message = _("within its crop its mask is entirely black and was ignored: the whole crop counts")
        return None, (Finding(kind=FindingKind.MASK, action="kept", message=message),)
    return store_mask(part, root / MASKS), ()
