"""Pictures and their variants as square pixels for a classifier, computed once for a dataset and a side.

Each is brought to the side by its shorter edge, and its middle is cut out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.buckets import fit
from trainer.dataset.images.augment import METHOD_VERSION, make_variants, may_flip
from trainer.dataset.images.image_opening import open_for
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.report import Image
from trainer.tasks.cache import cache_key, cached
from trainer.tasks.examples import Encoded


def encode_pixels(folder: Path, images: Sequence[Image], side: int, tick: Callable[[], None]) -> list[Encoded]:
    """The pixels of each picture (uint8, [3, side, side]), one row each; `tick` is called for each that is opened.

    Raises:
        DatasetError: a picture of the dataset folder is gone or damaged.
    """

    def versions(image: Image) -> Iterator[PILImage.Image]:
        yield fit(_open(folder, image, side), (side, side))

    key = cache_key(side, [image.pixels_sha256 for image in images])
    return _of_each(folder, "pixels", key, images, versions, tick, rows=1)


def encode_variants(
    folder: Path, images: Sequence[Image], side: int, augmentation: Augmentation, seed: int, tick: Callable[[], None]
) -> list[Encoded]:
    """The variants of each picture, `augmentation.variants` rows each.

    Raises:
        DatasetError: a picture of the dataset folder is gone or damaged.
    """

    def versions(image: Image) -> Iterator[PILImage.Image]:
        content = image.pixels_sha256 or image.source
        picture = _open(folder, image, side)
        return make_variants(
            picture, (side, side), augmentation, caption=_words(image), pixels_sha256=content, seed=seed
        )

    content = [[image.pixels_sha256, may_flip(augmentation, _words(image))] for image in images]
    settings = augmentation.model_dump(mode="json")
    key = cache_key(side, METHOD_VERSION, seed, [settings], [*content])
    return _of_each(folder, "pixel-variants", key, images, versions, tick, rows=augmentation.variants)


def as_picture(pixels_CHW: Tensor) -> PILImage.Image:
    """Pixels as a picture again."""
    return PILImage.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


def _words(image: Image) -> str:
    """What says whether a picture may be mirrored: a class may be named after a side."""
    return f"{image.class_name}, {image.caption}"


def _open(folder: Path, image: Image, side: int) -> PILImage.Image:
    assert image.path is not None, "a kept picture has a file"
    return open_for(folder, image.path, (side, side))


def _of_each(
    folder: Path,
    name: str,
    key: str,
    images: Sequence[Image],
    versions: Callable[[Image], Iterator[PILImage.Image]],
    tick: Callable[[], None],
    *,
    rows: int,
) -> list[Encoded]:
    def pixels_of(image: Image) -> list[Tensor]:
        return [torch.from_numpy(np.array(version)).permute(2, 0, 1) for version in versions(image)]

    def compute() -> Mapping[str, Tensor]:
        pixels: list[Tensor] = []
        # Pillow lets go of the interpreter while it decodes and scales: threads use all cores.
        threads = ThreadPoolExecutor(os.cpu_count())
        try:
            for encoded in threads.map(pixels_of, images):
                for version in encoded:
                    tick()
                    pixels.append(version)
        finally:
            # Told to stop, nobody waits for the rest.
            threads.shutdown(cancel_futures=True)
        return {"pixels_NCHW": torch.stack(pixels)}

    if not images:
        return []
    stored_NCHW = cached(folder / "cache", name, key, compute)["pixels_NCHW"]
    return [Encoded(stored=stored_NCHW, rows=range(place * rows, place * rows + rows)) for place in range(len(images))]
