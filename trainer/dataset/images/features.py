"""A picture in 251 numbers that tell its kind: colours, where they are, and which way its lines run."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Every picture is brought to this square; what it shows is still plain to see.
_SIDE, _CELLS, _DIRECTIONS = 96, 4, 8
_COLOURS, _PLACES, _LINES, _MANNER = 64, _CELLS**2 * 3, _CELLS**2 * _DIRECTIONS, 11
_SIZE = _COLOURS + _PLACES + _LINES + _MANNER
#: Columns that tell a photograph from a drawing or a scan, whatever it shows.
MANNER = slice(_SIZE - _MANNER, _SIZE)
#: How much each block counts. By colour alone every picture on another background is a stranger
#: (docs/dataset-checks.md).
_COLOUR_WEIGHT, _PLACE_WEIGHT, _MANNER_WEIGHT = 0.5, 0.2, 1.5

Float = NDArray[np.float32]


def feature_of(thumbnail: Image.Image) -> bytes:
    """What tells an upright RGB thumbnail from others: 251 little-endian float16; 1 ms of one core."""
    pixels = np.asarray(thumbnail.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0))
    lab = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), dtype=np.uint8)
    dx, dy = (np.asarray(gradient, dtype=np.float32) for gradient in cv2.spatialGradient(lab[..., 0].copy()))
    strength = np.asarray(np.hypot(dx, dy), dtype=np.float32)
    blocks = (_colours(lab), _places(lab), _lines(dx, dy, strength), _manner(lab, strength))
    return np.concatenate(blocks).astype("<f2").tobytes()


def stack(features: Sequence[bytes]) -> Float:
    """Features as rows [N, 251], for Euclidean distance: unrelated pictures are about 2 apart, alike ones 0.7."""
    raw = np.frombuffer(b"".join(features), dtype="<f2").reshape(len(features), _SIZE)
    return raw.astype(np.float32)


def _colours(lab: NDArray[np.uint8]) -> Float:
    """Square root of the histogram over 4x4x4 cells of CIELAB: Euclidean distance is then Hellinger's."""
    light, red, yellow = (lab[..., channel].astype(np.int32) for channel in range(3))
    # Nearly all real colours have a and b within 128 ± 64: cells of 32 there, and everything beyond in the outer ones.
    cells = (light >> 6) * 16 + (np.clip(red - 64, 0, 127) >> 5) * 4 + (np.clip(yellow - 64, 0, 127) >> 5)
    counts = np.bincount(cells.ravel(), minlength=_COLOURS)
    return np.asarray(np.sqrt(counts / cells.size) * _COLOUR_WEIGHT, dtype=np.float32)


def _places(lab: NDArray[np.uint8]) -> Float:
    """Mean colour of 4x4 parts."""
    small = cv2.resize(lab, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
    spread = np.array([128.0, 48.0, 48.0], dtype=np.float32)
    return np.asarray((small - 128.0) / spread * _PLACE_WEIGHT, dtype=np.float32).ravel()


def _lines(dx: Float, dy: Float, strength: Float) -> Float:
    """Gradient by direction in 4x4 parts (Dalal & Triggs 2005), its square root, of length 1."""
    bins = np.rint(np.arctan2(dy, dx) * np.float32(_DIRECTIONS / np.pi)).astype(np.int32) % _DIRECTIONS
    rows, columns = np.mgrid[:_SIDE, :_SIDE] * _CELLS // _SIDE
    sums = np.bincount((bins + (rows * _CELLS + columns) * _DIRECTIONS).ravel(), strength.ravel(), _LINES)
    return np.asarray(np.sqrt(sums / max(float(sums.sum()), 1.0)), dtype=np.float32)


def _manner(lab: NDArray[np.uint8], strength: Float) -> Float:
    """Photograph, drawing or scan: spread of light and colour, edges, flat parts, size of the palette."""
    light, chroma = lab[..., 0], np.hypot(*(lab[..., channel].astype(np.float32) - 128 for channel in (1, 2)))
    palette = np.count_nonzero(np.bincount(_coarse(lab).ravel(), minlength=4096)) / 4096
    edges = [float((strength > limit).mean()) for limit in (8, 32, 96, 256)]
    spread = [float(light.mean()) / 255, float(light.std()) / 96, float(chroma.mean()) / 64, float(chroma.std()) / 32]
    flat = [float((strength == 0).mean()), palette**0.5, float(strength.mean()) / 128]
    return np.array([*edges, *spread, *flat], dtype=np.float32) * np.float32(_MANNER_WEIGHT)


def _coarse(lab: NDArray[np.uint8]) -> NDArray[np.int32]:
    parts = (lab >> 4).astype(np.int32)
    return np.asarray(parts[..., 0] * 256 + parts[..., 1] * 16 + parts[..., 2], dtype=np.int32)
