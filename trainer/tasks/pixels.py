"""Encodes images as square pixels for a classifier, and loss masks for diffusion; cached per dataset.

A square is made by scaling the shorter side to the resolution and cropping the center.
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

from trainer.dataset.buckets import fit_to_bucket
from trainer.dataset.images.augment import METHOD_VERSION, make_variants, may_flip, move_mask
from trainer.dataset.images.decoding import UnreadableFiles, open_for_bucket
from trainer.dataset.images.mask_files import fit_mask, open_mask
from trainer.dataset.split.mixing import Mixture
from trainer.errors import BadSpecError
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import Image, Split
from trainer.protocol.spec import Spec
from trainer.tasks.examples import Encoded
from trainer.tasks.tensor_cache import cache_key, cached


def encode_pixels(folder: Path, images: Sequence[Image], side: int, tick: Callable[[], None]) -> list[Encoded]:
    """The pixels of each image (uint8, [3, side, side]), one row each; calls `tick` per image.

    Raises:
        UnreadableFilesError: images are missing or damaged.
    """

    def versions(image: Image) -> Iterator[PILImage.Image]:
        yield fit_to_bucket(_open(folder, image, side), (side, side))

    key = cache_key(side, [image.pixels_sha256 for image in images])
    return _of_each(folder, "pixels", key, images, versions, tick, rows=1)


def encode_variants(
    folder: Path, images: Sequence[Image], side: int, augmentation: Augmentation, seed: int, tick: Callable[[], None]
) -> list[Encoded]:
    """The pixels of each image's variants, `augmentation.variants` rows each.

    Raises:
        UnreadableFilesError: images are missing or damaged.
    """

    def versions(image: Image) -> Iterator[PILImage.Image]:
        content = image.pixels_sha256 or image.source
        pil_image = _open(folder, image, side)
        return make_variants(
            pil_image, (side, side), augmentation, caption=_words(image), pixels_sha256=content, seed=seed
        )

    content = [[image.pixels_sha256, may_flip(augmentation, _words(image))] for image in images]
    settings = augmentation.model_dump(mode="json")
    key = cache_key(side, METHOD_VERSION, seed, [settings], [*content])
    return _of_each(folder, "pixel-variants", key, images, versions, tick, rows=augmentation.variants)


def as_image(pixels_CHW: Tensor) -> PILImage.Image:
    """Convert pixels (uint8) to a PIL image."""
    return PILImage.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


def _words(image: Image) -> str:
    """The words that decide whether an image may be mirrored; a class may be named "left hand"."""
    return f"{image.class_name}, {image.all_captions}"


def _open(folder: Path, image: Image, side: int) -> PILImage.Image:
    assert image.path is not None, "a kept image has a file"
    return open_for_bucket(folder, image.path, (side, side))


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
    unreadable = UnreadableFiles()

    def pixels_of(image: Image) -> list[Tensor]:
        with unreadable.collected():
            return [torch.from_numpy(np.array(version)).permute(2, 0, 1) for version in versions(image)]
        return []

    def compute() -> Mapping[str, Tensor]:
        pixels: list[Tensor] = []
        # Pillow releases the GIL while it decodes and scales, so threads use all cores.
        threads = ThreadPoolExecutor(os.cpu_count())
        try:
            for encoded in threads.map(pixels_of, images):
                for version in encoded:
                    tick()
                    pixels.append(version)
        finally:
            # On a stop request, do not wait for the rest.
            threads.shutdown(cancel_futures=True)
        unreadable.require_none()
        return {"pixels_NCHW": torch.stack(pixels)}

    if not images:
        return []
    stored_NCHW = cached(folder / "cache", name, key, compute)["pixels_NCHW"]
    return [Encoded(stored=stored_NCHW, rows=range(index * rows, index * rows + rows)) for index in range(len(images))]


#: Part of the cache key; increment it when masks are computed differently.
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
    """Loss masks of each image of a job, [1, H, W] from 0 to 1: of the image, then of its variants; None without a
    mask.

    Args:
        sizes: Widths and heights in training, px.
        vae_scale: Pixels per latent pixel along a side.
        tick: Called before each image whose masks are computed.

    Raises:
        BadSpecError: no training image has a mask.
        UnreadableFilesError: masks are missing or damaged.
    """
    members = mixture.members
    if not any(member.image.mask for member in members if member.split is Split.TRAIN):
        raise BadSpecError(
            "objective.masked is on, but no training image has a mask.",
            "Add masks (cat.mask.png for cat.png, white where the loss counts, or transparent images) and prepare "
            "the dataset again, or set objective.masked to false.",
        )
    masks: list[tuple[Tensor, ...] | None] = [None] * len(members)
    for number, source in enumerate(mixture.sources):
        indices = [i for i, member in enumerate(members) if member.source == number and member.image.mask]
        images, image_sizes = [members[i].image for i in indices], [sizes[i] for i in indices]
        augmentations = [spec.augmentation if is_varied[i] else None for i in indices]
        found = _of_folder(source.folder, images, image_sizes, augmentations, spec.training.seed, vae_scale, tick)
        for index, versions in zip(indices, found, strict=True):
            masks[index] = versions
    return masks


def load_mask(dataset_dir: Path, image: Image, size: Size, latent_size: Size) -> Tensor:
    """The mask of an image trained at `size` (width, height), [1, H, W] from 0 to 1; all ones without a mask.

    It is cropped like the image, and scaled to latent pixels by area.

    Raises:
        UnreadableFilesError: it is missing or damaged.
    """
    if image.mask is None:
        return torch.ones(1, latent_size[1], latent_size[0])
    return _shares(fit_mask(open_mask(dataset_dir, image.mask), size, latent_size))


def mask_variants(
    dataset_dir: Path, image: Image, size: Size, latent_size: Size, augmentation: Augmentation, seed: int
) -> Iterator[Tensor]:
    """The mask of each variant of an image, moved like the variant's pixels; otherwise as `load_mask`.

    Raises:
        UnreadableFilesError: it is missing or damaged.
    """
    assert image.mask is not None, "images without a mask are left out"
    mask, content = open_mask(dataset_dir, image.mask), image.pixels_sha256 or image.source
    for moved in move_mask(mask, size, augmentation, caption=image.all_captions, pixels_sha256=content, seed=seed):
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
    """Masks of each image, computed or read from the dataset's cache, which stores bytes: a quarter of the size."""
    if not images:
        return

    def compute() -> Mapping[str, Tensor]:
        rows: dict[str, Tensor] = {}
        unreadable = UnreadableFiles()
        for index, (image, size, augmentation) in enumerate(zip(images, sizes, augmentations, strict=True)):
            tick()
            cells = size[0] // vae_scale, size[1] // vae_scale
            with unreadable.collected():
                versions = [load_mask(dataset_dir, image, size, cells)]
                if augmentation is not None:
                    versions += mask_variants(dataset_dir, image, size, cells, augmentation, seed)
                rows[str(index)] = (torch.stack(versions) * 255).round().to(torch.uint8)
        unreadable.require_none()
        return rows

    content = [
        [
            image.mask,
            image.pixels_sha256,
            size,
            varied and [may_flip(varied, image.all_captions), varied.model_dump_json()],
        ]
        for image, size, varied in zip(images, sizes, augmentations, strict=True)
    ]
    key = cache_key(_VERSION, METHOD_VERSION, seed, vae_scale, [*content])
    stored = cached(dataset_dir / "cache", "masks", key, compute)
    for index in range(len(images)):
        yield tuple(stored[str(index)].float() / 255)


def _shares(mask: PILImage.Image) -> Tensor:
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255
