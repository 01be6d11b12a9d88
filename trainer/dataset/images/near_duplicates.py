"""Finds exact and near duplicates: candidate pairs by keypoints and layout, confirmed by aligning thumbnails."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from trainer.console import Progress, ignore_progress
from trainer.dataset.images.image_registration import Keypoints, consistent_keypoints, content_box, detect_keypoints
from trainer.dataset.memory import keep_freed_memory
from trainer.errors import DecodersError
from trainer.protocol.text import _

#: How bytes are written as JSON.
BYTES_AS_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

#: Side of the layouts, and the low frequencies of each that are compared, px.
_LAYOUT_PX, _FREQUENCIES = 16, 6
#: Standard deviation of gray below which an image is blank and its hashes are noise.
_BLANK_DEVIATION = 4.0
#: Longest side of the image whose keypoints are stored, px; how many of them, and from how many octaves.
_KEYPOINT_PX, _KEYPOINTS, _OCTAVES = 128, 64, 5
#: Orders in which all keypoints are sorted, and the next ones in each that are compared.
_ORDERS, _NEXT = 8, 6
#: Keypoints of an order that are compared at a time: 5 MB. And the keypoints that images share, of all together, after
#: which no more are looked for of those that have their part: the ones that all images of a template have.
_BLOCK, _MOST_SHARED = 2**16, 4_000_000
#: Bits, of 256, by which two keypoints of one motif differ at most, and keypoints that two images must share.
_MAX_BITS, _MIN_SHARED = 44, 4
#: Those that must agree on how one image is moved to the other: where their layouts differ, where they are similar (one
#: of 656 pairs found without it had fewer), and of two frames (of 61 pairs none had fewer than 10).
_MIN_CONSISTENT, _MIN_CONSISTENT_OF_SIMILAR, _MIN_CONSISTENT_OF_FRAMES = 6, 4, 5
#: Correlation of two layouts from which a pair is compared, and with common keypoints; the margin around the middle.
_MIN_CORRELATION, _MIN_SUPPORTED_CORRELATION, _MARGIN = 0.94, 0.8, 0.1
#: Correlation of the layouts of two frames of a burst at least; a third of a second apart it is 0.87 and more.
_MIN_FRAME_CORRELATION = 0.6
#: Images whose layouts are compared with all others at a time, 20 MB with 20,000; and candidates of an image by each
#: measure: enough to link a group, and few where all look alike.
_ROWS, _CANDIDATES, _ROUGH_CANDIDATES = 128, 6, 16
#: Pairs that are compared at most (5 to 10 ms each), plus one for each image: a large set of look-alikes has far more.
_MOST_COMPARED = 5_000
#: Pairs that are divided among processes at least, if there are more; those that one compares at a time; and from how
#: many on it is worth to start processes.
_ROUND, _BATCH, _WORTH_PROCESSES = 512, 16, 96
#: Numbers in the names of two frames of a burst differ by so much at most, and the times at which they were taken, s.
_BURST_STEP, _BURST_S = 2, 2.0

#: Difference of two images that show the same, 0 to 1; None if they do not.
PairDifference = Callable[[int, int], float | None]
Pair = tuple[int, int]
#: A pair of near duplicates and their difference.
NearPair = tuple[int, int, float]
Float = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHashes:
    """What finds the images that may show the same as this one: 2.7 KB."""

    __pydantic_config__: ClassVar[ConfigDict] = BYTES_AS_BASE64
    #: 16x16 gray pixels of the whole image, row by row.
    blurred: bytes
    #: The same without borders of one color.
    content: bytes
    #: Descriptors of its keypoints, 32 bytes each; and their places, two bytes each, in half px.
    keypoints: bytes
    places: bytes
    is_blank: bool


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


def image_hashes(thumbnail: Image.Image | NDArray[np.uint8]) -> ImageHashes:
    """Compute the hashes of an upright RGB thumbnail; 1 ms on one core."""
    whole = np.asarray(thumbnail)
    height, width = whole.shape[:2]
    scale = _KEYPOINT_PX / max(width, height)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(whole, size, interpolation=interpolation), np.uint8)
    gray = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    left, top, right, bottom = content_box(pixels)
    points, descriptors = detect_keypoints(gray, _KEYPOINTS, _OCTAVES)
    return ImageHashes(
        blurred=_layout(gray),
        content=_layout(gray[top:bottom, left:right]),
        keypoints=descriptors.tobytes(),
        places=np.clip(np.rint(2 * points), 0, 255).astype(np.uint8).tobytes(),
        is_blank=float(cv2.meanStdDev(gray)[1][0, 0]) < _BLANK_DEVIATION,
    )


def _layout(gray: NDArray[np.uint8]) -> bytes:
    return np.asarray(cv2.resize(gray, (_LAYOUT_PX, _LAYOUT_PX), interpolation=cv2.INTER_AREA), np.uint8).tobytes()


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
    hashes: Mapping[int, ImageHashes],
    difference: PairDifference,
    consecutive: Sequence[Pair] = (),
    progress: Progress = ignore_progress,
    processes: int = 1,
) -> Iterator[NearPair]:
    """Yield pairs of near duplicates with their difference: enough of them to join each group.

    Args:
        hashes: By image number.
        difference: Confirms a candidate pair; each process gets a copy.
        consecutive: Pairs that may be frames of a burst, whatever their hashes.
        progress: Called with the phase "comparing".
        processes: How many compare; the pairs found do not depend on it.

    Raises:
        DecodersError: One of them died.
    """
    possible = list(itertools.islice(candidates(hashes), _MOST_COMPARED + len(hashes)))
    possible += _alike_frames(hashes, consecutive)
    groups = UnionFind(max(hashes, default=0) + 1)
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


def _next_pairs(pairs: Sequence[Pair], groups: UnionFind) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs of different groups, the likeliest first, into those to compare now and those to compare later.

    Now: a spanning forest of the groups (Kruskal 1956), so that no pair is compared that another one makes needless.
    """
    forest = UnionFind(max(map(max, pairs)) + 1)
    chosen, later = [], []
    for pair in pairs:
        one, other = groups.find(pair[0]), groups.find(pair[1])
        if one == other:
            continue
        if forest.find(one) == forest.find(other):
            later.append(pair)
        else:
            forest.join(one, other)
            chosen.append(pair)
    return chosen, later


