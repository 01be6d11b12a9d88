"""Finds exact and near duplicates: candidate pairs are confirmed by aligning thumbnails, in several processes."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from trainer.console import Progress, ignore_progress
from trainer.dataset.images.decode_server import server_context
from trainer.dataset.images.duplicate_candidates import alike_frames, candidates
from trainer.dataset.images.image_registration import CandidatePair
from trainer.dataset.images.perceptual_hash import HashTable
from trainer.dataset.memory import keep_freed_memory
from trainer.errors import DecodersError
from trainer.protocol.text import _

#: Pairs that are compared at most (about 5 ms each), plus one for each image: a large set of look-alikes has far more.
_MOST_COMPARED = 5_000
#: Pairs that are divided among processes at least, if there are more; those that one compares at a time; and from how
#: many on it is worth to start processes.
_ROUND, _BATCH, _WORTH_PROCESSES = 512, 16, 96

#: Difference of two images that show the same, 0 to 1; None if they do not.
PairDifference = Callable[[CandidatePair], float | None]
#: A pair of near duplicates and their difference.
NearPair = tuple[int, int, float]


class UnionFind:
    """Disjoint sets of the items 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two items."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def find(self, item: int) -> int:
        """The lowest item of the set that holds `item`."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item


@dataclass(frozen=True, kw_only=True)
class ExactCopy:
    """An image of equal pixels as others: what decides which one is kept."""

    pixels_sha256: str
    is_captioned: bool
    #: Area of the original, px.
    area: int
    source: str

    def rank(self) -> tuple[bool, int, bool]:
        """The lowest is kept: the one with a caption, then the larger, then the one that is not named a copy."""
        return not self.is_captioned, -self.area, _COPY_NAME.search(Path(self.source).stem) is not None


#: How file managers and browsers name a copy.
_COPY_NAME = re.compile(
    r"\bcopy\b|\bcopie\b|\bkopie\b|\bcopia\b|\bcópia\b|копия|副本|コピー|복사본|[ _]?\(\d+\)$", re.IGNORECASE
)


def exact_copies(images: Sequence[ExactCopy]) -> dict[int, int]:
    """Map the index of each exact copy to the index of the image that is kept; copies have equal upright pixels."""
    by_pixels: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        by_pixels.setdefault(image.pixels_sha256, []).append(index)
    kept = {digest: min(same, key=lambda index: images[index].rank()) for digest, same in by_pixels.items()}
    return {
        index: kept[image.pixels_sha256] for index, image in enumerate(images) if index != kept[image.pixels_sha256]
    }


def near_pairs(
    hashes: HashTable,
    difference: PairDifference,
    consecutive: Sequence[tuple[int, int]] = (),
    progress: Progress = ignore_progress,
    processes: int = 1,
) -> Iterator[NearPair]:
    """Yield pairs of near duplicates with their difference: enough of them to join each group.

    Args:
        hashes: Of the images.
        difference: Confirms a candidate pair; each process gets a copy.
        consecutive: Pairs that may be frames of a burst, whatever their hashes.
        progress: Called with the phase "comparing".
        processes: How many compare; the pairs found do not depend on it.

    Raises:
        DecodersError: One of them died.
    """
    possible = list(itertools.islice(candidates(hashes), _MOST_COMPARED + len(hashes.numbers)))
    possible += alike_frames(hashes, consecutive)
    groups = UnionFind(int(hashes.numbers.max(initial=0)) + 1)
    done = 0
    with _comparing(difference, processes if len(possible) >= _WORTH_PROCESSES else 1) as compared:
        for linked in _by_component(possible):
            left = linked
            while left:
                progress("comparing", done + len(linked) - len(left), len(possible))
                chosen, left = _next_pairs(left, groups)
                for found in compared(chosen[at : at + _BATCH] for at in range(0, len(chosen), _BATCH)):
                    for one, other, _difference in found:
                        groups.join(one, other)
                    yield from found
            done += len(linked)
    progress("comparing", len(possible), len(possible))


def _next_pairs(pairs: Sequence[CandidatePair], groups: UnionFind) -> tuple[list[CandidatePair], list[CandidatePair]]:
    """Divide pairs of different groups, the likeliest first, into those to compare now and those to compare later.

    Now: a spanning forest of the groups (Kruskal 1956), so that no pair is compared that another one makes needless.
    """
    forest = UnionFind(max(max(pair.one, pair.other) for pair in pairs) + 1)
    chosen, later = [], []
    for pair in pairs:
        one, other = groups.find(pair.one), groups.find(pair.other)
        if one == other:
            continue
        if forest.find(one) == forest.find(other):
            later.append(pair)
        else:
            forest.join(one, other)
            chosen.append(pair)
    return chosen, later


def _by_component(pairs: Sequence[CandidatePair]) -> Iterator[list[CandidatePair]]:
    """Yield pairs of images that are linked by others together, many at a time: a process loads each image once."""
    components = UnionFind(max((max(pair.one, pair.other) for pair in pairs), default=0) + 1)
    for pair in pairs:
        components.join(pair.one, pair.other)
    linked: list[CandidatePair] = []
    by_root = sorted(pairs, key=lambda pair: components.find(pair.one))
    for _root, component in itertools.groupby(by_root, key=lambda pair: components.find(pair.one)):
        linked += component
        if len(linked) >= _ROUND:
            yield linked
            linked = []
    yield linked


@contextmanager
def _comparing(
    difference: PairDifference, processes: int
) -> Iterator[Callable[[Iterable[Sequence[CandidatePair]]], Iterable[list[NearPair]]]]:
    """Give a function that compares batches of pairs, in this process or in several."""
    if processes == 1:
        yield partial(map, partial(_confirmed, difference))
        return
    try:
        with ProcessPoolExecutor(
            processes, mp_context=server_context(), initializer=_begin, initargs=(difference,)
        ) as pool:
            yield partial(pool.map, _confirmed_here)
    except BrokenProcessPool as error:
        raise DecodersError(
            _("A process that compares images ended: there was too little memory, or it was killed."),
            _("The log above may say why; nothing was written. Close other programs and prepare the images again."),
        ) from error


#: Of this process, if it is one of several.
_difference: PairDifference | None = None


def _begin(difference: PairDifference) -> None:
    global _difference
    _difference = difference
    # Ctrl-C goes to the parent. There is a process for each core.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    keep_freed_memory()


def _confirmed_here(pairs: Sequence[CandidatePair]) -> list[NearPair]:
    assert _difference is not None, "set when the process began"
    return _confirmed(_difference, pairs)


def _confirmed(difference: PairDifference, pairs: Sequence[CandidatePair]) -> list[NearPair]:
    measured = ((pair.one, pair.other, difference(pair)) for pair in pairs)
    return [(one, other, found) for one, other, found in measured if found is not None]
