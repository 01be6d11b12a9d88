"""The validation ratio of each measured image from epoch to epoch, and which training images are never learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log, sqrt
from pathlib import Path
from statistics import median

from trainer.exchange.files import write_text
from trainer.protocol.frozen import Frozen
from trainer.protocol.report import Split
from trainer.protocol.text import listed, ngettext

#: Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers: a modified z-score beyond this is an outlier.
_OUTLIER = 3.5
#: 0.6745 median absolute deviations are one standard deviation of a normal distribution.
_MAD_TO_SIGMA = 0.6745
#: An image was not learned if it gained at most this share of what the median image gained.
_NOT_LEARNED = 1 / 8
#: No image is reported before the median image has gained this much, and this many times the scatter.
_LEARNED, _ABOVE_SCATTER = 0.02, 6
#: Fewer images do not show what is usual; fewer epochs do not show what never happens.
_FEWEST_IMAGES, _FEWEST_EPOCHS = 8, 3
#: Most names in a sentence.
_MOST_NAMES = 10
#: Floors: of a gain as a share of the median gain, and of the spread of the log gains.
_LEAST_GAIN, _LEAST_SPREAD = 1 / 30, 0.1


class ImageCurve(Frozen):
    """The ratios of one image."""

    #: The file name that the user knows it by.
    name: str
    split: Split
    #: By epoch, the loss over the base model's loss on the image's own triples.
    ratios: Mapping[int, float] = {}


class ImageHistory(Frozen):
    """The curves of all measured images."""

    #: By pixel hash.
    images: Mapping[str, ImageCurve] = {}

    def after(self, epoch: int, split: Split, ratios: Mapping[str, float], names: Mapping[str, str]) -> ImageHistory:
        """Return the history with an epoch added; `ratios` and `names` are by pixel hash.

        An epoch that is measured again, because its checkpoint was lost, replaces itself and all later ones.
        """
        updated = {
            pixels: ImageCurve(
                name=names[pixels],
                split=split,
                ratios={**_ratios_before(epoch, self.images.get(pixels)), epoch: ratio},
            )
            for pixels, ratio in ratios.items()
        }
        return ImageHistory(images={**self.images, **updated})

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.model_dump_json())


def read_history(path: Path) -> ImageHistory:
    """Return the history in a file; an empty one if there is no file."""
    return ImageHistory.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else ImageHistory()


def never_learned(history: ImageHistory) -> list[ImageCurve]:
    """Return the training images whose ratio never fell while that of the others did; the worst first.

    An image is compared by its gain (1 - ratio, median of the last three epochs) on a logarithmic scale, because gains
    differ by factors between images. It counts as never learned if its modified z-score is beyond 3.5 and it gained
    less than an eighth of what the median image gained.

    In simulated sets of 16 images (gains that differ by e^±0.4 between images, noise of a tenth of the gain) 89 % to
    100 % of three planted images are found, and nothing in 200 sets without one. At e^±0.6, up to 4 % of the clean sets
    have a false alarm. More probes (`validation.train_images`) find more of a dataset's wrong images.
    """
    curves = [
        each for each in history.images.values() if each.split is Split.TRAIN and len(each.ratios) >= _FEWEST_EPOCHS
    ]
    if len(curves) < _FEWEST_IMAGES:
        return []
    gains = [1 - _latest_ratio(curve) for curve in curves]
    usual = median(gains)
    if usual < max(_LEARNED, _ABOVE_SCATTER * median(_scatter(curve) for curve in curves)):
        return []
    logs = [log(max(_LEAST_GAIN, gain / usual)) for gain in gains]
    spread = max(_LEAST_SPREAD, median(abs(each) for each in logs))
    limit = min(log(_NOT_LEARNED), -_OUTLIER * spread / _MAD_TO_SIGMA)
    found = [(gain, curve) for gain, each, curve in zip(gains, logs, curves, strict=True) if each < limit]
    return [curve for _gain, curve in sorted(found, key=lambda item: item[0])]


def describe_never_learned(curves: Sequence[ImageCurve]) -> str:
    """Describe images that were never learned to the user; empty for none."""
    if not curves:
        return ""
    return ngettext(
        "{n} training image may be wrong: {names}. Its loss did not fall while that of the others did.",
        "{n} training images may be wrong: {names}. Their loss did not fall while that of the others did.",
        len(curves),
        names=listed((curve.name for curve in curves), most=_MOST_NAMES),
    )


def _ratios_before(epoch: int, curve: ImageCurve | None) -> dict[int, float]:
    return {at: ratio for at, ratio in curve.ratios.items() if at < epoch} if curve else {}


def _scatter(curve: ImageCurve) -> float:
    """Estimate the standard deviation of the ratio between epochs; robust, but a steady fall counts as scatter too."""
    ratios = [curve.ratios[epoch] for epoch in sorted(curve.ratios)[-2 * _FEWEST_EPOCHS :]]
    return median(abs(after - before) for before, after in pairwise(ratios)) / (_MAD_TO_SIGMA * sqrt(2))


def _latest_ratio(curve: ImageCurve) -> float:
    epochs = sorted(curve.ratios)[-_FEWEST_EPOCHS:]
    return median(curve.ratios[epoch] for epoch in epochs)
