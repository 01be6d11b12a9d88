"""Encodes images, variants and captions once per dataset and base: latents and embeddings, cached and memory-mapped.

A cache file is named by everything its content depends on (weights, images, sizes, captions). A second job with the
same data and base reads it; any change makes another file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.buckets import assign_buckets, fit_to_bucket
from trainer.dataset.images.augment import METHOD_VERSION, make_variants, may_flip
from trainer.dataset.images.decoding import UnreadableFiles, open_for_bucket
from trainer.dataset.split.mixing import Mixture
from trainer.dataset.split.overlap import JobImage
from trainer.device import to_device
from trainer.models.base import LoadedBase
from trainer.models.families.model import encoders_running, stack_captions
from trainer.models.widening import widened
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.bucket_shapes import Size, default_step
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import MixRole
from trainer.protocol.spec import Spec
from trainer.tasks.examples import (
    Encoded,
    Examples,
    captions_per_image,
    encode_members,
    is_varied,
    tag_orders,
    without_separator,
)
from trainer.tasks.pixels import encode_masks
from trainer.tasks.tensor_cache import cache_key, cached

#: Captions encoded per batch.
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Encodes images of dataset folders to latents, or reads them from the folders' caches."""

    base: LoadedBase
    device: torch.device
    #: Identifies the weights that latents depend on.
    fingerprint: str

    def images(
        self, dataset_dir: Path, images: Sequence[Image], sizes: Sequence[Size], tick: Callable[[], None]
    ) -> list[Encoded]:
        """Latents of each image, one row each; calls `tick` before encoding an image.

        Raises:
            UnreadableFilesError: images are missing or damaged.
        """
        content = [[image.pixels_sha256, size] for image, size in zip(images, sizes, strict=True)]

        def versions(image: Image, size: Size) -> Iterator[PILImage.Image]:
            yield fit_to_bucket(_open(dataset_dir, image, size), size)

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
        """Latents of each image's variants, `augmentation.variants` rows each.

        Raises:
            UnreadableFilesError: images are missing or damaged.
        """
        content = [
            [image.pixels_sha256, size, may_flip(augmentation, image.all_captions)]
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
            latents: dict[str, list[Tensor]] = {}
            unreadable = UnreadableFiles()
            with widened(self.base.vae, self.device):
                for image, size in zip(images, sizes, strict=True):
                    with unreadable.collected():
                        for version in versions(image, size):
                            tick()
                            # Once one of them cannot be read, the others are only looked at.
                            if not unreadable:
                                latents.setdefault(_name_of(size), []).append(self._encode(version))
            unreadable.require_none()
            return {size: torch.stack(items) for size, items in latents.items()}

        stored = cached(dataset_dir / "cache", name, key, compute)
        return list(_rows_of(stored, sizes, rows))

    @torch.no_grad()
    def _encode(self, pil_image: PILImage.Image) -> Tensor:
        """Latents of one image, scaled for the denoiser, [C, H, W]."""
        pixels_HWC = np.asarray(pil_image, dtype=np.float32) / 127.5 - 1
        pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].to(self.device)
        return self.base.encode_pixels(pixels_1CHW)[0].cpu()


def variants_of(
    pil_image: PILImage.Image, image: Image, size: Size, augmentation: Augmentation, seed: int
) -> Iterator[PILImage.Image]:
    """Draw the variants of an image at its bucket's size."""
    content = image.pixels_sha256 or image.source
    return make_variants(pil_image, size, augmentation, caption=image.all_captions, pixels_sha256=content, seed=seed)


def _open(dataset_dir: Path, image: Image, size: Size) -> PILImage.Image:
    assert image.path is not None, "a kept image has a file"
    return open_for_bucket(dataset_dir, image.path, size)


def _name_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _rows_of(stored: Mapping[str, Tensor], sizes: Sequence[Size], rows: int) -> Iterator[Encoded]:
    """Find each image's rows: images of one size share a tensor, in order, with `rows` rows each."""
    next_row: dict[Size, int] = {}
    for size in sizes:
        start = next_row.get(size, 0)
        next_row[size] = start + rows
        yield Encoded(stored=stored[_name_of(size)], rows=range(start, start + rows))


