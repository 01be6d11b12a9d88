"""The encoded images of a job and of its splits: model inputs, captions, masks and loss weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import TypeAlias

import torch
from torch import Tensor

from trainer.dataset.buckets import crop_offset
from trainer.dataset.captions.caption_words import KEEP_TOKENS_SEPARATOR, vary_tags
from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Mixture
from trainer.dataset.split.overlap import JobImage
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import MixRole
from trainer.protocol.training_settings import Training

#: Tag orders embedded per caption, and embeddings in all. Bounded: a new order at each step would keep the text encoder
#: on the device and in the loop. At SD 1.5's width 75 tokens take 231 KiB, so 2,000 captions take 0.45 GiB; long ones
#: up to three times that.
_TAG_ORDERS, _EMBEDDINGS = 8, 2000


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """One image of a batch: which variant, with which caption."""

    #: Index of the image in its split.
    index: int
    #: 0 is the image itself, 1 its first variant.
    variant: int = 0
    #: Index among its caption orders.
    caption: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The model inputs of an image, or of its variants: `rows` of a memory-mapped tensor [N, C, H, W]."""

    stored: Tensor
    rows: range

    def __getitem__(self, index: int) -> Tensor:
        return self.stored[self.rows[index]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Encoded images of a job, or of one split; all fields are indexed by image."""

    members: tuple[JobImage, ...]
    #: Width and height in training, px.
    sizes: tuple[Size, ...]
    #: The caption, then other orders of its tags, then the image's further captions; a view has one of them.
    caption_orders: tuple[tuple[str, ...], ...] = field(repr=False)
    loss_weights: tuple[float, ...] = field(repr=False)
    originals: tuple[Encoded, ...] = field(repr=False)
    #: None for an image without variants.
    variants: tuple[Encoded | None, ...] = field(repr=False)
    #: Loss masks, [1, H, W], of the image and then of its variants; None for an image without a mask.
    masks: tuple[tuple[Tensor, ...] | None, ...] = field(default=(), repr=False)

    def by_split(self) -> dict[Split, Examples]:
        """Return the examples of each split."""
        return {
            split: self._part([index for index, member in enumerate(self.members) if member.split is split])
            for split in Split
        }

    def _part(self, indices: Sequence[int]) -> Examples:
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: tuple(column[i] for i in indices) for name, column in columns.items() if column})

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(member.image for member in self.members)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(orders[0] for orders in self.caption_orders)

    @property
    def variant_counts(self) -> tuple[int, ...]:
        """Number of versions of each image, itself included."""
        return tuple(1 if variants is None else 1 + len(variants.rows) for variants in self.variants)

    def caption(self, view: ImageView) -> str:
        return self.caption_orders[view.index][view.caption]

    @property
    def contents(self) -> tuple[str, ...]:
        """An identifier of each image's content, independent of the rest of the dataset."""
        return tuple(image.pixels_sha256 or image.source for image in self.images)

    def size_conditions(self, views: Sequence[ImageView]) -> Tensor:
        """SDXL's size conditioning, [B, 6]: original height and width, crop at the top and left, height and width, px.

        Variants have that of their image: what an augmentation crops is a part of the new image.
        """
        return torch.tensor([self._size_condition(view.index) for view in views])

    def _size_condition(self, index: int) -> tuple[int, ...]:
        image, (width, height) = self.images[index], self.sizes[index]
        original = image.width or width, image.height or height
        left, top = crop_offset(original, (width, height))
        return original[1], original[0], top, left, height, width

    def inputs(self, views: Sequence[ImageView]) -> Tensor:
        """Model inputs of images of one size, [B, C, H, W]."""
        return torch.stack([self._input(view) for view in views])

    def mask(self, views: Sequence[ImageView]) -> Tensor | None:
        """Loss masks, [B, 1, H, W]; None if no image has one."""
        masks = [self.masks[view.index] if self.masks else None for view in views]
        if all(mask is None for mask in masks):
            return None
        whole = torch.ones(1, *self.inputs(views[:1]).shape[-2:])
        return torch.stack([whole if m is None else m[view.variant] for m, view in zip(masks, views, strict=True)])

    def _input(self, view: ImageView) -> Tensor:
        variants = self.variants[view.index]
        if view.variant == 0 or variants is None:
            return self.originals[view.index][0]
        return variants[view.variant - 1]


def is_varied(augmentation: Augmentation, mixture: Mixture, member: JobImage) -> bool:
    """Whether an image is augmented: training images only, not validation, test or regularization images."""
    return augmentation.is_on and member.split is Split.TRAIN and mixture.source_of(member).role is MixRole.TRAIN


#: Encodes images of a dataset folder, given by their indices in the job, and calls the function for each.
EncodeImages: TypeAlias = Callable[[Path, Sequence[int], Callable[[], None]], Sequence[Encoded]]


def encode_members(
    mixture: Mixture,
    augmentation: Augmentation,
    progress: Callable[[int, int], None],
    *,
    images: EncodeImages,
    variants: EncodeImages,
) -> tuple[tuple[Encoded, ...], tuple[Encoded | None, ...]]:
    """Encode all images of a job, and the variants of those that are augmented; each dataset has its own cache."""
    members = mixture.members
    augmented = {index for index, member in enumerate(members) if is_varied(augmentation, mixture, member)}
    done, total = count(), len(members) + augmentation.variants * len(augmented)

    def tick() -> None:
        progress(next(done), total)

    originals: dict[int, Encoded] = {}
    varied: dict[int, Encoded] = {}
    for number, source in enumerate(mixture.sources):
        indices = [index for index, member in enumerate(members) if member.source == number]
        originals |= zip(indices, images(source.folder, indices, tick), strict=True)
        if chosen := [index for index in indices if index in augmented]:
            varied |= zip(chosen, variants(source.folder, chosen, tick), strict=True)
    order = range(len(members))
    return tuple(originals[index] for index in order), tuple(varied.get(index) for index in order)


def tag_orders(captions: Sequence[Sequence[str]], training: Training) -> list[tuple[str, ...]]:
    """The captions of each image with other orders of their tags, some tags left out: 8 for each, fewer for more than
    250, but at least 2; the first is the caption itself.

    An order depends on the settings and the caption only. Equal orders are listed once.
    """
    distinct = {caption for of_image in captions for caption in of_image}
    count = max(2, min(_TAG_ORDERS, _EMBEDDINGS // max(1, len(distinct))))
    # The caption itself has all tags; the others make up for it.
    dropout = min(1.0, training.tag_dropout * count / (count - 1))

    def orders(caption: str) -> Iterator[str]:
        yield without_separator(caption)
        for n in range(1, count):
            order = Random(derive_seed("tags", training.seed, caption, n))
            yield vary_tags(caption, training.keep_tags, order, shuffle=training.tag_shuffle, dropout=dropout)

    return [tuple(dict.fromkeys(order for caption in of_image for order in orders(caption))) for of_image in captions]


def captions_per_image(images: int) -> int:
    """How many captions of one training image are embedded; further ones are not used."""
    return max(2, _EMBEDDINGS // max(1, images))


def without_separator(caption: str) -> str:
    """Remove kohya's keep-tokens separator from a caption."""
    if KEEP_TOKENS_SEPARATOR not in caption:
        return caption
    return ", ".join(part for part in (part.strip(" ,") for part in caption.split(KEEP_TOKENS_SEPARATOR)) if part)
