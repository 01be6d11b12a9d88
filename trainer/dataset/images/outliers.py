"""Pictures that do not belong to the rest, and those that show its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.dataset.images.features import MANNER, stack
from trainer.protocol.report import Finding, FindingKind

#: Fewer different pictures have no rest that one could be unlike.
_MIN_PICTURES = 12
#: Neighbours that are asked: five strangers of one kind are still strangers.
_NEIGHBOURS = 6
#: Times as far from its neighbours as usual: geometric mean of that in all that is measured and that in manner
#: (photograph, drawing) alone, and the least in all of it: a black background alone is another manner.
_MAX_DISTANCE, _MIN_WHOLE_DISTANCE = 2.65, 1.2
#: Up to here OpenCV takes 0.3 s; beyond, scikit-learn is four times as fast, but takes 2 s to load.
_FEW_PICTURES = 2_000
#: Spread of a manner column below which it tells nothing.
_MIN_SPREAD = 0.06
#: Most that are spoken of: beyond it the set is mixed, and its kinds are no outliers.
_MAX_SHARE, _ALWAYS_ALLOWED = 0.05, 3

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Neighbours:
    """Distances [N, k] to the nearest others, and their rows."""

    distances: Float
    rows: NDArray[np.int64]


def find_outliers(features: Mapping[int, bytes], groups: Mapping[int, int]) -> dict[int, Finding]:
    """A warning for each picture that is unlike the rest, by picture number; one too few rather than one too many.

    `features` come from `feature_of`. `groups` gives the near-duplicate group of a picture; one that is not in it
    stands alone. A group counts as one picture, so that an outlier's copy does not keep it company.
    """
    numbers = _one_of_each(features, groups)
    if len(numbers) < _MIN_PICTURES:
        return {}
    points = stack([features[number] for number in numbers])
    whole, manner = _strangeness(points), _strangeness(_spread_alike(points[:, MANNER]))
    strangeness = np.sqrt(whole * manner)
    is_strange = (strangeness > _MAX_DISTANCE) & (whole > _MIN_WHOLE_DISTANCE)
    limit = max(_ALWAYS_ALLOWED, round(_MAX_SHARE * len(numbers)))
    rows = [int(row) for row in np.argsort(-strangeness, kind="stable") if is_strange[row]][:limit]
    by_group = {groups.get(numbers[row], numbers[row]): _finding(float(strangeness[row])) for row in rows}
    found = ((number, by_group.get(groups.get(number, number))) for number in features)
    return {number: finding for number, finding in found if finding is not None}


def isolated(features: Mapping[int, bytes], groups: Mapping[int, int], count: int = 5) -> tuple[int, ...]:
    """The pictures farthest from the nearest picture of another group, the loneliest first; one of each group."""
    numbers = _one_of_each(features, groups)
    if len(numbers) < 2:
        return ()
    nearest = _neighbours(stack([features[number] for number in numbers]), 1).distances[:, 0]
    return tuple(numbers[row] for row in np.argsort(-nearest, kind="stable")[:count])


def diverse(features: Mapping[int, bytes], count: int = 8) -> tuple[int, ...]:
    """Few pictures that cover the range of all: the most central, then always the one farthest from those taken.

    Farthest-point traversal (Gonzalez 1985), at most twice as coarse as the best choice of as many.
    """
    numbers = sorted(features)
    if not numbers:
        return ()
    points = stack([features[number] for number in numbers])
    row = int(np.argmin(np.linalg.norm(points - points.mean(axis=0), axis=1)))
    chosen = [row]
    gaps = np.linalg.norm(points - points[row], axis=1)
    while len(chosen) < count and float(gaps.max()) > 0:
        row = int(np.argmax(gaps))
        chosen.append(row)
        gaps = np.minimum(gaps, np.linalg.norm(points - points[row], axis=1))
    return tuple(numbers[row] for row in chosen)


def _one_of_each(features: Mapping[int, bytes], groups: Mapping[int, int]) -> list[int]:
    """The lowest number of each group, ascending."""
    first: dict[int, int] = {}
    for number in sorted(features):
        first.setdefault(groups.get(number, number), number)
    return sorted(first.values())


def _strangeness(points: Float) -> Float:
    """Mean distance to the neighbours, in times of what is usual in the whole set or around them, the smaller.

    A picture in a sparse part is no outlier: its neighbours are far from theirs, too (simplified local outlier factor;
    Schubert, Zimek & Kriegel 2014).
    """
    found = _neighbours(points, min(_NEIGHBOURS, (len(points) - 1) // 2))
    mean = found.distances.mean(axis=1)
    usual = np.maximum(np.median(mean[found.rows], axis=1), float(np.median(mean)))
    return np.asarray(mean / np.maximum(usual, 1e-6), dtype=np.float32)


def _neighbours(points: Float, count: int) -> _Neighbours:
    """By brute force: a tree gains nothing in 251 dimensions. Memory stays flat."""
    if len(points) <= _FEW_PICTURES:
        distances, rows = cv2.batchDistance(points, points, cv2.CV_32F, normType=cv2.NORM_L2, K=count + 1)
        # The first is the picture itself, or its twin.
        distances, rows = distances[:, 1:], rows[:, 1:]
    else:
        from sklearn.neighbors import NearestNeighbors

        distances, rows = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points).kneighbors()
    return _Neighbours(distances=np.asarray(distances, dtype=np.float32), rows=np.asarray(rows, dtype=np.int64))


def _spread_alike(columns: Float) -> Float:
    """Columns in units of their spread (median absolute deviation): one that all pictures share tells most."""
    centred = columns - np.median(columns, axis=0)
    spread = 1.4826 * np.median(np.abs(centred), axis=0) + _MIN_SPREAD
    return np.asarray(centred / spread, dtype=np.float32)


def _finding(strangeness: float) -> Finding:
    return Finding(
        kind=FindingKind.OUTLIER,
        measure=round(strangeness, 3),
        threshold=_MAX_DISTANCE,
        action="kept",
        message=f"unlike the rest: its nearest neighbours are {strangeness:.1f} times as far as usual",
    )
