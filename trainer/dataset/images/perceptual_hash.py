"""`ImageHashes`: what finds the images that may show the same as another, made of a thumbnail."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from tempfile import TemporaryFile
from typing import IO, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from trainer.dataset.images.image_agreement import COMPARED_PX
from trainer.dataset.images.image_registration import content_box

#: How bytes are written as JSON.
BYTES_AS_BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

#: Side of the layouts, px.
LAYOUT_PX = 16
#: Standard deviation of gray below which an image is blank and its hashes are noise.
_BLANK_DEVIATION = 4.0
#: Keypoints that are stored of an image at `COMPARED_PX`; octaves; width that ORB leaves at the border, px.
KEYPOINTS, _OCTAVES, _MARGIN_PX = 64, 5, 16

#: Positions [N, 2] and descriptors [N, 32].
Keypoints = tuple[NDArray[np.float32], NDArray[np.uint8]]


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
    #: Width and height of the image in which they lie, px.
    size: tuple[int, int] = (COMPARED_PX, COMPARED_PX)


#: Of an image whose hashes are not in memory.
NO_HASHES = ImageHashes(blurred=b"", content=b"", keypoints=b"", places=b"", is_blank=True)


class HashTable:
    """The hashes of many images as arrays, mapped from temporary files: those of 20,000 images have 54 MB."""

    def __init__(self, hashes: Iterable[tuple[int, ImageHashes]]) -> None:
        """Store hashes by image number, which ascends."""
        numbers, starts, are_blank = array("q"), array("q", [0]), array("b")
        sizes = array("H")
        with TemporaryFile() as layouts, TemporaryFile() as descriptors, TemporaryFile() as places:
            for number, each in hashes:
                layouts.write(each.blurred + each.content)
                descriptors.write(each.keypoints)
                places.write(each.places)
                numbers.append(number)
                starts.append(starts[-1] + len(each.places) // 2)
                are_blank.append(each.is_blank)
                sizes.extend(each.size)
            #: Layouts [N, 2, 256]: of the whole image, and without borders.
            self.layouts = _mapped(layouts, 2 * LAYOUT_PX**2).reshape(-1, 2, LAYOUT_PX**2)
            #: Of all keypoints [M, 32].
            self.descriptors = _mapped(descriptors, 32)
            self._places = _mapped(places, 2)
        self.numbers, self.is_blank = np.array(numbers, np.int64), np.array(are_blank, np.bool_)
        #: Width and height of the image in which the keypoints lie, [N, 2].
        self.sizes = np.array(sizes, np.float32).reshape(-1, 2)
        #: Where the keypoints of each image begin, and where they end, [N + 1].
        self.starts = np.array(starts, np.int64)

    def keypoints(self, row: int) -> Keypoints:
        """Positions and descriptors of the keypoints of an image."""
        span = slice(self.starts[row], self.starts[row + 1])
        return self._places[span] * np.float32(0.5), self.descriptors[span]


def _mapped(file: IO[bytes], columns: int) -> NDArray[np.uint8]:
    file.flush()
    # An empty file cannot be mapped.
    flat = np.memmap(file, np.uint8, "r") if file.tell() else np.zeros(0, np.uint8)
    return np.asarray(flat).reshape(-1, columns)


def image_hashes(thumbnail: Image.Image | NDArray[np.uint8]) -> ImageHashes:
    """Compute the hashes of an upright RGB thumbnail; 1 ms on one core."""
    whole = np.asarray(thumbnail)
    height, width = whole.shape[:2]
    scale = COMPARED_PX / max(width, height)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    # A quarter of the whole; bilinear, frames of a burst shared too few keypoints.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(whole, size, interpolation=interpolation), np.uint8)
    gray = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    left, top, right, bottom = content_box(pixels)
    points, descriptors = _detect_keypoints(gray)
    return ImageHashes(
        blurred=_layout(gray),
        content=_layout(gray[top:bottom, left:right]),
        keypoints=descriptors.tobytes(),
        places=np.clip(np.rint(2 * points), 0, 255).astype(np.uint8).tobytes(),
        size=size,
        is_blank=float(cv2.meanStdDev(gray)[1][0, 0]) < _BLANK_DEVIATION,
    )


def _layout(gray: NDArray[np.uint8]) -> bytes:
    return np.asarray(cv2.resize(gray, (LAYOUT_PX, LAYOUT_PX), interpolation=cv2.INTER_AREA), np.uint8).tobytes()


def _detect_keypoints(gray: NDArray[np.uint8]) -> Keypoints:
    """The strongest keypoints of [H, W]: positions and descriptors (ORB; Rublee et al. 2011)."""
    margin = (_MARGIN_PX,) * 4
    found, descriptors = _orb().detectAndCompute(cv2.copyMakeBorder(gray, *margin, cv2.BORDER_REPLICATE), None)  # type: ignore[call-overload]
    points = cv2.KeyPoint.convert(found)
    if descriptors is None or not len(points):
        return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8)
    return np.asarray(points, dtype=np.float32) - _MARGIN_PX, np.asarray(descriptors, dtype=np.uint8)


@lru_cache
def _orb() -> cv2.ORB:
    return cv2.ORB.create(
        nfeatures=KEYPOINTS, scaleFactor=1.25, nlevels=_OCTAVES, edgeThreshold=_MARGIN_PX, patchSize=31, fastThreshold=7
    )
