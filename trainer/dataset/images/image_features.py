"""Describes each image by 251 numbers (colors, layout, edges, style), and finds outliers and diverse images by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image

from trainer.protocol.report import Finding, FindingKind
from trainer.protocol.text import _

#: Images are scaled to this square first. The directions are a power of two.
_SIDE_PX, _CELLS, _DIRECTIONS = 96, 4, 8
#: Length of each block of the feature.
_COLORS, _LAYOUT, _EDGES, _STYLE = 64, _CELLS**2 * 3, _CELLS**2 * _DIRECTIONS, 11
_SIZE = _COLORS + _LAYOUT + _EDGES + _STYLE
#: Columns that tell a photograph from a drawing or a scan, whatever it shows.
STYLE = slice(_SIZE - _STYLE, _SIZE)
#: Weights of the blocks. By color alone, each image with another background would be an outlier
#: (docs/dataset-checks.md).
_COLOR_WEIGHT, _LAYOUT_WEIGHT, _STYLE_WEIGHT = 0.5, 0.2, 1.5

#: Fewer different images have no majority to differ from.
_MIN_IMAGES = 12
#: Neighbors of each image: up to five similar outliers still count as outliers.
_NEIGHBORS = 6
#: Distance to the neighbors in multiples of the usual one: the geometric mean of the distances in all columns and in
#: the style columns, and the least in all columns (a black background alone is another style).
_MAX_DISTANCE, _MIN_WHOLE_DISTANCE = 2.65, 1.2
#: Squared distance up to which features are equal: what rounding leaves.
_SAME_GAP = 1e-4
#: Distances that are computed at once, of 4 bytes each.
_BLOCK = 2**19
#: Spread of a style column below which it is ignored.
_MIN_SPREAD = 0.06
#: At most this share, and always up to three, are reported: of more, the set is mixed and its kinds are no outliers.
_MAX_SHARE, _ALWAYS_ALLOWED = 0.05, 3

#: The first bin of the grid cell of each pixel.
_CELL_ROWS, _CELL_COLUMNS = np.mgrid[:_SIDE_PX, :_SIDE_PX] * _CELLS // _SIDE_PX
_CELL_STARTS = (_CELL_ROWS * _CELLS + _CELL_COLUMNS) * _DIRECTIONS
#: Tangents of the angles between two directions: 11.25° and so on; and where the cells of color begin among 16 levels.
_STEP_ENDS = np.tan(np.radians([11.25, 33.75, 56.25, 78.75])).astype(np.float32)
_CELLS_OF_16 = (0, 6, 8, 10)

Float = NDArray[np.float32]
Plane = NDArray[np.uint8]


def image_feature(thumbnail: Image.Image | Plane) -> bytes:
    """Compute the feature of an upright RGB thumbnail: 251 little-endian float16; half a millisecond on one core."""
    # By averaging it would take as long as all the rest.
    pixels = cv2.resize(np.asarray(thumbnail), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_LINEAR)
    lab = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), dtype=np.uint8)
    planes = [np.asarray(plane, dtype=np.uint8) for plane in cv2.split(lab)]
    dx, dy = (np.asarray(gradient, dtype=np.float32) for gradient in cv2.spatialGradient(planes[0]))
    strength = np.asarray(cv2.magnitude(dx, dy), dtype=np.float32)
    palette = np.asarray(cv2.calcHist([lab], [0, 1, 2], None, [16] * 3, [0, 256] * 3), dtype=np.float32)
    blocks = (_colors(palette), _layout(lab), _edges(dx, dy, strength), _style(planes, strength, palette))
    return np.concatenate(blocks).astype("<f2").tobytes()


def stack_features(features: Sequence[bytes]) -> Float:
    """Features as rows [N, 251]; unrelated images are about 2 apart (Euclidean distance), similar ones 0.7."""
    rows = np.empty((len(features), _SIZE), np.float32)
    for row, feature in zip(rows, features, strict=True):
        row[:] = np.frombuffer(feature, dtype="<f2")
    return rows


def find_outliers(features: Mapping[int, bytes], groups: Mapping[int, int]) -> dict[int, Finding]:
    """A warning for each image that differs from the rest, by image number. Prefers precision over recall.

    Args:
        features: `image_feature` of each image, by its number.
        groups: Near-duplicate group by image number; an image without one stands alone. A group counts as one image:
            copies of an outlier do not hide it.
    """
    numbers = _first_of_each_group(features, groups)
    if len(numbers) < _MIN_IMAGES:
        return {}
    points = stack_features([features[number] for number in numbers])
    whole, style = _relative_distance(points), _relative_distance(_standardized(points[:, STYLE]))
    distance = np.sqrt(whole * style)
    is_outlier = (distance > _MAX_DISTANCE) & (whole > _MIN_WHOLE_DISTANCE)
    limit = max(_ALWAYS_ALLOWED, round(_MAX_SHARE * len(numbers)))
    rows = [int(row) for row in np.argsort(-distance, kind="stable") if is_outlier[row]][:limit]
    by_group = {groups.get(numbers[row], numbers[row]): _finding(float(distance[row])) for row in rows}
    found = ((number, by_group.get(groups.get(number, number))) for number in features)
    return {number: finding for number, finding in found if finding is not None}


def isolated(features: Mapping[int, bytes], groups: Mapping[int, int], count: int = 5) -> tuple[int, ...]:
    """The images farthest from the nearest image of another group, farthest first; one of each group."""
    numbers = _first_of_each_group(features, groups)
    if len(numbers) < 2:
        return ()
    nearest = _neighbors(stack_features([features[number] for number in numbers]), 1).distances[:, 0]
    return tuple(numbers[row] for row in np.argsort(-nearest, kind="stable")[:count])


def diverse(features: Mapping[int, bytes], count: int = 8) -> tuple[int, ...]:
    """A few images that cover the range of all: the most central, then repeatedly the one farthest from those chosen.

    Farthest-point traversal (Gonzalez 1985): its covering radius is at most twice the optimum.
    """
    numbers = sorted(features)
    if not numbers:
        return ()
    points = stack_features([features[number] for number in numbers])
    squares = np.einsum("ij,ij->i", points, points)

    def gaps_to(center: Float) -> Float:
        # Without the differences, which take as much memory as the points.
        return np.asarray(squares - 2 * (points @ center) + center @ center, dtype=np.float32)

    row = int(np.argmin(gaps_to(points.mean(axis=0))))
    chosen = [row]
    gaps = gaps_to(points[row])
    while len(chosen) < count and float(gaps.max()) > _SAME_GAP:
        row = int(np.argmax(gaps))
        chosen.append(row)
        gaps = np.minimum(gaps, gaps_to(points[row]))
    return tuple(numbers[row] for row in chosen)


def _colors(palette: Float) -> Float:
    """Square root of the share of each of 4x4x4 cells of CIELAB: Euclidean distance is then Hellinger's."""
    # Nearly all real colors have a and b within 128 ± 64: cells of 32 there, and everything beyond in the outer ones.
    counts = np.add.reduceat(
        np.add.reduceat(palette.reshape(4, 4, 16, 16).sum(axis=1), _CELLS_OF_16, 1), _CELLS_OF_16, 2
    )
    return np.asarray(np.sqrt(counts / counts.sum()) * _COLOR_WEIGHT, dtype=np.float32).ravel()


