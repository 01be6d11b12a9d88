"""Early stopping: when to stop and which epoch is best, as a value that each validation updates (docs/adr/0008)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from statistics import median

from trainer.protocol.frozen import Frozen
from trainer.protocol.settings import EarlyStopping
from trainer.protocol.text import _, duration, ngettext, percent, verdict

#: A gap that moved by less than this counts as unchanged: it is measured on a few images.
_MIN_GAP_CHANGE = 0.01


class StopReason(StrEnum):
    """Why a training ends before its last epoch."""

    NO_IMPROVEMENT = "no_improvement"
    TIME_BUDGET = "time_budget"


class StopMemory(Frozen):
    """State of early stopping; part of every checkpoint.

    The smoothed ratio decides when to stop, the raw ratio which epoch is best. Smoothing removes noise but lags by half
    an epoch or more, and the exported weights are those of one epoch.
    """

    #: Lowest ratio (validation loss over the base model's) so far, and its epoch. Epoch 0 is the base itself, 1.0.
    best_ratio: float = 1.0
    best_epoch: int = 0
    #: The next smoothed ratio is an improvement if it is lower than this by `min_delta`.
    reference_ratio: float = 1.0
    epochs_without_improvement: int = 0
    #: The last epoch, its ratio, and its smoothed ratio (None before the first epoch).
    epoch: int = 0
    ratio: float = 1.0
    smoothed_ratio: float | None = None
    #: Sum of the weights in `smoothed_ratio`; converges to 1.
    smoothing_weight: float = 0.0
    #: Ratios of the last 2 x patience epochs.
    recent: tuple[float, ...] = ()
    #: By epoch, the ratio of the validation images over that of the training images, less 1.
    gaps: Mapping[int, float] = {}

    @property
    def gap(self) -> float | None:
        """The gap of the last epoch; None if no training images are measured."""
        return self.gaps.get(self.epoch)

    def after(
        self, epoch: int, ratio: float, settings: EarlyStopping, *, train_ratio: float | None = None
    ) -> StopMemory:
        """Return the memory after the validation of `epoch`; `train_ratio` is the ratio of the training images."""
        weight = settings.smoothing * self.smoothing_weight + 1 - settings.smoothing
        # Bias-corrected as in Adam (Kingma & Ba 2014, arXiv:1412.6980), so the first epoch counts in full.
        earlier = settings.smoothing * self.smoothing_weight * (self.smoothed_ratio or 0.0)
        smoothed = (earlier + (1 - settings.smoothing) * ratio) / weight
        is_improvement = smoothed < self.reference_ratio - settings.min_delta
        # Epoch 0 cannot be exported, so the first epoch is the best even if it is worse than the base.
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

    def after_unmeasured(self, epoch: int) -> StopMemory:
        """Return the memory after an epoch whose validation is not a number: no improvement, and never the best."""
        return self.model_copy(
            update={"epoch": epoch, "epochs_without_improvement": self.epochs_without_improvement + 1}
        )

    @staticmethod
    def keep_latest(epoch: int, ratio: float) -> StopMemory:
        """Return a memory whose best epoch is `epoch`, for a training that uses every image and validates on none."""
        return StopMemory(best_ratio=ratio, best_epoch=epoch, epoch=epoch, ratio=ratio, smoothed_ratio=ratio)

    def reset_patience(self) -> StopMemory:
        """Return the memory with the patience restored, for a new stage or newly unfrozen blocks. The best stays."""
        return self.model_copy(update={"epochs_without_improvement": 0})

    def stop_reason(self, epoch: int, settings: EarlyStopping, *, seconds: float) -> StopReason | None:
        """Return why to stop after `epoch` and `seconds` of training, or None to go on."""
        is_patience_over = epoch > settings.warmup_epochs and self.epochs_without_improvement >= settings.patience
        if settings.enabled and is_patience_over and not self._is_still_falling(settings):
            return StopReason.NO_IMPROVEMENT
        if settings.max_hours is not None and seconds >= settings.max_hours * 3600:
            return StopReason.TIME_BUDGET
        return None

    def _is_still_falling(self, settings: EarlyStopping) -> bool:
        """Compare the last `patience` epochs with as many before them; a single lucky epoch does not hide progress."""
        before, last = self.recent[: -settings.patience], self.recent[-settings.patience :]
        return bool(before) and median(last) < median(before) - settings.min_delta

    def describe(self, reason: StopReason, settings: EarlyStopping) -> str:
        """Explain to the user why the training stops after the last epoch."""
        if reason is StopReason.TIME_BUDGET:
            return _("The time budget of {hours} is used up.", hours=duration((settings.max_hours or 0) * 3600))
        since_best = self.epoch - self.best_epoch
        if self.best_ratio >= 1:
            return ngettext(
                "Still no better than the base model after {n} epoch: the best, epoch {best_epoch}, is {best}; "
                "now it is {now}{gap}.",
                "Still no better than the base model after {n} epochs: the best, epoch {best_epoch}, is {best}; "
                "now it is {now}{gap}.",
                self.epoch,
                best=verdict(self.best_ratio),
                best_epoch=self.best_epoch,
                now=verdict(self.ratio),
                gap=self._describe_gap(self.best_epoch),
            )
        if since_best >= min(settings.patience, self.epochs_without_improvement):
            return ngettext(
                "No better than epoch {best_epoch} for {n} epoch (then {best}, now {now}){gap}.",
                "No better than epoch {best_epoch} for {n} epochs (then {best}, now {now}){gap}.",
                since_best,
                best=verdict(self.best_ratio),
                best_epoch=self.best_epoch,
                now=verdict(self.ratio),
                gap=self._describe_gap(self.best_epoch),
            )
        # A recent epoch has the lowest ratio, but by less than `min_delta` or by chance.
        count = self.epochs_without_improvement
        return ngettext(
            "Hardly better for {n} epoch (by less than {delta:g} % of the base model's loss): now {now}{gap}.",
            "Hardly better for {n} epochs (by less than {delta:g} % of the base model's loss): now {now}{gap}.",
            count,
            delta=settings.min_delta * 100,
            now=verdict(self.ratio),
            gap=self._describe_gap(self.epoch - count),
        )

    def _describe_gap(self, since: int) -> str:
        before, now = self.gaps.get(since), self.gap
        if before is None or now is None:
            return ""
        if abs(now - before) < _MIN_GAP_CHANGE:
            return _("; the gap to the training images stayed at {now}", now=percent(now))
        if now > before:
            return _(
                "; the gap to the training images grew from {before} to {now}",
                before=percent(before),
                now=percent(now),
            )
        return _(
            "; the gap to the training images fell from {before} to {now}", before=percent(before), now=percent(now)
        )