def _by_component(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield pairs of images that are linked by others together, many at a time: a process loads each image once."""
    components = UnionFind(max(map(max, pairs), default=0) + 1)
    for pair in pairs:
        components.join(*pair)
    linked: list[Pair] = []
    by_root = sorted(pairs, key=lambda pair: components.find(pair[0]))
    for _root, component in itertools.groupby(by_root, key=lambda pair: components.find(pair[0])):
        linked += component
        if len(linked) >= _ROUND:
            yield linked
            linked = []
    yield linked


@contextmanager
def _comparing(
    difference: PairDifference, processes: int
) -> Iterator[Callable[[Iterable[Sequence[Pair]]], Iterable[list[NearPair]]]]:
    """Give a function that compares batches of pairs, in this process or in several."""
    if processes == 1:
        yield partial(map, partial(_confirmed, difference))
        return
    context = multiprocessing.get_context("forkserver")
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(difference,)) as pool:
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


def _confirmed_here(pairs: Sequence[Pair]) -> list[NearPair]:
    assert _difference is not None, "set when the process began"
    return _confirmed(_difference, pairs)


def _confirmed(difference: PairDifference, pairs: Sequence[Pair]) -> list[NearPair]:
    measured = ((one, other, difference(one, other)) for one, other in pairs)
    return [(one, other, found) for one, other, found in measured if found is not None]


def candidates(hashes: Mapping[int, ImageHashes]) -> Iterator[Pair]:
    """Yield pairs of images that may show the same, the likeliest first; not blank images, whose hashes are noise.

    At most 12 for each image, so that a set of icons of one template does not cost the square of its size.
    """
    numbers = [number for number, hashed in hashes.items() if not hashed.is_blank]
    if len(numbers) < 2:
        return
    shared = _sharing_keypoints([hashes[number].keypoints for number in numbers])
    alike = _alike_layouts([hashes[number] for number in numbers])
    scores = {
        pair: shared.get(pair, 0) + _KEYPOINTS * alike.get(pair, 0.0)
        for pair in {*shared, *alike}
        if shared.get(pair, 0) >= _MIN_SHARED
        or alike.get(pair, 0.0) >= (_MIN_SUPPORTED_CORRELATION if pair in shared else _MIN_CORRELATION)
    }
    for pair in sorted(scores, key=lambda pair: (-scores[pair], pair)):
        one, other = numbers[pair[0]], numbers[pair[1]]
        correlation = alike.get(pair, 0.0)
        least = _MIN_CONSISTENT if correlation < _MIN_SUPPORTED_CORRELATION else _MIN_CONSISTENT_OF_SIMILAR
        # Most images that share keypoints have a corner or a letter in common. To rule them out here takes a 30th.
        if correlation >= _MIN_CORRELATION or _are_consistent(hashes[one], hashes[other], least):
            yield one, other


def _are_consistent(one: ImageHashes, other: ImageHashes, least: int) -> bool:
    """Whether so many of the keypoints that two images share are arranged alike."""
    return consistent_keypoints(_keypoints(one), _keypoints(other), least) >= least


def _keypoints(hashed: ImageHashes) -> Keypoints:
    places = np.frombuffer(hashed.places, dtype=np.uint8).reshape(-1, 2) * np.float32(0.5)
    return places.astype(np.float32), np.frombuffer(hashed.keypoints, dtype=np.uint8).reshape(-1, 32)


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


def _alike_frames(hashes: Mapping[int, ImageHashes], pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that look alike and share keypoints: most files are numbered, and few of them are frames of a burst."""
    known = [pair for pair in pairs if all(number in hashes for number in pair)]
    numbers = sorted({number for pair in known for number in pair})
    if not numbers:
        return []
    views, indices = _views([hashes[n] for n in numbers]), np.searchsorted(numbers, np.array(known, dtype=np.int64).T)
    correlations = _turned_correlations(views, indices)
    return [
        (one, other)
        for (one, other), correlation in zip(known, correlations, strict=True)
        if correlation >= _MIN_FRAME_CORRELATION
        and _are_consistent(hashes[one], hashes[other], _MIN_CONSISTENT_OF_FRAMES)
    ]


def _sharing_keypoints(keypoints: Sequence[bytes]) -> dict[Pair, int]:
    """Pairs of images with the number of keypoints that they share, two at least; the best of each image.

    Descriptors that differ in few bits are near each other in one of several sorted orders (Charikar 2002): a fixed
    number of comparisons per keypoint, however many images there are.
    """
    descriptors = np.frombuffer(b"".join(keypoints), dtype=np.uint8).reshape(-1, 32)
    owners = np.repeat(np.arange(len(keypoints)), [len(each) // 32 for each in keypoints])
    count, size = np.int64(max(1, len(keypoints))), len(descriptors)
    # A keypoint and another image that has it, as one number.
    found: Numbers = np.zeros(0, np.int64)
    for turn in range(_ORDERS):
        # Each order starts with other bits.
        leading = np.ascontiguousarray(np.roll(descriptors, -4 * turn, axis=1)[:, :8]).view(">u8").ravel()
        order = np.argsort(leading, kind="stable")
        is_open = np.bincount(found // count, minlength=size) < max(2, _MOST_SHARED // max(1, size))
        found = np.concatenate([found, *_near_keypoints(descriptors, owners, order, is_open)])
        # Most are in several orders. In place: `np.unique` would copy them.
        found.sort()
        found = found[np.diff(found, prepend=-1) > 0]
    pairs, shared = (np.concatenate(parts) for parts in zip(*_counted(found, owners, count), strict=True))
    return _best_of_each(np.stack(np.divmod(pairs, count)), shared)


def _counted(found: Numbers, owners: Numbers, count: np.int64) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield pairs of images as one number, and how many keypoints each shares, two at least; in blocks of images."""
    for start in range(0, count, _ROWS):
        first, last = np.searchsorted(found, np.searchsorted(owners, [start, start + _ROWS]) * count)
        one, second = np.divmod(found[first:last], count)
        pairs, shared = np.unique(owners[one] * count + second, return_counts=True)
        yield pairs[shared > 1], shared[shared > 1]


def _near_keypoints(
    descriptors: NDArray[np.uint8], owners: Numbers, order: Numbers, is_open: NDArray[np.bool_]
) -> Iterator[Numbers]:
    """Yield, for open keypoints that are near one of another image in an order, both as one number; in blocks."""
    count = owners[-1] + 1 if len(owners) else 1
    words = descriptors.view(np.uint64)
    for start in range(0, len(order), _BLOCK):
        at = order[start : start + _BLOCK + _NEXT]
        block, owner = np.ascontiguousarray(words[at].T), owners[at]
        for step in range(1, min(_NEXT, len(at) - 1) + 1):
            bits = np.bitwise_count(block[:, :-step] ^ block[:, step:]).sum(axis=0, dtype=np.uint16)
            near = np.flatnonzero((bits <= _MAX_BITS) & (owner[:-step] != owner[step:]))
            one, other = at[near], at[near + step]
            # Owners ascend, so the lower keypoint is of the lower image.
            low, high = np.minimum(one, other), np.maximum(one, other)
            yield (low * count + owners[high])[is_open[low]]


def _best_of_each(pairs: Numbers, scores: NDArray[Any]) -> dict[Pair, Any]:
    """The pairs [2, N] that are among the best of one of their images, with their scores."""
    taken: Counter[int] = Counter()
    best: dict[Pair, Any] = {}
    for index in np.argsort(-scores, kind="stable"):
        one, other = int(pairs[0, index]), int(pairs[1, index])
        if taken[one] < _CANDIDATES or taken[other] < _CANDIDATES:
            best[one, other] = scores[index].item()
            taken[one] += 1
            taken[other] += 1
    return best


def _alike_layouts(hashes: Sequence[ImageHashes]) -> dict[Pair, float]:
    """Pairs of images of a similar layout, turned and mirrored in any way, with the correlation.

    A comparison that ignores turns finds a few for each image in one matrix product; these are compared in all turns.
    """
    views = _views(hashes)
    rough = [np.ascontiguousarray(each) for each in _without_turns(views).transpose(1, 0, 2)]
    found: list[Numbers] = []
    count = len(hashes)
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        likeness = np.full((len(rough[0][rows]), count), -1.0, dtype=np.float32)
        for one, other in itertools.product(rough, repeat=2):
            np.maximum(likeness, one[rows] @ other.T, out=likeness)
        itself = np.arange(len(likeness))
        likeness[itself, start + itself] = -1
        nearest = np.argpartition(-likeness, min(_ROUGH_CANDIDATES, count - 1) - 1, axis=1)[:, :_ROUGH_CANDIDATES]
        is_alike = np.take_along_axis(likeness, nearest, axis=1) >= _MIN_SUPPORTED_CORRELATION
        one, other = np.nonzero(is_alike)[0] + start, nearest[is_alike]
        found.append(np.minimum(one, other) * np.int64(count) + np.maximum(one, other))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(found)), np.int64(count)))
    correlations = _turned_correlations(views, pairs)
    is_alike = correlations >= _MIN_SUPPORTED_CORRELATION
    return _best_of_each(pairs[:, is_alike], correlations[is_alike])


def _views(hashes: Sequence[ImageHashes]) -> Float:
    """Low frequencies [N, 3, D], each of length 1: of the whole image, of its content, and of the middle of that."""
    whole, content = (
        np.frombuffer(b"".join(layouts), dtype=np.uint8).reshape(len(hashes), -1).astype(np.float32)
        for layouts in ([each.blurred for each in hashes], [each.content for each in hashes])
    )
    views = np.stack([whole @ _WHOLE.T, content @ _WHOLE.T, content @ _MIDDLE.T], axis=1)
    return np.asarray(views / np.maximum(np.linalg.norm(views, axis=2, keepdims=True), 1e-6), dtype=np.float32)


def _frequency_matrix(margin: float) -> Float:
    """DCT coefficients [D, 256] of the layout without a margin; high ones weigh more, as they have less power."""
    edges = np.linspace(0, 1, _LAYOUT_PX + 1)
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