def _layout(lab: NDArray[np.uint8]) -> Float:
    """Mean color of each cell of a 4x4 grid."""
    small = cv2.resize(lab, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
    spread = np.array([128.0, 48.0, 48.0], dtype=np.float32)
    return np.asarray((small - 128.0) / spread * _LAYOUT_WEIGHT, dtype=np.float32).ravel()


def _edges(dx: Float, dy: Float, strength: Float) -> Float:
    """Histogram of oriented gradients on a 4x4 grid (Dalal & Triggs 2005), its square root, of length 1."""
    sums = np.bincount((_directions(dx, dy) + _CELL_STARTS).ravel(), strength.ravel(), _EDGES)
    return np.asarray(np.sqrt(sums / max(float(sums.sum()), 1.0)), dtype=np.float32)


def _directions(dx: Float, dy: Float) -> Plane:
    """Angles in steps of 22.5°, 0 to 7: opposite ones are the same. In a fifth of the time of `arctan2`."""
    across, down = np.abs(dx), np.abs(dy)
    steps = np.zeros(dx.shape, np.uint8)
    for limit in _STEP_ENDS:
        steps += down > limit * across
    return np.where((dx < 0) == (dy < 0), steps, -steps) & np.uint8(_DIRECTIONS - 1)


def _style(planes: Sequence[Plane], strength: Float, palette: Float) -> Float:
    """Photograph, drawing or scan: share of edges, spread of light and color, flat share, size of the palette."""
    chroma = cv2.magnitude(*(np.subtract(plane, 128, dtype=np.float32) for plane in planes[1:]))
    edges = [np.count_nonzero(strength > limit) / strength.size for limit in (8, 32, 96, 256)]
    (light_mean, light_spread), (chroma_mean, chroma_spread) = map(_mean_and_deviation, (planes[0], chroma))
    spread = [light_mean / 255, light_spread / 96, chroma_mean / 64, chroma_spread / 32]
    colors = float(np.count_nonzero(palette) / palette.size) ** 0.5
    flat = [np.count_nonzero(strength == 0) / strength.size, colors, float(strength.mean()) / 128]
    return np.array([*edges, *spread, *flat], dtype=np.float32) * np.float32(_STYLE_WEIGHT)


def _mean_and_deviation(plane: MatLike) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(plane)
    return float(mean[0, 0]), float(deviation[0, 0])


@dataclass(frozen=True, kw_only=True)
class _Neighbors:
    """Distances [N, k] to the nearest other rows, and their indices."""

    distances: Float
    rows: NDArray[np.int64]


def _neighbors(points: Float, count: int) -> _Neighbors:
    """By brute force in blocks, with flat memory: a tree gains nothing in 251 dimensions.

    5 s for 20,000 images on one core; scikit-learn takes 7, and 160 MB to load.
    """
    squares = np.einsum("ij,ij->i", points, points)
    found = []
    for start in range(0, len(points), step := max(1, _BLOCK // len(points))):
        block = squares[start : start + step, None] + squares - 2 * (points[start : start + step] @ points.T)
        rows = np.arange(len(block))
        block[rows, rows + start] = np.inf
        nearest = np.argpartition(block, count - 1, axis=1)[:, :count]
        nearest = np.take_along_axis(nearest, np.argsort(np.take_along_axis(block, nearest, axis=1), axis=1), axis=1)
        found.append((np.sqrt(np.maximum(np.take_along_axis(block, nearest, axis=1), 0)), nearest))
    distances, neighbors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Neighbors(distances=np.asarray(distances, dtype=np.float32), rows=np.asarray(neighbors, dtype=np.int64))


def _first_of_each_group(features: Mapping[int, bytes], groups: Mapping[int, int]) -> list[int]:
    """The lowest number of each group, ascending."""
    first: dict[int, int] = {}
    for number in sorted(features):
        first.setdefault(groups.get(number, number), number)
    return sorted(first.values())


def _relative_distance(points: Float) -> Float:
    """Mean distance to the neighbors, relative to the usual one in the set or around the neighbors, the larger.

    An image in a sparse region is no outlier, since its neighbors are far from theirs too (simplified local outlier
    factor; Schubert, Zimek & Kriegel 2014).
    """
    found = _neighbors(points, min(_NEIGHBORS, (len(points) - 1) // 2))
    mean = found.distances.mean(axis=1)
    usual = np.maximum(np.median(mean[found.rows], axis=1), float(np.median(mean)))
    return np.asarray(mean / np.maximum(usual, 1e-6), dtype=np.float32)


def _standardized(columns: Float) -> Float:
    """Columns in units of their spread (median absolute deviation)."""
    centered = columns - np.median(columns, axis=0)
    spread = 1.4826 * np.median(np.abs(centered), axis=0) + _MIN_SPREAD
    return np.asarray(centered / spread, dtype=np.float32)


def _finding(distance: float) -> Finding:
    return Finding(
        kind=FindingKind.OUTLIER,
        measure=round(distance, 3),
        threshold=_MAX_DISTANCE,
        action="kept",
        message=_("it differs from the others in color, layout or style"),
    )
