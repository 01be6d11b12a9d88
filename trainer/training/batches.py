"""Which images make up each optimizer step: a function of seed and epoch alone, so that a resume needs no state."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import ceil
from typing import TypeAlias, TypeVar

from trainer.dataset.seeds import derive_seed
from trainer.tasks.examples import ImageView

T = TypeVar("T")

#: Indices of images that go through the model at once; all of one size.
MicroBatch: TypeAlias = tuple[int, ...]
#: The micro-batches of one optimizer step.
Step: TypeAlias = tuple[MicroBatch, ...]


def chunks(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Split `items` into tuples of `size`; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def epoch_steps(
    sizes: Sequence[Hashable],
    *,
    repeats: Sequence[int],
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    epoch: int,
    step_count: int | None = None,
) -> list[Step]:
    """Plan the steps of one epoch, in random order.

    Image i is seen `repeats[i]` times. A step has `batch_size` images, or fewer where a bucket does not fill a
    micro-batch.

    Args:
        sizes: The bucket of each image; a micro-batch holds images of one bucket.
        step_count: Spread the images over this many steps, at least as many as they fill. None: as many as they fill.
    """
    order = random.Random(derive_seed("epoch", seed, epoch))
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for turn in range(max(repeats)):
        images = [index for index, times in enumerate(repeats) if times > turn]
        for index in order.sample(images, len(images)):
            by_size[sizes[index]].append(index)
    micro_batches = [micro for indices in by_size.values() for micro in chunks(indices, micro_batch_size)]
    order.shuffle(micro_batches)
    steps = list(chunks(micro_batches, ceil(batch_size / micro_batch_size)))
    return steps if step_count is None or len(steps) == step_count else _spread(micro_batches, step_count)


def steps_per_epoch(most: Mapping[Hashable, int], *, views: int, batch_size: int, micro_batch_size: int) -> int:
    """Return a number of optimizer steps that every epoch can have, whichever images it shows.

    If every epoch shows the same number of images per size, this is what `epoch_steps` fills.

    Args:
        most: Per size, the largest number of views in any epoch.
        views: Views of all sizes per epoch.
    """
    micro_batches = sum(ceil(count / micro_batch_size) for count in most.values())
    return min(ceil(micro_batches / ceil(batch_size / micro_batch_size)), views)


def assign_views(
    steps: Sequence[Step],
    *,
    contents: Sequence[str],
    variants: Sequence[int],
    captions: Sequence[int],
    seed: int,
    epoch: int,
) -> list[tuple[tuple[ImageView, ...], ...]]:
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

    return [tuple(tuple(map(view, micro_batch)) for micro_batch in step) for step in steps]


def _nth_shuffled(purpose: str, count: int, turn: int, seed: int, epoch: int, content: str) -> int:
    """Return the index of the `turn`-th of `count` items in the shuffled order of this image and epoch."""
    if count == 1:
        return 0
    order = random.Random(derive_seed(purpose, seed, epoch, content))
    return order.sample(range(count), count)[turn % count]


def _spread(micro_batches: Sequence[MicroBatch], step_count: int) -> list[Step]:
    """Spread the micro-batches evenly over `step_count` steps; the largest are halved if there are too few."""
    parts = list(micro_batches)
    while len(parts) < step_count:
        largest = max(range(len(parts)), key=lambda index: len(parts[index]))
        half = len(parts[largest]) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return [
        tuple(parts[step * len(parts) // step_count : (step + 1) * len(parts) // step_count])
        for step in range(step_count)
    ]
