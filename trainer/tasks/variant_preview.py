"""Draws what augmentation makes of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.dataset.buckets import fit_to_bucket
from trainer.dataset.images.decoding import UnreadableFiles, open_for_bucket
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import Image, Split
from trainer.report.gallery import MAX_ROWS, draw_variants
from trainer.tasks.encoding_cache import variants_of


def preview_variants(dataset_dir: Path, augmentation: Augmentation, seed: int, out: Path) -> Path:
    """Draw training images of a prepared dataset beside their variants, as a PNG.

    The variants are those of a job with this seed, at the first resolution that the dataset was prepared for.

    Raises:
        DatasetError: augmentation is off, there is no training image, or one is missing or damaged.
    """
    report = read_report(dataset_dir)
    kept = [image for image in report.images if image.status == "kept"]
    fits = zip(kept, report.fit(report.resolutions[0]).images, strict=True)
    fitted = [(image, fit.bucket) for image, fit in fits if image.split is Split.TRAIN]
    if not fitted or not augmentation.is_on:
        raise DatasetError("There is nothing to draw: no training image, or no augmentation.", "Choose a preset.")
    images, sizes = zip(*fitted, strict=True)
    return draw_preview(dataset_dir, images, sizes, augmentation, seed, out)


def draw_preview(
    dataset_dir: Path,
    images: Sequence[Image],
    sizes: Sequence[Size],
    augmentation: Augmentation,
    seed: int,
    out: Path,
) -> Path:
    """Draw at most eight of the given images, evenly spread over the list, beside their variants.

    Raises:
        UnreadableFilesError: all of them are missing or damaged.
    """
    rows = []
    unreadable = UnreadableFiles()
    for image, size in _spread(list(zip(images, sizes, strict=True))):
        with unreadable.collected():
            pil_image = open_for_bucket(dataset_dir, image.path or "", size)
            rows.append((fit_to_bucket(pil_image, size), list(variants_of(pil_image, image, size, augmentation, seed))))
    if not rows:
        unreadable.require_none()
    return draw_variants(out, rows)


def _spread(items: Sequence[tuple[Image, Size]]) -> list[tuple[Image, Size]]:
    shown = min(MAX_ROWS, len(items))
    return [items[index * len(items) // shown] for index in range(shown)]
