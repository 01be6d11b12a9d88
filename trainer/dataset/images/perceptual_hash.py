"""What a picture looks like in a few bytes: the hashes that find near-duplicates among thousands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

#: How bytes are written as JSON.
BYTES_AS_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_DCT_SIDE, _HASH_SIDE = 32, 8
#: Grey standard deviation below which a picture is blank, and its hash noise.
_BLANK_DEVIATION = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Hashes of one picture, 64 bits each, and a blurred 16x16 grey thumbnail."""

    __pydantic_config__: ClassVar[ConfigDict] = BYTES_AS_BASE64
    #: Perceptual hash: signs of the low DCT coefficients (Zauner 2010).
    phash: int
    #: The same of the mirrored picture.
    mirrored_phash: int
    #: Difference hash: signs of the horizontal gradient.
    dhash: int
    #: 256 bytes, row by row.
    blurred: bytes
    is_blank: bool


def look_of(thumbnail: Image.Image) -> Look:
    """The look of an upright RGB thumbnail."""
    grey = thumbnail.convert("L")
    small = np.asarray(grey.resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.BOX), dtype=np.float64)
    low = (_DCT @ small @ _DCT.T)[:_HASH_SIDE, :_HASH_SIDE]
    # Mirroring a picture flips the sign of its odd horizontal frequencies, and does nothing else.
    mirrored = low * np.where(np.arange(_HASH_SIDE) % 2, -1.0, 1.0)
    steps = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    blurred = grey.resize((16, 16), Image.Resampling.BOX)
    return Look(
        phash=_bits(low > np.median(low)),
        mirrored_phash=_bits(mirrored > np.median(mirrored)),
        dhash=_bits(steps[:, 1:] > steps[:, :-1]),
        blurred=blurred.tobytes(),
        is_blank=float(np.asarray(grey, dtype=np.float64).std()) < _BLANK_DEVIATION,
    )


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags.ravel()).tobytes(), "big")


def _dct_matrix(side: int) -> NDArray[np.float64]:
    """The orthogonal DCT-II as a matrix."""
    k, n = np.mgrid[:side, :side]
    matrix = np.cos(np.pi * (2 * n + 1) * k / (2 * side)) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, dtype=np.float64)


_DCT = _dct_matrix(_DCT_SIDE)
