"""The pictures of a job as examples: sizes, captions, weights and masks of each, and its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import lcm

from torch import Tensor

from trainer.dataset.buckets import Size, assign, default_step
from trainer.dataset.split.mixing import Mixture
from trainer.dataset.split.overlap import Member
from trainer.models.base import BaseModel
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.protocol.spec import Spec
from trainer.tasks.examples import Encoded, Examples, tag_orders, without_separator
from trainer.tasks.latents import Encoder
from trainer.tasks.masks import encode_masks


def encode_splits(
    spec: Spec, mixture: Mixture, encoder: Encoder, resolution: int, progress: Callable[[int, int], None]
) -> dict[Split, Examples]:
    """Every split of a job at a resolution, from the cache or encoded once.

    `progress` is told how many pictures and variants are encoded, of how many; those in the cache do not count.

    Raises:
        DatasetError: a picture of a dataset folder is gone or damaged.
        BadSpecError: the loss is to be masked, and no picture has a mask.
    """
    members = mixture.members
    sizes = _sizes(spec, members, resolution, encoder.base)
    is_varied = [_is_varied(spec, mixture, member) for member in members]
    originals, variants = _encode(spec, mixture, encoder, sizes, is_varied, progress)
    captions = _captions(spec, mixture)
    masks: Sequence[tuple[Tensor, ...] | None] = ()
    if spec.objective.masked:
        masks = encode_masks(
            spec,
            mixture,
            sizes,
            is_varied,
            vae_scale=encoder.base.vae_scale,
            tick=lambda: progress(len(members), len(members)),
        )
    by_split = {}
    for split in Split:
        chosen = [place for place, member in enumerate(members) if member.split is split]
        by_split[split] = Examples(
            members=tuple(members[i] for i in chosen),
            sizes=tuple(sizes[i] for i in chosen),
            caption_orders=tuple(captions[i] for i in chosen),
            loss_weights=tuple(_loss_weight(spec, mixture, members[i]) for i in chosen),
            originals=tuple(originals[i] for i in chosen),
            variants=tuple(variants.get(i) for i in chosen),
            masks=tuple(masks[i] for i in chosen) if masks else (),
        )
    return by_split


def _sizes(spec: Spec, members: Sequence[Member], resolution: int, base: BaseModel) -> tuple[Size, ...]:
    # A transformer cuts latents into patches: a side that leaves half a patch cannot be read.
    patch = base.vae_scale * int(getattr(base.denoiser.config, "patch_size", None) or 1)
    return tuple(
        assign(
            [(member.image.width or 0, member.image.height or 0) for member in members],
            resolution,
            lcm(patch, default_step(resolution, len(members))),
            batch=min(spec.training.micro_batch_size or 4, spec.training.batch_size),
        )
    )


def _captions(spec: Spec, mixture: Mixture) -> list[tuple[str, ...]]:
    """The captions of each picture: one, or, where training pictures have their tags shuffled, several."""
    members, training = mixture.members, spec.training
    captions = [mixture.caption_of(member) for member in members]
    plain = [(without_separator(caption),) for caption in captions]
    if not training.tag_shuffle:
        return list(plain)
    trained = [place for place, member in enumerate(members) if member.split is Split.TRAIN]
    orders = tag_orders([captions[place] for place in trained], training.keep_tags, training.seed)
    by_place = dict(zip(trained, orders, strict=True))
    return [by_place.get(place, caption) for place, caption in enumerate(plain)]


def _loss_weight(spec: Spec, mixture: Mixture, member: Member) -> float:
    is_class_picture = mixture.source_of(member).role is MixRole.REGULARIZATION
    return spec.training.regularization_weight if is_class_picture else 1.0


def _is_varied(spec: Spec, mixture: Mixture, member: Member) -> bool:
    """Only what is taught is varied: what measures stays as it is, and class pictures stand for themselves."""
    is_taught = member.split is Split.TRAIN and mixture.source_of(member).role is MixRole.TRAIN
    return spec.augmentation.is_on and is_taught


def _encode(
    spec: Spec,
    mixture: Mixture,
    encoder: Encoder,
    sizes: Sequence[Size],
    is_varied: Sequence[bool],
    progress: Callable[[int, int], None],
) -> tuple[dict[int, Encoded], dict[int, Encoded]]:
    """Latents of all pictures and of the variants of some, by place; each dataset has a cache of its own."""
    members, augmentation, seed = mixture.members, spec.augmentation, spec.training.seed
    done, total = count(), len(members) + augmentation.variants * sum(is_varied)

    def tick() -> None:
        progress(next(done), total)

    originals: dict[int, Encoded] = {}
    variants: dict[int, Encoded] = {}
    for number, source in enumerate(mixture.sources):
        places = [place for place, member in enumerate(members) if member.source == number]
        varied = [place for place in places if is_varied[place]]
        images, image_sizes = [members[i].image for i in places], [sizes[i] for i in places]
        originals |= zip(places, encoder.pictures(source.folder, images, image_sizes, tick), strict=True)
        if varied:
            images, image_sizes = [members[i].image for i in varied], [sizes[i] for i in varied]
            encoded = encoder.variants(source.folder, images, image_sizes, augmentation, seed, tick)
            variants |= zip(varied, encoded, strict=True)
    return originals, variants