@dataclass(kw_only=True)
class CaptionEmbeddings:
    """The embeddings of all captions of a job, on the CPU, memory-mapped."""

    base: LoadedBase
    #: The cache of the main dataset.
    folder: Path
    #: Identifies the weights that embeddings depend on.
    fingerprint: str
    device: torch.device
    #: A text encoder is trained, so embeddings cannot be cached.
    is_trained: bool
    _known: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def add(self, captions: Iterable[str], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Embed and cache captions that are new, and the empty caption; calls `progress(done, total)` per batch."""
        texts = sorted({*captions, ""} - self._known.keys())
        if self.is_trained or not texts:
            return
        key = cache_key(self.fingerprint, [*texts])
        by_length = self._by_length(texts)
        stored = cached(self.folder, "captions", key, lambda: self._embed_all(by_length, progress))
        for length, own in by_length.items():
            for index, text in enumerate(own):
                self._known[text] = {
                    name: stored[_stored_name(name, length)][index]
                    for name in ("caption_BTD", "pooled_BD")
                    if _stored_name(name, length) in stored
                }

    def _by_length(self, texts: list[str]) -> dict[int, list[str]]:
        """Group captions by the number of their chunks: those embeddings have the same shape."""
        by_length: dict[int, list[str]] = {}
        for text, chunks in zip(texts, self.base.chunk_counts(texts), strict=True):
            by_length.setdefault(chunks, []).append(text)
        return by_length

    def embed(self, captions: list[str]) -> Mapping[str, Tensor]:
        """Embed captions on the device: `caption_BTD`, and `pooled_BD` if the base reads it."""
        if self.is_trained:
            return self.base.encode_text(captions)
        self.add(captions)
        rows = [self._known[caption] for caption in captions]
        text = {"caption_BTD": stack_captions([row["caption_BTD"] for row in rows])}
        if "pooled_BD" in rows[0]:
            text["pooled_BD"] = torch.stack([row["pooled_BD"] for row in rows])
        return {name: to_device(tensor, self.device) for name, tensor in text.items()}

    @torch.no_grad()
    def _embed_all(self, by_length: Mapping[int, list[str]], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        """Embed captions: a tensor for each length, `caption_BTD/1`, `pooled_BD/1`, `caption_BTD/2`, …"""
        parts: dict[str, list[Tensor]] = {}
        done, total = 0, sum(map(len, by_length.values()))
        with encoders_running(self.base, self.device):
            for length, texts in by_length.items():
                for start in range(0, len(texts), _BATCH):
                    batch = texts[start : start + _BATCH]
                    progress(done, total)
                    for name, tensor in self.base.encode_text(batch).items():
                        parts.setdefault(_stored_name(name, length), []).append(tensor.cpu())
                    done += len(batch)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _stored_name(name: str, length: int) -> str:
    return f"{name}/{length}"


def encode_splits(
    spec: Spec, mixture: Mixture, encoder: Encoder, resolution: int, progress: Callable[[int, int], None]
) -> dict[Split, Examples]:
    """Encode every split of a job at a resolution, or read it from the cache.

    Calls `progress(done, total)` for images and variants; those in the cache do not count as done.

    Raises:
        UnreadableFilesError: images are missing or damaged.
        BadSpecError: the loss is masked, but no image has a mask.
    """
    members, augmentation, seed = mixture.members, spec.augmentation, spec.training.seed
    sizes = _sizes(spec, members, resolution, encoder.base)

    def chosen(indices: Sequence[int]) -> tuple[list[Image], list[Size]]:
        return [members[index].image for index in indices], [sizes[index] for index in indices]

    originals, variants = encode_members(
        mixture,
        augmentation,
        progress,
        images=lambda folder, indices, tick: encoder.images(folder, *chosen(indices), tick),
        variants=lambda folder, indices, tick: encoder.variants(folder, *chosen(indices), augmentation, seed, tick),
    )
    masks: Sequence[tuple[Tensor, ...] | None] = ()
    if spec.objective.masked:
        masks = encode_masks(
            spec,
            mixture,
            sizes,
            [is_varied(augmentation, mixture, member) for member in members],
            vae_scale=encoder.base.vae_scale,
            tick=lambda: progress(len(members), len(members)),
        )
    return Examples(
        members=tuple(members),
        sizes=sizes,
        caption_orders=tuple(_captions(spec, mixture)),
        loss_weights=tuple(_loss_weight(spec, mixture, member) for member in members),
        originals=originals,
        variants=variants,
        masks=tuple(masks),
    ).by_split()


def _sizes(spec: Spec, members: Sequence[JobImage], resolution: int, base: LoadedBase) -> tuple[Size, ...]:
    # A transformer splits latents into patches, so sides must be multiples of the patch size.
    patch = base.vae_scale * int(getattr(base.denoiser.config, "patch_size", None) or 1)
    return tuple(
        assign_buckets(
            [(member.image.width or 0, member.image.height or 0) for member in members],
            resolution,
            lcm(patch, default_step(resolution, len(members))),
            batch=min(spec.training.micro_batch_size or 4, spec.training.batch_size),
        )
    )


def _captions(spec: Spec, mixture: Mixture) -> list[tuple[str, ...]]:
    """The captions of each image: all of a training image, in several versions if tags vary, else the first."""
    members, training = mixture.members, spec.training
    trained = [index for index, member in enumerate(members) if member.split is Split.TRAIN]
    most = {Split.TRAIN: captions_per_image(len(trained))}
    captions = [mixture.captions_of(member)[: most.get(member.split, 1)] for member in members]
    if not training.tag_shuffle and not training.tag_dropout:
        return [tuple(map(without_separator, each)) for each in captions]
    orders = tag_orders([captions[index] for index in trained], training)
    by_index = dict(zip(trained, orders, strict=True))
    return [by_index.get(index) or tuple(map(without_separator, each)) for index, each in enumerate(captions)]


def _loss_weight(spec: Spec, mixture: Mixture, member: JobImage) -> float:
    is_class_image = mixture.source_of(member).role is MixRole.REGULARIZATION
    return spec.training.regularization_weight if is_class_image else 1.0
