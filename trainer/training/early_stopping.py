"""When to stop, and which epoch was best: a value that is updated after each validation (docs/adr/0008)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from statistics import median

from pydantic import BaseModel, ConfigDict

from trainer.protocol.settings import EarlyStopping

#: A gap that moved by less than this is not said to have grown or fallen: it is measured on a few pictures.
_GAP_THAT_COUNTS = 0.01


class StopReason(StrEnum):
    """Why a training ends before its last epoch."""

    NO_IMPROVEMENT = "no_improvement"
    TIME_BUDGET = "time_budget"


class StopMemory(BaseModel):
    """What early stopping remembers; kept in every checkpoint.

    The smoothed ratio decides when to stop, the ratio itself which epoch is best: smoothing takes out scatter, but runs
    behind by half an epoch and more, and the weights that are exported are those of one epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Lowest ratio (validation loss over the base model's) so far, and when; epoch 0 is the base itself, 1.0.
    best_ratio: float = 1.0
    best_epoch: int = 0
    #: The smoothed ratio that the next one must be under by `min_delta` to count as an improvement.
    reference_ratio: float = 1.0
    epochs_without_improvement: int = 0
    #: The last epoch, its ratio, and that smoothed over epochs; None before the first.
    epoch: int = 0
    ratio: float = 1.0
    smoothed_ratio: float | None = None
    #: What the weights of the epochs in `smoothed_ratio` add up to: 1 in the long run.
    smoothing_weight: float = 0.0
    #: Ratios of the last epochs, two patiences long.
    recent: tuple[float, ...] = ()
    #: Ratio of the validation pictures over that of the training pictures, less 1, by epoch.
    gaps: Mapping[int, float] = {}

    @property
    def gap(self) -> float | None:
        """Of the last epoch; None where no training pictures are measured."""
        return self.gaps.get(self.epoch)

    def after(
        self, epoch: int, ratio: float, settings: EarlyStopping, *, train_ratio: float | None = None
    ) -> StopMemory:
        """The memory once `epoch` was validated; `train_ratio` is that of the training pictures."""
        weight = settings.smoothing * self.smoothing_weight + 1 - settings.smoothing
        # Bias-corrected as in Adam (Kingma & Ba 2014, arXiv:1412.6980): the first epoch counts as it is.
        earlier = settings.smoothing * self.smoothing_weight * (self.smoothed_ratio or 0.0)
        smoothed = (earlier + (1 - settings.smoothing) * ratio) / weight
        is_improvement = smoothed < self.reference_ratio - settings.min_delta
        # Epoch 0 is no trained model: the first epoch is the best of those that can be exported.
        is_best = ratio < self.best_ratio or self.best_epoch == 0
        return StopMemory(
            best_ratio=ratio if is_best else self.best_ratio,
            best_epoch=epoch if is_best else self.best_epoch,
            reference_ratio=smoothed if is_improvement else self.reference_ratio,
            epochs_without_improvement=0 if is_improvement else self.epochs_without_improvement + 1,
            epoch=epoch,
            ratio=ratio,
            smoothed_ratio=smoothed,
            smoothing_weight=weight,
            recent=(*self.recent, ratio)[-2 * settings.patience :],
            gaps=self.gaps if train_ratio is None else {**self.gaps, epoch: ratio / train_ratio - 1},
        )

    def last(self, epoch: int, ratio: float) -> StopMemory:
        """The memory where the last epoch is kept whatever its loss, because every picture trains."""
        return StopMemory(best_ratio=ratio, best_epoch=epoch, epoch=epoch, ratio=ratio, smoothed_ratio=ratio)

    def patient_again(self) -> StopMemory:
        """The memory as a stage begins: what trains now has not had its epochs yet. The best stays the best."""
        return self.model_copy(update={"epochs_without_improvement": 0})

    def why(self, epoch: int, settings: EarlyStopping, *, seconds: float) -> StopReason | None:
        """Why to stop after `epoch`, `seconds` of training done; None: go on."""
        is_patience_over = epoch > settings.warmup_epochs and self.epochs_without_improvement >= settings.patience
        if settings.enabled and is_patience_over and not self._still_falls(settings):
            return StopReason.NO_IMPROVEMENT
        if settings.max_hours is not None and seconds >= settings.max_hours * 3600:
            return StopReason.TIME_BUDGET
        return None

    def should_stop(self, epoch: int, settings: EarlyStopping, *, seconds: float) -> bool:
        return self.why(epoch, settings, seconds=seconds) is not None

    def _still_falls(self, settings: EarlyStopping) -> bool:
        """Whether the last epochs are better than as many before: then the one that none has beaten was luck."""
        before, last = self.recent[: -settings.patience], self.recent[-settings.patience :]
        return bool(before) and median(last) < median(before) - settings.min_delta

    def reason(self, settings: EarlyStopping) -> str:
        """One sentence for a person: why it stops after the last epoch."""
        if settings.max_hours is None or self.why(self.epoch, settings, seconds=0) is StopReason.NO_IMPROVEMENT:
            return self._no_improvement(settings)
        return f"The time budget of {_duration(settings.max_hours)} is used up."

    def _no_improvement(self, settings: EarlyStopping) -> str:
        since_best = self.epoch - self.best_epoch
        if self.best_ratio >= 1:
            words = (
                f"No better than the base model after {_epochs(self.epoch)} "
                f"({self.best_ratio:.3f}× its loss at best, after epoch {self.best_epoch}, and {self.ratio:.3f} now)"
            )
            return f"{words}{self._gap_words(self.best_epoch)}."
        if since_best >= min(settings.patience, self.epochs_without_improvement):
            words = (
                f"No better than epoch {self.best_epoch} for {_epochs(since_best)} "
                f"({self.best_ratio:.3f}× the base's loss then, {self.ratio:.3f} now)"
            )
            return f"{words}{self._gap_words(self.best_epoch)}."
        # An epoch among the last is the lowest, but by less than what counts, or by chance.
        count = self.epochs_without_improvement
        words = (
            f"Less than {settings.min_delta * 100:g} % of the base's loss gained in {_epochs(count)} "
            f"(smoothed over epochs {self.reference_ratio:.3f}× the base's loss before, {self.smoothed_ratio:.3f} now)"
        )
        return f"{words}{self._gap_words(self.epoch - count)}."

    def _gap_words(self, then: int) -> str:
        before, now = self.gaps.get(then), self.gap
        if before is None or now is None:
            return ""
        if abs(now - before) < _GAP_THAT_COUNTS:
            return f"; the gap to the training images stayed at {_percent(now)}"
        verb = "grew" if now > before else "fell"
        return f"; the gap to the training images {verb} from {_percent(before)} to {_percent(now)}"


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"


def _percent(share: float) -> str:
    return f"{round(share * 100):d} %".replace("-", "−")


def _duration(hours: float) -> str:
    if hours < 1:
        minutes = round(hours * 60)
        return f"{minutes} minute{'s' if minutes != 1 else ''}"
    return f"{hours:g} hour{'s' if hours != 1 else ''}"
