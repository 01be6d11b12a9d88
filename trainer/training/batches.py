"""Which pictures make up each optimizer step: a function of seed and epoch alone, so a resume needs no state."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import ceil
from typing import TypeAlias, TypeVar

from trainer.dataset.seeds import derive_seed
from trainer.tasks.examples import View

T = TypeVar("T")

#: Pictures (by index) that go through the model at once; all of one size.
MicroBatch: TypeAlias = tuple[int, ...]
#: The micro-batches of one optimizer step.
Step: TypeAlias = tuple[MicroBatch, ...]


def chunks(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
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
    number: int | None = None,
) -> list[Step]:
    """The steps of one epoch: picture i `repeats[i]` times, each micro-batch of one size, in random order.

    `sizes[i]` is the bucket of picture i. Steps are of `batch_size` pictures, fewer where a bucket does not fill a
    micro-batch. There are `number` of them, at least as many as the pictures fill; None: no more than those.
    """
    order = random.Random(derive_seed("epoch", seed, epoch))
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for turn in range(max(repeats)):
        pictures = [index for index, times in enumerate(repeats) if times > turn]
        for index in order.sample(pictures, len(pictures)):
            by_size[sizes[index]].append(index)
    micro_batches = [micro for indices in by_size.values() for micro in chunks(indices, micro_batch_size)]
    order.shuffle(micro_batches)
    steps = list(chunks(micro_batches, ceil(batch_size / micro_batch_size)))
    return steps if number is None or len(steps) == number else _spread(micro_batches, number)


def steps_per_epoch(most: Mapping[Hashable, int], *, views: int, batch_size: int, micro_batch_size: int) -> int:
    """How many optimizer steps every epoch can have, whatever pictures it happens to show.

    `most` are the most views that pictures of a size get in any epoch, `views` those of all sizes in each. Where both
    are the same in every epoch, `epoch_steps` fills exactly so many.
    """
    micro_batches = sum(ceil(count / micro_batch_size) for count in most.values())
    return min(ceil(micro_batches / ceil(batch_size / micro_batch_size)), views)


def deal_views(
    steps: Sequence[Step],
    *,
    contents: Sequence[str],
    variants: Sequence[int],
    captions: Sequence[int],
    seed: int,
    epoch: int,
) -> list[tuple[tuple[View, ...], ...]]:
    """Which variant and which caption each picture of an epoch's steps is seen with.

    Picture i, of the pixels `contents[i]`, has `variants[i]` variants and `captions[i]` captions. In an epoch it goes
    through them in an order of its own, so that none comes again before all were seen.
    """
    turns: Counter[int] = Counter()

    def view(index: int) -> View:
        turn = turns[index]
        turns[index] += 1
        content = contents[index]
        return View(
            index=index,
            variant=_turn("variant", variants[index], turn, seed, epoch, content),
            caption=_turn("caption", captions[index], turn, seed, epoch, content),
        )

    return [tuple(tuple(map(view, micro_batch)) for micro_batch in step) for step in steps]


def _turn(what: str, count: int, turn: int, seed: int, epoch: int, content: str) -> int:
    """The `turn`-th of `count` things, in an order that follows from the rest."""
    if count == 1:
        return 0
    order = random.Random(derive_seed(what, seed, epoch, content))
    return order.sample(range(count), count)[turn % count]


def _spread(micro_batches: Sequence[MicroBatch], number: int) -> list[Step]:
    """The micro-batches as evenly as can be over `number` steps; the largest are parted where there are too few."""
    parts = list(micro_batches)
    while len(parts) < number:
        largest = max(range(len(parts)), key=lambda place: len(parts[place]))
        half = len(parts[largest]) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return [tuple(parts[step * len(parts) // number : (step + 1) * len(parts) // number]) for step in range(number)]
