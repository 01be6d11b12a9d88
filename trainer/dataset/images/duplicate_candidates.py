"""Finds pairs of images that may show the same, by keypoints and layout, or as frames of a burst."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.images.image_registration import MAX_SCALE, CandidatePair, KeypointGuess, Transform, is_plausible
from trainer.dataset.images.perceptual_hash import KEYPOINTS, LAYOUT_PX, HashTable
from trainer.dataset.memory import release_memory

#: Low frequencies of each layout that are compared.
_FREQUENCIES = 6
#: Orders in which all keypoints are sorted, and the next ones in each that are compared.
_ORDERS, _NEXT = 8, 6
#: Keypoints of an order that are compared at a time: 5 MB. And the keypoints that images share, of all together, after
#: which no more are looked for of those that have their part: the ones that all images of a template have.
_BLOCK, _MOST_SHARED = 2**16, 4_000_000
#: Bits, of 256, by which two keypoints of one motif differ at most to be found among all, and keypoints that two images
#: must share.
_MAX_NEAR_BITS, _MIN_SHARED = 44, 4
#: Bits by which two matched keypoints differ at most.
_MAX_BITS = 64
#: Those that must agree on how one image is moved to the other: where their layouts differ, where they are similar (one
#: of 656 pairs found without it had fewer), and of two frames (of 61 pairs none had fewer than 10).
_MIN_CONSISTENT, _MIN_CONSISTENT_OF_SIMILAR, _MIN_CONSISTENT_OF_FRAMES = 6, 4, 5
#: Share of the matches that agree, or of the keypoints that both images show: at least one of the two. Of 99 copies of
#: another layout that were found without it, 2 had less; of 782 other pairs half.
_MIN_OF_MATCHES, _MIN_OF_SHOWN = 0.6, 0.15
#: Movements of one image to the other that are tried; how far apart the two keypoints are that tell one, and how close
#: to it others are, px.
_HYPOTHESES, _MIN_APART_PX, _CONSISTENT_PX = 200, 8, 3
#: Keypoints from which an affine movement is fitted, and the largest ratio of the scales of its axes.
_MIN_FITTED, _MAX_SHEAR = 8, 1.3
#: Turns points [N, 2] into complex numbers.
_COMPLEX = np.array([1, 1j], np.complex64)
#: Correlation of two layouts from which a pair is compared, and with common keypoints; the margin around the middle.
_MIN_CORRELATION, _MIN_SUPPORTED_CORRELATION, _MARGIN = 0.94, 0.8, 0.1
#: Correlation of the layouts of two frames of a burst at least; a third of a second apart it is 0.87 and more.
_MIN_FRAME_CORRELATION = 0.6
#: Images that are looked at together, and correlations of layouts, 4 bytes each.
_ROWS, _LIKENESSES = 128, 2**19
#: Candidates of an image by each measure: enough to link a group, and few where all look alike.
_CANDIDATES, _ROUGH_CANDIDATES = 6, 16
#: Numbers in the names of two frames of a burst differ by so much at most, and the times at which they were taken, s.
_BURST_STEP, _BURST_S = 2, 2.0

Float = NDArray[np.float32]
Points = NDArray[np.complex64]
Numbers = NDArray[np.int64]


def candidates(hashes: HashTable) -> Iterator[CandidatePair]:
    """Yield pairs of images that may show the same, the likeliest first; not blank images, whose hashes are noise.

    At most 12 for each image, so that a set of icons of one template does not cost the square of its size.
    """
    if (count := len(hashes.numbers)) < 2:
        return
    shared_pairs, of_shared = _sharing_keypoints(hashes)
    # Else the heap keeps their arrays: 22 MiB of 6,000 images.
    release_memory()
    alike_pairs, of_alike = _alike_layouts(hashes)
    release_memory()
    pairs = np.union1d(shared_pairs, alike_pairs)
    shared: Numbers = np.zeros(len(pairs), np.int64)
    alike: NDArray[np.float64] = np.zeros(len(pairs))
    shared[np.searchsorted(pairs, shared_pairs)] = of_shared
    alike[np.searchsorted(pairs, alike_pairs)] = of_alike
    least_alike = np.where(shared > 0, _MIN_SUPPORTED_CORRELATION, _MIN_CORRELATION)
    is_candidate = (shared >= _MIN_SHARED) | (alike >= least_alike)
    pairs, alike, scores = pairs[is_candidate], alike[is_candidate], (shared + KEYPOINTS * alike)[is_candidate]
    for index in np.lexsort((pairs, -scores)):
        one, other = divmod(int(pairs[index]), count)
        least = _MIN_CONSISTENT if alike[index] < _MIN_SUPPORTED_CORRELATION else _MIN_CONSISTENT_OF_SIMILAR
        # Most images that share keypoints have a corner or a letter in common. To rule them out here takes a 30th.
        guess = _keypoint_guess(hashes, one, other, least)
        if guess is not None or alike[index] >= _MIN_CORRELATION:
            yield CandidatePair(int(hashes.numbers[one]), int(hashes.numbers[other]), guess)


def _keypoint_guess(
    hashes: HashTable, one: int, other: int, least: int, *, is_burst: bool = False
) -> KeypointGuess | None:
    """How one image is moved, scaled and turned to the other; None unless enough of their common keypoints agree.

    0.2 ms for 64 of each. Of a copy, most of the matches agree, or many of the keypoints that both images show; two
    images with one motif in common have other matches by chance, and much that only one of them has.
    """
    points, other_points, matches = _matched(hashes, one, other)
    if len(matches) < least:
        return None
    # As complex numbers, such a movement is one product and one sum; two matches tell it.
    start, end = points[matches[:, 0]], other_points[matches[:, 1]]
    first, second = _pairs_of(len(start))
    apart = start[first] - start[second]
    turn = (end[first] - end[second]) / np.where(apart == 0, 1, apart)
    is_possible = (np.abs(apart) > _MIN_APART_PX) & (np.abs(turn) < MAX_SCALE) & (np.abs(turn) > 1 / MAX_SCALE)
    first, turn = first[is_possible], turn[is_possible, None]
    if not len(first):
        return None
    gap = np.abs(end - end[first, None] - turn * (start - start[first, None]))
    agrees = gap < _CONSISTENT_PX * np.maximum(1, np.abs(turn))
    best = int(agrees.sum(axis=1).argmax())
    count, turned = int(agrees[best].sum()), turn[best, 0]
    moved = end[first[best]] - turned * start[first[best]]
    shown = min(
        _count_within(points * turned + moved, hashes.sizes[other]),
        _count_within((other_points - moved) / turned, hashes.sizes[one]),
    )
    if count < least or not (is_burst or count >= min(_MIN_OF_MATCHES * len(start), _MIN_OF_SHOWN * shown)):
        return None
    transform = _similarity(complex(turned), complex(moved))
    if count >= _MIN_FITTED:
        fitted = _fitted(start[agrees[best]], end[agrees[best]])
        transform = fitted if is_plausible(fitted, _MAX_SHEAR) else transform
    return KeypointGuess(transform, count)


def _matched(hashes: HashTable, one: int, other: int) -> tuple[Points, Points, Numbers]:
    """The keypoints of two images as complex numbers, and the indices [N, 2] of those that are each other's nearest."""
    (points, bits), (other_points, other_bits) = hashes.keypoints(one), hashes.keypoints(other)
    start, end = points @ _COMPLEX, other_points @ _COMPLEX
    if not len(bits) or not len(other_bits):
        return start, end, np.zeros((0, 2), np.int64)
    # Word by word: a sum along the last axis takes three times as long.
    words = zip(bits.view(np.uint64).T, other_bits.view(np.uint64).T, strict=True)
    apart = sum(np.bitwise_count(one_word[:, None] ^ other_word).astype(np.uint16) for one_word, other_word in words)
    nearest, rows = apart.argmin(axis=1), np.arange(len(bits))
    is_match = (apart[rows, nearest] <= _MAX_BITS) & (apart.argmin(axis=0)[nearest] == rows)
    return start, end, np.stack([rows[is_match], nearest[is_match]], axis=1)


