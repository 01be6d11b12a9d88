"""The pictures of one split, encoded: what the model reads of each, captions, masks, and what each of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from trainer.dataset.buckets import Size
from trainer.dataset.captions.tag_order import SEPARATOR, shuffled
from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.overlap import Member
from trainer.protocol.report import Image

#: Orders of a caption's tags that are embedded: a bounded number, because embedding a new one at each step would keep
#: the text encoder on the device and in the loop. At SD 1.5's width an embedding is 231 KiB, so 2,000 are 0.45 GiB.
_TAG_ORDERS, _EMBEDDINGS = 8, 2000


@dataclass(frozen=True, kw_only=True)
class View:
    """One look at one picture."""

    #: Place of the picture in its split.
    index: int
    #: 0 is the picture itself, 1 its first variant.
    variant: int = 0
    #: Which of its captions.
    caption: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Where a picture lies as the model reads it (latents, or pixels for a classifier): `rows` of [N, C, H, W], the
    picture's own or its variants'."""

    stored: Tensor
    rows: range

    def __getitem__(self, place: int) -> Tensor:
        return self.stored[self.rows[place]]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The pictures of one split, encoded."""

    members: tuple[Member, ...]
    #: Width and height that each is trained at, px.
    sizes: tuple[Size, ...]
    #: The captions of each: as it is, then in other orders of its tags.
    caption_orders: tuple[tuple[str, ...], ...] = field(repr=False)
    #: What the loss of each counts.
    loss_weights: tuple[float, ...] = field(repr=False)
    originals: tuple[Encoded, ...] = field(repr=False)
    #: Of each, None where it has none.
    variants: tuple[Encoded | None, ...] = field(repr=False)
    #: Where the loss counts, [1, H, W] of each: its own and then those of its variants; None where all of it does.
    masks: tuple[tuple[Tensor, ...] | None, ...] = field(default=(), repr=False)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(member.image for member in self.members)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(orders[0] for orders in self.caption_orders)

    @property
    def variant_counts(self) -> tuple[int, ...]:
        """How many versions of each there are, the picture itself counted."""
        return tuple(1 if variants is None else 1 + len(variants.rows) for variants in self.variants)

    def caption(self, view: View) -> str:
        return self.caption_orders[view.index][view.caption]

    @property
    def contents(self) -> tuple[str, ...]:
        """What tells each from the others, whatever else is in the dataset."""
        return tuple(image.pixels_sha256 or image.source for image in self.images)

    def inputs(self, views: Sequence[View]) -> Tensor:
        """Pictures of one size as the model reads them, [B, C, H, W]."""
        return torch.stack([self._input(view) for view in views])

    def mask(self, views: Sequence[View]) -> Tensor | None:
        """Where the loss counts, [B, 1, H, W]; None where all of every picture does."""
        masks = [self.masks[view.index] if self.masks else None for view in views]
        if all(mask is None for mask in masks):
            return None
        whole = torch.ones(1, *self.inputs(views[:1]).shape[-2:])
        return torch.stack([whole if m is None else m[view.variant] for m, view in zip(masks, views, strict=True)])

    def _input(self, view: View) -> Tensor:
        variants = self.variants[view.index]
        if view.variant == 0 or variants is None:
            return self.originals[view.index][0]
        return variants[view.variant - 1]


def tag_orders(captions: Sequence[str], keep: int, seed: int) -> list[tuple[str, ...]]:
    """Each caption, and its tags in other orders: 8 in all, fewer where there are more than 250 captions, at least 2.

    An order is a function of the seed and the caption alone. Orders that come out alike stand once.
    """
    count = max(2, min(_TAG_ORDERS, _EMBEDDINGS // max(1, len(set(captions)))))

    def orders(caption: str) -> tuple[str, ...]:
        others = (shuffled(caption, keep, Random(derive_seed("tags", seed, caption, n))) for n in range(1, count))
        return tuple(dict.fromkeys([without_separator(caption), *others]))

    return [orders(caption) for caption in captions]


def without_separator(caption: str) -> str:
    """The caption without kohya's keep-tokens separator, which no model should read."""
    if SEPARATOR not in caption:
        return caption
    return ", ".join(part for part in (part.strip(" ,") for part in caption.split(SEPARATOR)) if part)
