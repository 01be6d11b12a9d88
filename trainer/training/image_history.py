"""How each measured picture fares from epoch to epoch, and which training pictures never learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log, sqrt
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict

from trainer.protocol.report import Split

#: Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers: a modified z-score beyond this is an outlier.
_OUTLIER = 3.5
#: 0.6745 median absolute deviations are one standard deviation of a normal distribution.
_MAD_TO_SIGMA = 0.6745
#: What a picture gained that was not learnt, at most, as a share of what the median one gained.
_NOT_LEARNT = 1 / 8
#: The median picture must have gained this much, and so many times the scatter: before, there is nothing to miss.
_LEARNT, _ABOVE_SCATTER = 0.02, 6
#: With fewer pictures nobody can say what is usual; with fewer epochs, what never happens.
_FEWEST_PICTURES, _FEWEST_EPOCHS = 8, 3
#: Names in a sentence.
_MOST_NAMES = 10
#: Gains below this share of the median one are none; spreads of their logarithm below this are measured too small.
_LEAST_GAIN, _LEAST_SPREAD = 1 / 30, 0.1


class PictureHistory(BaseModel):
    """The curve of one picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What people know it by.
    name: str
    split: Split
    #: Loss over the base model's on the picture's own triples, by epoch.
    ratios: Mapping[int, float] = {}


class ImageHistory(BaseModel):
    """The curves of all measured pictures, by the hash of their pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: Mapping[str, PictureHistory] = {}

    def after(self, epoch: int, split: Split, ratios: Mapping[str, float], names: Mapping[str, str]) -> ImageHistory:
        """The history once `epoch` was measured: ratio and name by the pictures' hashes.

        An epoch that is measured again (its checkpoint was lost) takes its own place, and later ones go.
        """
        fresh = {
            pixels: PictureHistory(
                name=names[pixels],
                split=split,
                ratios={**_before(epoch, self.pictures.get(pixels)), epoch: ratio},
            )
            for pixels, ratio in ratios.items()
        }
        return ImageHistory(pictures={**self.pictures, **fresh})

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(self.model_dump_json(), encoding="utf-8")
        part.replace(path)


def read_history(path: Path) -> ImageHistory:
    """What was written, an empty one where nothing was."""
    return ImageHistory.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else ImageHistory()


def never_learnt(history: ImageHistory) -> list[PictureHistory]:
    """The training pictures whose ratio never fell while that of the others did; the worst first.

    What counts is the gain (1 - ratio, the median of the last three epochs), on a logarithmic scale: gains differ by
    factors from picture to picture, and one that stays at nothing is far from all of them. A picture never learnt where
    its modified z-score is beyond 3.5 and it gained less than an eighth of what the median picture gained.

    In simulated sets of 16 pictures (gains that differ by e^±0.4 from picture to picture, noise of a tenth of the gain)
    89 % to 100 % of three planted pictures are found, and nothing in 200 sets without one; at e^±0.6 up to 4 % of the
    clean sets have a picture accused. More probes (`validation.train_images`) find more of a dataset's wrong pictures.
    """
    curves = [one for one in history.pictures.values() if _counts(one)]
    if len(curves) < _FEWEST_PICTURES:
        return []
    gains = [1 - _last(curve) for curve in curves]
    usual = median(gains)
    if usual < max(_LEARNT, _ABOVE_SCATTER * median(_scatter(curve) for curve in curves)):
        return []
    logs = [log(max(_LEAST_GAIN, gain / usual)) for gain in gains]
    spread = max(_LEAST_SPREAD, median(abs(one) for one in logs))
    limit = min(log(_NOT_LEARNT), -_OUTLIER * spread / _MAD_TO_SIGMA)
    found = [(gain, curve) for gain, one, curve in zip(gains, logs, curves, strict=True) if one < limit]
    return [curve for _, curve in sorted(found, key=lambda item: item[0])]


def sentence_of(pictures: Sequence[PictureHistory]) -> str:
    """What to say of pictures that never learnt; empty for none."""
    if not pictures:
        return ""
    names = ", ".join(picture.name for picture in pictures[:_MOST_NAMES])
    if len(pictures) > _MOST_NAMES:
        names += f" and {len(pictures) - _MOST_NAMES} more"
    if len(pictures) == 1:
        return f"This picture looks wrong: {names}. It never got better while the others did."
    return f"These {len(pictures)} pictures look wrong: {names}. They never got better while the others did."


def _counts(picture: PictureHistory) -> bool:
    return picture.split is Split.TRAIN and len(picture.ratios) >= _FEWEST_EPOCHS


def _before(epoch: int, picture: PictureHistory | None) -> dict[int, float]:
    return {at: ratio for at, ratio in picture.ratios.items() if at < epoch} if picture else {}


def _scatter(picture: PictureHistory) -> float:
    """Standard deviation of the ratio from epoch to epoch, robust; a steady fall counts as scatter too."""
    ratios = [picture.ratios[epoch] for epoch in sorted(picture.ratios)[-2 * _FEWEST_EPOCHS :]]
    return median(abs(after - before) for before, after in pairwise(ratios)) / (_MAD_TO_SIGMA * sqrt(2))


def _last(picture: PictureHistory) -> float:
    epochs = sorted(picture.ratios)[-_FEWEST_EPOCHS:]
    return median(picture.ratios[epoch] for epoch in epochs)
