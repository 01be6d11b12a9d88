"""Which images make up each optimizer step: a function of seed and epoch alone, so that a resume needs no state."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain, groupby
from typing import TypeAlias, TypeVar

from trainer.dataset.seeds import derive_seed
from trainer.tasks.examples import ImageView

T = TypeVar("T")

#: Indices of the images of one optimizer step; those of one bucket are adjacent.
Step: TypeAlias = tuple[int, ...]


def chunks(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Split `items` into tuples of `size`; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def epoch_steps(
    sizes: Sequence[Hashable], *, repeats: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[Step]:
    """Plan the steps of one epoch: `batch_size` images each, in random order, and a smaller last one if some remain.

    Image i is seen `repeats[i]` times. The steps do not depend on memory: as many as possible have images of a single
    bucket, which can go through the model together, and the rest is filled across buckets.

    Args:
        sizes: The bucket of each image.
    """
    order = random.Random(derive_seed("epoch", seed, epoch))
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for turn in range(max(repeats)):
        images = [index for index, times in enumerate(repeats) if times > turn]
        for index in order.sample(images, len(images)):
            by_size[sizes[index]].append(index)
    steps: list[Step] = []
    remaining: list[list[int]] = []
    for indices in by_size.values():
        in_full_steps = len(indices) - len(indices) % batch_size
        steps += chunks(indices[:in_full_steps], batch_size)
        remaining.append(indices[in_full_steps:])
    order.shuffle(remaining)
    steps += chunks(list(chain.from_iterable(remaining)), batch_size)
    # Only the step made last can be smaller; it stays at the end.
    full = steps[: sum(map(len, steps)) // batch_size]
    order.shuffle(full)
    return full + steps[len(full) :]


def split_step(
    step: Sequence[ImageView], sizes: Sequence[Hashable], most: int
) -> Iterator[tuple[int, tuple[ImageView, ...]]]:
    """Split a step into micro-batches of at most `most` images of one bucket; yield the position of the first, too.

    Args:
        sizes: The bucket of each image of the dataset.
    """
    position = 0
    for _size, views in groupby(step, key=lambda view: sizes[view.index]):
        for micro_batch in chunks(tuple(views), most):
            yield position, micro_batch
            position += len(micro_batch)


def assign_views(
    steps: Sequence[Step],
    *,
    contents: Sequence[str],
    variants: Sequence[int],
    captions: Sequence[int],
    seed: int,
    epoch: int,
) -> list[tuple[ImageView, ...]]:
    """Choose the variant and the caption with which each image of an epoch is seen.

    An image goes through its variants and captions in a random order that is its own in each epoch; none repeats
    before all were seen.

    Args:
        contents: The pixel hash of each image, which seeds its order.
        variants, captions: How many variants and captions each image has.
    """
    turns: Counter[int] = Counter()

    def view(index: int) -> ImageView:
        turn = turns[index]
        turns[index] += 1
        content = contents[index]
        return ImageView(
            index=index,
            variant=_nth_shuffled("variant", variants[index], turn, seed, epoch, content),
            caption=_nth_shuffled("caption", captions[index], turn, seed, epoch, content),
        )

    return [tuple(map(view, step)) for step in steps]


def _nth_shuffled(purpose: str, count: int, turn: int, seed: int, epoch: int, content: str) -> int:
    """Return the index of the `turn`-th of `count` items in the shuffled order of this image and epoch."""
    if count == 1:
        return 0
    order = random.Random(derive_seed(purpose, seed, epoch, content))
    return order.sample(range(count), count)[turn % count]
