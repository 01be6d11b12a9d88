"""Images put into aspect-ratio buckets: which ones share a batch, and how each is cropped and scaled to its bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from trainer.protocol.bucket_shapes import Size, bucket_for, cropped_share, nearest_bucket

#: Largest share of an image that is cropped to fill a batch.
MAX_MERGE_CROP = 0.25


def assign_buckets(sizes: Sequence[Size], resolution: int, step: int, batch: int = 1) -> list[Size]:
    """A bucket for each image; the images of buckets with fewer than `batch` move to the nearest other bucket.

    An image that would lose more than `MAX_MERGE_CROP` stays in its small bucket.

    Raises:
        ValueError: The step is larger than the resolution.
    """
    chosen = [bucket_for(width, height, resolution, step) for width, height in sizes]
    settled: set[Size] = set()
    while True:
        counts = Counter(chosen)
        small = [bucket for bucket, count in counts.items() if count < batch and bucket not in settled]
        if not small or len(counts) == 1:
            return chosen
        # The smallest first: its images may fill the next smallest.
        bucket = min(small, key=lambda bucket: (counts[bucket], bucket))
        others = tuple(sorted(other for other in counts if other != bucket))
        settled.add(bucket)
        for index, size in enumerate(sizes):
            if chosen[index] == bucket:
                nearest = nearest_bucket(size, others)
                chosen[index] = nearest if cropped_share(size, nearest) <= MAX_MERGE_CROP else bucket


def fit_to_bucket(image: Image.Image, bucket: Size) -> Image.Image:
    """Crop the middle of an image and scale it to the bucket's size in one Lanczos pass."""
    if image.size == bucket:
        return image.copy()
    return image.resize(bucket, Image.Resampling.LANCZOS, box=crop_box(image.size, bucket), reducing_gap=3.0)


def crop_offset(size: Size, bucket: Size) -> tuple[int, int]:
    """How much of the scaled image `fit_to_bucket` crops at the left and at the top, px."""
    left, top, _right, _bottom = crop_box(size, bucket)
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return round(left * scale), round(top * scale)


def crop_box(size: Size, bucket: Size) -> tuple[float, float, float, float]:
    """The box that `fit_to_bucket` crops: left, top, right and bottom, px."""
    width, height = size
    scale = max(bucket[0] / width, bucket[1] / height)
    crop_width, crop_height = min(width, bucket[0] / scale), min(height, bucket[1] / scale)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height
