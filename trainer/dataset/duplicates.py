"""Pictures that are one picture twice: exact copies, of which one is kept, and near copies, which stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.looks import Look

# Measured on 7,000 real pictures with planted defects (recall 0.98, precision 0.99 together with `likeness`).
_MAX_PHASH_BITS, _MAX_DHASH_BITS, _MIN_CORRELATION = 12, 6, 0.9
_BLOCK_ROWS = 512


class Groups:
    """Union-find over pictures: whatever is joined, however indirectly, is one group."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def find(self, item: int) -> int:
        """The lowest member of an item's group."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item


def exact_copies(pixels: Sequence[str | None], captioned: Sequence[bool]) -> dict[int, int]:
    """Which picture is an exact copy of which: dropped index to the index that is kept.

    Pictures are copies if their upright pixels are equal, whatever the file. The first is kept, or the first with a
    caption if the very first has none. None stands for a picture that could not be decoded.
    """
    by_pixels: dict[str, list[int]] = {}
    for index, digest in enumerate(pixels):
        if digest is not None:
            by_pixels.setdefault(digest, []).append(index)
    kept = {digest: next((i for i in same if captioned[i]), same[0]) for digest, same in by_pixels.items()}
    return {index: kept[digest] for digest, same in by_pixels.items() for index in same if index != kept[digest]}


def near_pairs(
    looks: Mapping[int, Look], likeness: Callable[[int, int, bool], float | None]
) -> Iterator[tuple[int, int, float]]:
    """Pairs of pictures that show the same, with how much they differ.

    `likeness(one, other, mirrored)` measures a candidate pair, and says None if it is no near-duplicate.
    """
    for one, other in candidates(looks):
        for mirrored in (False, True):
            if (difference := likeness(one, other, mirrored)) is not None:
                yield one, other, difference
                break


def candidates(looks: Mapping[int, Look]) -> Iterator[tuple[int, int]]:
    """Pairs whose hashes are near; blank pictures, whose hashes are noise, are never paired."""
    numbers = [number for number, look in looks.items() if not look.is_blank]
    if len(numbers) < 2:
        return
    phash, mirrored, dhash = (_hashes(looks, numbers, name) for name in ("phash", "mirrored_phash", "dhash"))
    blurred = np.stack([_normalized(looks[number].blurred) for number in numbers])
    flipped = blurred.reshape(-1, 16, 16)[:, :, ::-1].reshape(-1, 256)
    for start in range(0, len(numbers), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        upright = _near(phash[rows], phash, _MAX_PHASH_BITS) | _near(dhash[rows], dhash, _MAX_DHASH_BITS)
        upright &= blurred[rows] @ blurred.T >= _MIN_CORRELATION
        turned = _near(phash[rows], mirrored, _MAX_PHASH_BITS) & (blurred[rows] @ flipped.T >= _MIN_CORRELATION)
        for row, column in zip(*np.nonzero(upright | turned), strict=True):
            if start + row < column:
                yield numbers[start + row], numbers[column]


def members_of(groups: Groups, items: Iterable[int]) -> dict[int, list[int]]:
    """Items by group."""
    return {root: list(held) for root, held in groupby(sorted(items, key=groups.find), key=groups.find)}


def _hashes(looks: Mapping[int, Look], numbers: Sequence[int], name: str) -> NDArray[np.uint64]:
    return np.array([getattr(looks[number], name) for number in numbers], dtype=np.uint64)


def _near(rows: NDArray[np.uint64], columns: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    return np.asarray(np.bitwise_count(rows[:, None] ^ columns[None, :]) <= bits)


def _normalized(blurred: bytes) -> NDArray[np.float32]:
    values = np.frombuffer(blurred, dtype=np.uint8).astype(np.float32)
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)
