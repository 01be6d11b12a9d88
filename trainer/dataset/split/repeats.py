"""How often each training picture is seen in an epoch, where datasets have repeats or a share of the epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from trainer.dataset.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Pictures that share a fixed number of views between them."""

    #: Place of their dataset among those of the job.
    source: int
    #: Views of all of them together, in every epoch.
    views: int
    #: How often each is seen for each time that another is, by place of the picture.
    repeats: Mapping[int, int]

    @property
    def _units(self) -> int:
        return sum(self.repeats.values())

    def of_epoch(self, sizes: Sequence[Hashable], seed: int, epoch: int) -> dict[int, int]:
        """Views of each picture: its exact share, rounded up or down by chance.

        Systematic sampling (Madow 1949): pictures stand in a row, each as long as its share, and a comb with a random
        start falls on it. Each is hit by its share on average, all together always `views` times, and so is every
        stretch of the row, to within one. Pictures of a size stand together: their number hardly changes.
        """
        random = Random(derive_seed("mix", seed, epoch, self.source))
        row = sorted(self.repeats, key=lambda place: (repr(sizes[place]), random.random()))
        # In whole numbers: a picture is `views * repeats` long, and the teeth of the comb are `_units` apart.
        end, teeth = random.randrange(self._units), self._units
        views = {}
        for place in row:
            start, end = end, end + self.views * self.repeats[place]
            views[place] = end // teeth - start // teeth
        return views

    def most_by_size(self, sizes: Sequence[Hashable]) -> dict[Hashable, int]:
        """The most views that pictures of a size get in any epoch."""
        units: Counter[Hashable] = Counter()
        for place, repeats in self.repeats.items():
            units[sizes[place]] += self.views * repeats
        return {size: -(-count // self._units) for size, count in units.items()}


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often each training picture is seen, for every epoch of a job."""

    #: By place of the picture; 0 for those of a portion.
    fixed: tuple[int, ...]
    portions: tuple[Portion, ...] = ()
    seed: int = 0

    @property
    def views(self) -> int:
        """Pictures of an epoch, the same in each."""
        return sum(self.fixed) + sum(portion.views for portion in self.portions)

    def of_epoch(self, sizes: Sequence[Hashable], epoch: int) -> list[int]:
        """How often each picture is seen in an epoch; `sizes` are their buckets."""
        views = list(self.fixed)
        for portion in self.portions:
            for place, count in portion.of_epoch(sizes, self.seed, epoch).items():
                views[place] = count
        return views

    def most_by_size(self, sizes: Sequence[Hashable]) -> Counter[Hashable]:
        """The most views that pictures of a size get in any epoch."""
        most: Counter[Hashable] = Counter()
        for size, count in zip(sizes, self.fixed, strict=True):
            most[size] += count
        for portion in self.portions:
            most.update(portion.most_by_size(sizes))
        return most
