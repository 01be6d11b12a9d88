"""Where the loss of each picture counts, as the loss reads it: one number for each latent pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.buckets import Size
from trainer.dataset.images.augment import METHOD_VERSION, may_flip, move_mask
from trainer.dataset.images.mask_files import fit_mask, open_mask
from trainer.dataset.split.mixing import Mixture
from trainer.errors import BadSpecError
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.report import Image, Split
from trainer.protocol.spec import Spec
from trainer.tasks.cache import cache_key, cached

#: Raise it when the same masks would be read otherwise.
_VERSION = 1


def encode_masks(
    spec: Spec,
    mixture: Mixture,
    sizes: Sequence[Size],
    is_varied: Sequence[bool],
    *,
    vae_scale: int,
    tick: Callable[[], None] = lambda: None,
) -> list[tuple[Tensor, ...] | None]:
    """Masks of each picture of a job, [1, H, W] from 0 to 1: its own, then those of its variants.

    None where all of a picture counts. `sizes` are those that the pictures are trained at, px, and `vae_scale` the
    pixels of a latent pixel's side; `tick` is called before each picture whose masks are made.

    Raises:
        BadSpecError: no picture that is trained on has a mask.
        DatasetError: a mask of a dataset folder is gone or damaged.
    """
    members = mixture.members
    if not any(member.image.mask for member in members if member.split is Split.TRAIN):
        raise BadSpecError(
            "objective.masked is on, and no training picture has a mask.",
            "Add masks (cat.mask.png for cat.png, white where the loss counts, or transparent pictures) and prepare "
            "the dataset again, or set objective.masked to false.",
        )
    masks: list[tuple[Tensor, ...] | None] = [None] * len(members)
    for number, source in enumerate(mixture.sources):
        places = [i for i, member in enumerate(members) if member.source == number and member.image.mask]
        images, image_sizes = [members[i].image for i in places], [sizes[i] for i in places]
        augmentations = [spec.augmentation if is_varied[i] else None for i in places]
        found = _of_folder(source.folder, images, image_sizes, augmentations, spec.training.seed, vae_scale, tick)
        for place, versions in zip(places, found, strict=True):
            masks[place] = versions
    return masks


def load_mask(dataset_dir: Path, image: Image, size: Size, latent_size: Size) -> Tensor:
    """The mask of a picture of a report as it is trained at `size`, [1, H, W] from 0 to 1; white where it has none.

    Both sizes are widths and heights. Cropped as the picture is, and brought to latent pixels by area.

    Raises:
        DatasetError: it is gone or damaged.
    """
    if image.mask is None:
        return torch.ones(1, latent_size[1], latent_size[0])
    return _shares(fit_mask(open_mask(dataset_dir, image.mask), size, latent_size))


def mask_variants(
    dataset_dir: Path, image: Image, size: Size, latent_size: Size, augmentation: Augmentation, seed: int
) -> Iterator[Tensor]:
    """The mask of each variant of a picture, as `load_mask` has its own: moved as `variants_of` moves the picture.

    Raises:
        DatasetError: it is gone or damaged.
    """
    assert image.mask is not None, "pictures without a mask are left out"
    mask, content = open_mask(dataset_dir, image.mask), image.pixels_sha256 or image.source
    for moved in move_mask(mask, size, augmentation, caption=image.caption, pixels_sha256=content, seed=seed):
        yield _shares(fit_mask(moved, size, latent_size))


def _of_folder(
    dataset_dir: Path,
    images: Sequence[Image],
    sizes: Sequence[Size],
    augmentations: Sequence[Augmentation | None],
    seed: int,
    vae_scale: int,
    tick: Callable[[], None],
) -> Iterator[tuple[Tensor, ...]]:
    """Masks of each picture, from the dataset folder's cache or made once (bytes there: a quarter of the numbers)."""
    if not images:
        return

    def compute() -> Mapping[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for place, (image, size, augmentation) in enumerate(zip(images, sizes, augmentations, strict=True)):
            tick()
            cells = size[0] // vae_scale, size[1] // vae_scale
            versions = [load_mask(dataset_dir, image, size, cells)]
            if augmentation is not None:
                versions += mask_variants(dataset_dir, image, size, cells, augmentation, seed)
            rows[str(place)] = (torch.stack(versions) * 255).round().to(torch.uint8)
        return rows

    content = [
        [image.mask, image.pixels_sha256, size, varied and [may_flip(varied, image.caption), varied.model_dump_json()]]
        for image, size, varied in zip(images, sizes, augmentations, strict=True)
    ]
    key = cache_key(_VERSION, METHOD_VERSION, seed, vae_scale, [*content])
    stored = cached(dataset_dir / "cache", "masks", key, compute)
    for place in range(len(images)):
        yield tuple(stored[str(place)].float() / 255)


def _shares(mask: PILImage.Image) -> Tensor:
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255
