"""Which pictures make up each optimizer step: a function of seed and epoch alone, so a resume needs no state."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from math import ceil
from typing import TypeAlias, TypeVar

T = TypeVar("T")

#: Pictures (by index) that go through the model at once; all of one size.
MicroBatch: TypeAlias = tuple[int, ...]
#: The micro-batches of one optimizer step.
Step: TypeAlias = tuple[MicroBatch, ...]


def derive_seed(*parts: Hashable) -> int:
    """A seed of 63 bits for each distinct combination of `parts`: seeds that are near each other do not correlate."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def chunks(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def epoch_steps(
    sizes: Sequence[Hashable], *, repeats: int, batch_size: int, micro_batch_size: int, seed: int, epoch: int
) -> list[Step]:
    """The steps of one epoch: each picture `repeats` times, each micro-batch of one size, in random order.

    `sizes[i]` is the bucket of picture i. Steps are of `batch_size` pictures, fewer where a bucket does not fill a
    micro-batch. Their number is the same in every epoch.
    """
    order = random.Random(derive_seed("epoch", seed, epoch))
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for _ in range(repeats):
        for index in order.sample(range(len(sizes)), len(sizes)):
            by_size[sizes[index]].append(index)
    micro_batches = [micro for indices in by_size.values() for micro in chunks(indices, micro_batch_size)]
    order.shuffle(micro_batches)
    return list(chunks(micro_batches, ceil(batch_size / micro_batch_size)))


def steps_per_epoch(sizes: Sequence[Hashable], *, repeats: int, batch_size: int, micro_batch_size: int) -> int:
    """How many optimizer steps `epoch_steps` gives."""
    options = {"repeats": repeats, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    return len(epoch_steps(sizes, **options, seed=0, epoch=1))
