"""The folds of a cross-validation together: their mean ratio, how sure it is, and the length of the final run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from trainer.studies.run_history import RunHistory


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """The folds together, of those that reached at least one epoch."""

    #: Best ratio and best epoch of each.
    ratios: tuple[float, ...]
    best_epochs: tuple[int, ...]
    #: Folds whose last planned epoch was their best: the loss was still falling.
    still_falling: int
    #: Mean ratio over the folds after each epoch, up to the shortest fold.
    mean_curve: tuple[float, ...]

    @property
    def mean_ratio(self) -> float:
        return statistics.fmean(self.ratios)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean ratio by Student's t, None with fewer than two folds.

        The folds' training images overlap, so s / sqrt(k) is too small (Bengio & Grandvalet 2004, JMLR 5: there is no
        unbiased estimate). This takes the variance times 1/k + 1/(k - 1), as Nadeau & Bengio 2003 (Machine Learning 52)
        do for test and training sets of sizes 1 to k - 1.
        """
        folds = len(self.ratios)
        if folds < 2:
            return None
        # Imported here: it takes 0.2 s, and only the end of a study needs it.
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        error = statistics.stdev(self.ratios) * sqrt(1 / folds + 1 / (folds - 1))
        half_width = float(stdtrit(folds - 1, 0.975)) * error
        return self.mean_ratio - half_width, self.mean_ratio + half_width

    @property
    def mean_best_epoch(self) -> float:
        return statistics.fmean(self.best_epochs)

    @property
    def median_best_epoch(self) -> float:
        return statistics.median(self.best_epochs)

    @property
    def final_epochs(self) -> int:
        """Length of the run on all images; halves are rounded up."""
        return max(1, int(self.mean_best_epoch + 0.5))


def summarize_folds(histories: Sequence[RunHistory], planned_epochs: int) -> FoldSummary | None:
    """Summarize the runs of the folds; None if none of them completed an epoch."""
    bests = [(history, best) for history in histories if (best := history.best) is not None]
    if not bests:
        return None
    curves = [history.ratios for history, _ in bests]
    return FoldSummary(
        ratios=tuple(best.validation.ratio for _, best in bests),
        best_epochs=tuple(best.epoch for _, best in bests),
        still_falling=sum(best.epoch == planned_epochs for _, best in bests),
        # The curves differ in length; zip ends with the shortest.
        mean_curve=tuple(statistics.fmean(ratios) for ratios in zip(*curves, strict=False)),
    )
