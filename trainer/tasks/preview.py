"""What augmentation will do to a dataset, drawn before or while it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.dataset.buckets import Size, bucket_for, default_step, fit
from trainer.dataset.images.image_opening import open_for
from trainer.errors import DatasetError
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.report import Image, Split, read_report
from trainer.report.variants import MAX_ROWS, draw_variants
from trainer.tasks.latents import variants_of


def preview_variants(dataset_dir: Path, augmentation: Augmentation, seed: int, out: Path) -> Path:
    """Draw training pictures of a prepared dataset beside their variants, as PNG into `out`.

    The variants are those of a job with this seed, at the resolution that the dataset was prepared for.

    Raises:
        DatasetError: augmentation is off, there is no training picture, or one is gone or damaged.
    """
    report = read_report(dataset_dir)
    images = report.kept(Split.TRAIN)
    if not images or not augmentation.is_on:
        raise DatasetError("There is nothing to show: no training picture, or no augmentation.", "Choose a preset.")
    step = default_step(report.resolution, report.counts.kept)
    sizes = [bucket_for(image.width or 1, image.height or 1, report.resolution, step) for image in images]
    return draw_preview(dataset_dir, images, sizes, augmentation, seed, out)


def draw_preview(
    dataset_dir: Path,
    images: Sequence[Image],
    sizes: Sequence[Size],
    augmentation: Augmentation,
    seed: int,
    out: Path,
) -> Path:
    """The same for given pictures at given sizes, eight of them at most, from all along the list.

    Raises:
        DatasetError: a picture of the dataset folder is gone or damaged.
    """
    rows = []
    for image, size in _spread(list(zip(images, sizes, strict=True))):
        picture = open_for(dataset_dir, image.path or "", size)
        rows.append((fit(picture, size), list(variants_of(picture, image, size, augmentation, seed))))
    return draw_variants(out, rows)


def _spread(items: Sequence[tuple[Image, Size]]) -> list[tuple[Image, Size]]:
    shown = min(MAX_ROWS, len(items))
    return [items[place * len(items) // shown] for place in range(shown)]
