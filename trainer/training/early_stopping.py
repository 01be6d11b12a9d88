"""When to stop, and which epoch was best: a value that is updated after each validation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from trainer.protocol.spec import EarlyStopping


class StopMemory(BaseModel):
    """What early stopping remembers; kept in every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Lowest ratio (validation loss over the base model's) so far, and when; 1.0 at epoch 0 is the base itself.
    best_ratio: float = 1.0
    best_epoch: int = 0
    #: The ratio that the next one must be under by `min_delta` to count as an improvement.
    reference_ratio: float = 1.0
    epochs_without_improvement: int = 0

    def after(self, epoch: int, ratio: float, settings: EarlyStopping) -> StopMemory:
        """The memory once `epoch` was validated."""
        is_improvement = ratio < self.reference_ratio - settings.min_delta
        # Epoch 0 is no trained model: the first epoch is the best of those that can be exported.
        is_best = ratio < self.best_ratio or self.best_epoch == 0
        return StopMemory(
            best_ratio=ratio if is_best else self.best_ratio,
            best_epoch=epoch if is_best else self.best_epoch,
            reference_ratio=ratio if is_improvement else self.reference_ratio,
            epochs_without_improvement=0 if is_improvement else self.epochs_without_improvement + 1,
        )

    def should_stop(self, epoch: int, settings: EarlyStopping) -> bool:
        return (
            settings.enabled and epoch > settings.warmup_epochs and self.epochs_without_improvement >= settings.patience
        )

    def reason(self, ratio: float, settings: EarlyStopping) -> str:
        """One sentence for a person: why it stops."""
        epochs = self.epochs_without_improvement
        return (
            f"Validation loss has not fallen by {settings.min_delta:.1%} of the base model's for {epochs} "
            f"epoch{'s' if epochs != 1 else ''}: it is {ratio:.3f} × the base's now, and was {self.best_ratio:.3f} × "
            f"at its best, after epoch {self.best_epoch}."
        )