def _fitted(start: Points, end: Points) -> Transform:
    """The affine movement of points with the least squares of the distances that are left."""
    rows = np.stack([start.real, start.imag, np.ones_like(start.real)], axis=1)
    movement = np.linalg.lstsq(rows, np.stack([end.real, end.imag], axis=1), rcond=None)[0]
    return np.vstack([movement.T, [0.0, 0.0, 1.0]])


def _similarity(turned: complex, moved: complex) -> Transform:
    """The matrix [3, 3] of a product and a sum of complex numbers."""
    return np.array([[turned.real, -turned.imag, moved.real], [turned.imag, turned.real, moved.imag], [0.0, 0.0, 1.0]])


def _count_within(points: Points, size: Float) -> int:
    """Count the points, as complex numbers, that lie in an image of this size."""
    across, down = np.abs(2 * points.real - size[0]) <= size[0], np.abs(2 * points.imag - size[1]) <= size[1]
    return int(np.count_nonzero(across & down))


@lru_cache
def _pairs_of(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of so many matches, evenly sampled."""
    first, second = np.triu_indices(count, 1)
    every = max(1, len(first) // _HYPOTHESES)
    return first[::every], second[::every]


def burst_pairs(sources: Mapping[int, str], captured_at: Mapping[int, float]) -> list[tuple[int, int]]:
    """Pairs of images that may be frames of one burst, each with the lower number first.

    Their names follow each other, such as `IMG_0041.jpg` and `IMG_0042.jpg`, or they were taken within seconds.

    Args:
        sources: Names by image number.
        captured_at: Times in seconds, where known.
    """
    by_name: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for number, source in sources.items():
        if (match := re.fullmatch(r"(.*?)(\d{1,12})(\D*)", source, re.DOTALL)) is not None:
            by_name.setdefault((match[1], match[3]), []).append((int(match[2]), number))
    by_time = [(time, number) for number, time in captured_at.items()]
    pairs = {pair for frames in by_name.values() for pair in _following(frames, _BURST_STEP)}
    return sorted(pairs.union(_following(by_time, _BURST_S)))


def _following(frames: Iterable[tuple[float, int]], most: float) -> Iterator[tuple[int, int]]:
    """Pairs of the numbers of frames, each with the next ones that are not further away."""
    ordered = sorted(frames)
    for step in range(1, _BURST_STEP + 1):
        for (first, one), (second, other) in zip(ordered, ordered[step:], strict=False):
            if second - first <= most:
                yield min(one, other), max(one, other)


def alike_frames(hashes: HashTable, pairs: Iterable[tuple[int, int]]) -> list[CandidatePair]:
    """The pairs that look alike and share keypoints: most files are numbered, and few of them are frames of a burst."""
    numbers = np.array(list(pairs), np.int64).reshape(-1, 2).T
    rows = np.searchsorted(hashes.numbers, numbers)
    correlations = _turned_correlations(_views(hashes.layouts), rows)
    is_alike = correlations >= _MIN_FRAME_CORRELATION
    guessed = (
        CandidatePair(one, other, _keypoint_guess(hashes, row, other_row, _MIN_CONSISTENT_OF_FRAMES, is_burst=True))
        for (one, other), (row, other_row) in zip(numbers.T[is_alike].tolist(), rows.T[is_alike].tolist(), strict=True)
    )
    return [frames for frames in guessed if frames.guess is not None]


def _sharing_keypoints(hashes: HashTable) -> tuple[Numbers, Numbers]:
    """Pairs of images, as one number each, and how many keypoints they share, two at least; the best of each image.

    Descriptors that differ in few bits are near each other in one of several sorted orders (Charikar 2002): a fixed
    number of comparisons per keypoint, however many images there are.
    """
    rows = np.arange(len(hashes.numbers), dtype=np.int32)
    owners = np.repeat(rows, np.diff(hashes.starts))
    count, size = np.int64(len(rows)), len(owners)
    part = max(2, _MOST_SHARED // max(1, size))
    # A keypoint and another image that has it, as one number. In place, as millions of them are most of the memory.
    found: Numbers = np.zeros(0, np.int64)
    is_open = np.ones(size, np.bool_)
    for turn in range(_ORDERS):
        for near in _near_keypoints(hashes, owners, _order(hashes, owners, turn), is_open):
            end = len(found)
            found.resize(end + len(near), refcheck=False)
            found[end:] = near
        found.sort()
        # Most are in several orders.
        found.resize(_move_distinct(found), refcheck=False)
        for start in range(0, len(found), _BLOCK):
            keypoints = found[start : start + _BLOCK + part - 1] // count
            is_open[keypoints[part - 1 :][keypoints[part - 1 :] == keypoints[: 1 - part]]] = False
    counted = [_counted(found, hashes.starts[first : first + _ROWS + 1], first, count) for first in rows[::_ROWS]]
    pairs, shared = (np.concatenate(parts) for parts in zip(*counted, strict=True))
    del found, counted
    is_best = _are_best(np.stack(np.divmod(pairs, count)), shared)
    return pairs[is_best], shared[is_best]


def _order(hashes: HashTable, owners: NDArray[np.int32], turn: int) -> NDArray[np.int32]:
    """The keypoints of images that are not blank, sorted by their descriptors; each order starts with other bits."""
    leading = np.empty(len(owners), np.uint64)
    columns = (np.arange(8) + 4 * turn) % 32
    for start in range(0, len(leading), _BLOCK):
        block = np.ascontiguousarray(hashes.descriptors[start : start + _BLOCK][:, columns])
        leading[start : start + _BLOCK] = block.view(">u8").ravel()
    order = np.argsort(leading, kind="stable").astype(np.int32)
    return order[~hashes.is_blank[owners[order]]]


def _move_distinct(ordered: Numbers) -> int:
    """Move the distinct ones of ordered numbers to the front, a block at a time; return how many there are."""
    end = 0
    for start in range(0, len(ordered), _BLOCK):
        block = ordered[start : start + _BLOCK]
        is_new = np.diff(block, prepend=ordered[end - 1] if end else -1) != 0
        count = int(np.count_nonzero(is_new))
        ordered[end : end + count] = block[is_new]
        end += count
    return end


def _counted(found: Numbers, starts: Numbers, first: int, count: np.int64) -> tuple[Numbers, Numbers]:
    """Pairs of some images, as one number each, and how many keypoints each shares, two at least."""
    begin, end = np.searchsorted(found, [starts[0] * count, starts[-1] * count])
    keypoints, second = np.divmod(found[begin:end], count)
    owners = first + np.searchsorted(starts, keypoints, side="right") - 1
    pairs, shared = np.unique(owners * count + second, return_counts=True)
    return pairs[shared > 1], shared[shared > 1]


def _near_keypoints(
    hashes: HashTable, owners: NDArray[np.int32], order: NDArray[np.int32], is_open: NDArray[np.bool_]
) -> Iterator[Numbers]:
    """Yield, for open keypoints that are near one of another image in an order, both as one number; in blocks."""
    count, words = len(hashes.numbers), hashes.descriptors.view(np.uint64)
    for start in range(0, len(order), _BLOCK):
        at = order[start : start + _BLOCK + _NEXT].astype(np.int64)
        block, owner = np.ascontiguousarray(words[at].T), owners[at]
        for step in range(1, min(_NEXT, len(at) - 1) + 1):
            bits = np.bitwise_count(block[:, :-step] ^ block[:, step:]).sum(axis=0, dtype=np.uint16)
            near = np.flatnonzero((bits <= _MAX_NEAR_BITS) & (owner[:-step] != owner[step:]))
            one, other = at[near], at[near + step]
            # Owners ascend, so the lower keypoint is of the lower image.
            low, high = np.minimum(one, other), np.maximum(one, other)
            yield (low * count + owners[high])[is_open[low]]


def _are_best(pairs: Numbers, scores: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the pairs [2, N] are among the best of one of their images."""
    order = np.argsort(-scores, kind="stable")
    images: NDArray[np.int32] = pairs.astype(np.int32).T[order].ravel()
    # Each image with its best pairs first: those that begin its part, and no other image's.
    by_image = np.argsort(images, kind="stable")
    images = images[by_image]
    is_among_best = np.ones(len(images), np.bool_)
    is_among_best[_CANDIDATES:] = images[_CANDIDATES:] != images[:-_CANDIDATES]
    is_best = np.zeros(len(order), np.bool_)
    is_best[order[by_image[is_among_best] // 2]] = True
    return is_best


def _alike_layouts(hashes: HashTable) -> tuple[Numbers, Float]:
    """Pairs of images of a similar layout, as one number each, turned and mirrored in any way, with the correlation.

    A comparison that ignores turns finds a few for each image in one matrix product; these are compared in all turns.
    """
    views, count = _views(hashes.layouts), np.int64(len(hashes.numbers))
    rough = np.empty((views.shape[1], *views.shape[::2]), np.float32)
    for start in range(0, count, _ROWS):
        rough[:, start : start + _ROWS] = _without_turns(views[start : start + _ROWS]).transpose(1, 0, 2)
    rough[:, hashes.is_blank] = 0
    found = [np.zeros(0, np.int64)]
    rows = max(1, _LIKENESSES // max(1, len(views)))
    for start in range(0, count, rows):
        likeness = np.full((len(rough[0][start : start + rows]), count), -1.0, dtype=np.float32)
        for one, other in itertools.product(rough, repeat=2):
            np.maximum(likeness, one[start : start + rows] @ other.T, out=likeness)
        itself = np.arange(len(likeness))
        likeness[itself, start + itself] = -1
        row, column = np.nonzero(likeness >= _MIN_SUPPORTED_CORRELATION)
        best = np.lexsort((-likeness[row, column], row))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        row, column = row[best][rank < _ROUGH_CANDIDATES] + start, column[best][rank < _ROUGH_CANDIDATES]
        found.append(np.minimum(row, column) * count + np.maximum(row, column))
    pairs = np.unique(np.concatenate(found))
    divided = np.stack(np.divmod(pairs, count))
    correlations = _turned_correlations(views, divided)
    is_alike = correlations >= _MIN_SUPPORTED_CORRELATION
    pairs, divided, correlations = pairs[is_alike], divided[:, is_alike], correlations[is_alike]
    is_best = _are_best(divided, correlations)
    return pairs[is_best], correlations[is_best]


def _views(layouts: NDArray[np.uint8]) -> Float:
    """Low frequencies [N, 3, D], each of length 1: of the whole image, of its content, and of the middle of that."""
    views = np.empty((len(layouts), 3, len(_ORDERED)), np.float32)
    for start in range(0, len(layouts), _ROWS):
        whole, content = layouts[start : start + _ROWS].transpose(1, 0, 2).astype(np.float32)
        views[start : start + _ROWS] = np.stack([whole @ _WHOLE.T, content @ _WHOLE.T, content @ _MIDDLE.T], axis=1)
    views /= np.maximum(np.linalg.norm(views, axis=2, keepdims=True), 1e-6)
    return views


def _frequency_matrix(margin: float) -> Float:
    """DCT coefficients [D, 256] of the layout without a margin; high ones weigh more, as they have less power."""
    edges = np.linspace(0, 1, LAYOUT_PX + 1)
    start, end = np.maximum(edges[:-1], margin), np.minimum(edges[1:], 1 - margin)
    share, middle = np.clip(end - start, 0, None), ((start + end) / 2 - margin) / (1 - 2 * margin)
    cosines = np.array([share * np.cos(np.pi * k * middle) for k in range(_FREQUENCIES)])
    rows = [np.outer(cosines[u], cosines[v]).ravel() * _weight(u, v) for u, v in _ORDERED]
    return np.array(rows, dtype=np.float32)


def _weight(u: int, v: int) -> float:
    return float((u * u + v * v) ** 0.35 * (2 if u and v else 2**0.5))


#: Frequencies (down, across) in the order of the columns.
_ORDERED = [(u, v) for u in range(_FREQUENCIES) for v in range(_FREQUENCIES) if u + v]
_WHOLE, _MIDDLE = _frequency_matrix(0.0), _frequency_matrix(_MARGIN)
_SWAPPED = np.array([_ORDERED.index((v, u)) for u, v in _ORDERED])
_DOWN, _ACROSS = (np.array([(-1.0) ** pair[axis] for pair in _ORDERED], dtype=np.float32) for axis in (0, 1))


def _without_turns(views: Float) -> Float:
    """What turns and mirrors leave: they flip the signs of odd frequencies, and swap down and across.

    Two of these are at least as similar as the views themselves in their best turn.
    """
    signed = np.where((_DOWN > 0) & (_ACROSS > 0), views, np.abs(views))
    swapped = signed[..., _SWAPPED]
    is_upper = np.array([u < v for u, v in _ORDERED])
    is_lower = is_upper[_SWAPPED]
    turned = np.where(is_upper, signed + swapped, np.abs(signed - swapped)) / np.float32(2**0.5)
    return np.asarray(np.where(is_upper | is_lower, turned, signed), dtype=np.float32)


def _turned_correlations(views: Float, pairs: Numbers) -> Float:
    """The best correlation of any two views of each pair [2, N], in any of eight turns."""
    best = np.full(pairs.shape[1], -1.0, dtype=np.float32)
    for start in range(0, pairs.shape[1], 4096):
        part = slice(start, start + 4096)
        first, second = views[pairs[0, part]], views[pairs[1, part]]
        for is_swapped, down, across in itertools.product((False, True), (None, _DOWN), (None, _ACROSS)):
            turned = second[..., _SWAPPED] if is_swapped else second
            for sign in (down, across):
                turned = turned if sign is None else turned * sign
            best[part] = np.maximum(best[part], (first @ turned.transpose(0, 2, 1)).max(axis=(1, 2)))
    return best
