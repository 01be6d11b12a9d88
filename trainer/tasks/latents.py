"""Pictures and their variants as latents, computed once for a dataset and a base, one dataset folder at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.buckets import Size, fit
from trainer.dataset.images.augment import METHOD_VERSION, make_variants, may_flip
from trainer.dataset.images.image_opening import open_for
from trainer.models.base import BaseModel
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.report import Image
from trainer.tasks.cache import cache_key, cached
from trainer.tasks.examples import Encoded


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A base whose VAE is to encode pictures of dataset folders, unless their caches hold the latents already."""

    base: BaseModel
    device: torch.device
    #: Of the weights that the latents depend on.
    fingerprint: str

    def pictures(
        self, dataset_dir: Path, images: Sequence[Image], sizes: Sequence[Size], tick: Callable[[], None]
    ) -> list[Encoded]:
        """Latents of each picture, one row each; `tick` is called before each that is encoded.

        Raises:
            DatasetError: a picture of the dataset folder is gone or damaged.
        """
        content = [[image.pixels_sha256, size] for image, size in zip(images, sizes, strict=True)]

        def versions(image: Image, size: Size) -> Iterator[PILImage.Image]:
            yield fit(_open(dataset_dir, image, size), size)

        key = cache_key(self.fingerprint, [*content])
        return self._of_each(dataset_dir, "latents", key, images, sizes, versions, tick, rows=1)

    def variants(
        self,
        dataset_dir: Path,
        images: Sequence[Image],
        sizes: Sequence[Size],
        augmentation: Augmentation,
        seed: int,
        tick: Callable[[], None],
    ) -> list[Encoded]:
        """Latents of the variants of each picture, `augmentation.variants` rows each.

        Raises:
            DatasetError: a picture of the dataset folder is gone or damaged.
        """
        content = [
            [image.pixels_sha256, size, may_flip(augmentation, image.caption)]
            for image, size in zip(images, sizes, strict=True)
        ]
        settings = augmentation.model_dump(mode="json")

        def versions(image: Image, size: Size) -> Iterator[PILImage.Image]:
            return variants_of(_open(dataset_dir, image, size), image, size, augmentation, seed)

        key = cache_key(self.fingerprint, METHOD_VERSION, seed, [settings], [*content])
        return self._of_each(dataset_dir, "variants", key, images, sizes, versions, tick, rows=augmentation.variants)

    def _of_each(
        self,
        dataset_dir: Path,
        name: str,
        key: str,
        images: Sequence[Image],
        sizes: Sequence[Size],
        versions: Callable[[Image, Size], Iterator[PILImage.Image]],
        tick: Callable[[], None],
        *,
        rows: int,
    ) -> list[Encoded]:
        def compute() -> Mapping[str, Tensor]:
            self.base.vae.to(self.device)
            latents: dict[str, list[Tensor]] = {}
            for image, size in zip(images, sizes, strict=True):
                for version in versions(image, size):
                    tick()
                    latents.setdefault(_name_of(size), []).append(self._encode(version))
            return {size: torch.stack(items) for size, items in latents.items()}

        stored = cached(dataset_dir / "cache", name, key, compute)
        return list(_places(stored, sizes, rows))

    @torch.no_grad()
    def _encode(self, picture: PILImage.Image) -> Tensor:
        """The mean of the VAE's posterior, as the denoiser expects it, [C, H, W]."""
        pixels_HWC = np.asarray(picture, dtype=np.float32) / 127.5 - 1
        pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].to(self.device)
        return self.base.encode_pixels(pixels_1CHW)[0].cpu()


def variants_of(
    picture: PILImage.Image, image: Image, size: Size, augmentation: Augmentation, seed: int
) -> Iterator[PILImage.Image]:
    """The variants of a picture of a report, at its bucket's size."""
    content = image.pixels_sha256 or image.source
    return make_variants(picture, size, augmentation, caption=image.caption, pixels_sha256=content, seed=seed)


def _open(dataset_dir: Path, image: Image, size: Size) -> PILImage.Image:
    assert image.path is not None, "a kept picture has a file"
    return open_for(dataset_dir, image.path, size)


def _name_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _places(stored: Mapping[str, Tensor], sizes: Sequence[Size], rows: int) -> Iterator[Encoded]:
    """Pictures of a size lie in one tensor, in their order, `rows` rows each."""
    next_row: dict[Size, int] = {}
    for size in sizes:
        start = next_row.get(size, 0)
        next_row[size] = start + rows
        yield Encoded(stored=stored[_name_of(size)], rows=range(start, start + rows))
