"""How near drawn pictures are to those that were trained on, and how far two drawings of one prompt are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from trainer.dataset.images.features import feature_of, stack
from trainer.dataset.images.image_similarity import MAX_DIFFERENCE, difference
from trainer.dataset.images.perceptual_hash import look_of
from trainer.dataset.split.overlap import Member, thumbnail_of
from trainer.errors import DatasetError

#: Training pictures that a drawing is compared with pixel by pixel (5 ms each), by each of the cheap measures.
_CANDIDATES = 5
#: Beyond this ratio of sides, training saw a crop: the middle square is compared too.
_CROPPED = 1.1

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Near:
    """The training picture that a drawing is nearest to."""

    #: Its place in the album.
    place: int
    #: Whether both show the same, as near-duplicates of a dataset are told.
    is_same: bool
    #: Largest mean difference of any 6x6 block of 64x64 pixels (0 to 255), mirrored or not, the smaller.
    difference: float
    is_mirrored: bool
    #: Smallest Euclidean distance of the features; unrelated pictures are about 2 apart, alike ones 0.7.
    distance: float


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """What a picture is found by."""

    #: The 251 numbers that tell its kind.
    feature: Float
    #: 16x16 grey pixels.
    blurred: Float
    #: One blank picture is like the next.
    is_blank: bool


class Album:
    """The training pictures, by what finds them among thousands: 2 ms for each."""

    def __init__(
        self,
        members: Sequence[Member],
        folders: Sequence[Path],
        scratch: Path,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`folders` are those of the datasets; `scratch` holds pictures as long as the album is used; `check` is called
        between pictures.

        Raises:
            DatasetError: there are no pictures, or one is gone or damaged.
        """
        if not members:
            raise DatasetError("There are no training pictures to compare with.", "Train on some.")
        self.members = tuple(members)
        self._scratch = scratch
        self.thumbnails = tuple(
            thumbnail_of(member.image, folders[member.source], scratch / f"{place}.png")
            for place, member in enumerate(members)
        )
        marks = []
        for thumbnail in self.thumbnails:
            check()
            marks.append(_marks_of(_open(thumbnail)))
        self._features = np.stack([mark.feature for mark in marks])
        self._blurred = np.stack([mark.blurred for mark in marks])

    def nearest(self, drawing: Path, check: Callable[[], None] = lambda: None) -> Near:
        """The training picture that looks most like a drawing; `check` is called between comparisons."""
        picture = _open(drawing)
        marks = _marks_of(picture)
        distances = _distances(self._features, marks.feature)
        found: list[tuple[float, int, bool]] = []
        for is_mirrored in (False, True):
            for place in self._candidates(_marks_of(ImageOps.mirror(picture)) if is_mirrored else marks):
                check()
                measures = [difference(view, drawing, mirrored=is_mirrored) for view in self._views(place)]
                found.append((min(measures), place, is_mirrored))
        measure, place, is_mirrored = min(found)
        is_same = measure <= MAX_DIFFERENCE and not marks.is_blank
        if not is_same:
            # What is no copy is told by what it shows, not by how its pixels happen to lie.
            place, is_mirrored = int(distances.argmin()), False
            measure = min(one for one, at, _ in found if at == place)
        return Near(
            place=place,
            is_same=is_same,
            difference=measure,
            is_mirrored=is_mirrored,
            distance=float(distances.min()),
        )

    def distance(self, drawing: Path) -> float:
        """Feature distance of a drawing to the nearest training picture."""
        return float(_distances(self._features, _marks_of(_open(drawing)).feature).min())

    def _candidates(self, marks: _Marks) -> list[int]:
        by_feature = np.argsort(_distances(self._features, marks.feature), kind="stable")[:_CANDIDATES]
        by_look = np.argsort(_distances(self._blurred, marks.blurred), kind="stable")[:_CANDIDATES]
        return sorted({*by_feature.tolist(), *by_look.tolist()})

    def _views(self, place: int) -> Iterator[Path]:
        """A training picture whole, and the middle that a square crop leaves of a long one."""
        yield self.thumbnails[place]
        middle = self._scratch / f"{place}-middle.png"
        if not middle.exists():
            picture = _open(self.thumbnails[place])
            if max(picture.size) <= _CROPPED * min(picture.size):
                return
            ImageOps.fit(picture, (min(picture.size),) * 2).save(middle)
        yield middle


def feature_distance(one: Path, other: Path) -> float:
    """Euclidean distance of two pictures' features."""
    return float(np.linalg.norm(_marks_of(_open(one)).feature - _marks_of(_open(other)).feature))


def pixel_difference(one: Path, other: Path) -> float:
    """Mean absolute difference of two pictures of one size, as a share of the range of their pixels."""
    first, second = (np.asarray(_open(path), dtype=np.float32) for path in (one, other))
    return float(np.abs(first - second).mean() / 255)


def mean_likeness(pictures_ND: Tensor, prompts_ND: Tensor) -> float:
    """Mean cosine of pictures and their prompts, unit vectors both (CLIP score, arXiv:2104.08718, unscaled)."""
    return float((pictures_ND * prompts_ND).sum(dim=1).mean())


def _distances(rows_ND: Float, one_D: Float) -> Float:
    return np.asarray(np.linalg.norm(rows_ND - one_D, axis=1), dtype=np.float32)


def _marks_of(picture: Image.Image) -> _Marks:
    look = look_of(picture)
    return _Marks(
        feature=stack([feature_of(picture)])[0],
        blurred=np.frombuffer(look.blurred, dtype=np.uint8).astype(np.float32),
        is_blank=look.is_blank,
    )


def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")
