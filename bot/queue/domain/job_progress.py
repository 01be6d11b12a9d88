"""How far a job has come: folded from the events of its trainer, one at a time."""

from __future__ import annotations

from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    ImageDrawn,
    Phase,
    PhaseBegan,
    PhaseProgress,
    SamplingStarted,
    Started,
    StepDone,
)
from trainer.protocol.frozen import Frozen

#: Newest epochs that `Progress` keeps; the text of a chart names as many.
_KEPT_EPOCHS = 12
#: Newest images of a sampling that a card shows.
_KEPT_IMAGES = 4


class Progress(Frozen):
    """The progress of a job, folded from its events as they are ingested."""

    #: What the trainer is doing; None before its first `phase_began`.
    phase: Phase | None = None
    #: Parts of the phase that are done, and how many there are; 0: they are not counted.
    phase_done: int = 0
    phase_total: int = 0
    #: Optimizer steps of the whole training; 0 before the trainer has planned it.
    total_steps: int = 0
    #: Images in memory at once, as the newest attempt found; 0 before that.
    micro_batch_size: int = 0
    base: BaseValidated | None = None
    #: The newest step. Stored in a column of its own: it changes every second.
    step: StepDone | None = None
    #: The newest ended epochs and the best one, in order: what a card shows, so that the hundredth epoch costs what the
    #: first does. Without the loss per timestep band. All of them are in `job_event`.
    epochs: tuple[EpochEnded, ...] = ()
    #: Of a sampling: its images, those that are drawn, and the newest of these (`SamplingSpec.cells`).
    images: int = 0
    drawn: int = 0
    newest_cells: tuple[int, ...] = ()

    @property
    def epoch(self) -> EpochEnded | None:
        """The newest ended epoch."""
        return self.epochs[-1] if self.epochs else None

    @property
    def kept_epoch(self) -> int:
        """The newest epoch that is in a checkpoint; 0: none."""
        return self.epochs[-1].epoch if self.epochs else 0

    def after(self, event: Event) -> Progress:
        """Return the progress after one more event."""
        match event:
            case StepDone():
                changes: dict[str, object] = {"step": event}
            case Started():
                changes = {
                    "phase": None,
                    "total_steps": event.total_steps,
                    "micro_batch_size": event.micro_batch_size,
                }
            case PhaseBegan():
                changes = {"phase": event.phase, "phase_done": 0, "phase_total": 0}
            case PhaseProgress() if event.phase is self.phase:
                changes = {"phase_done": event.done, "phase_total": event.total}
            case BaseValidated():
                changes = {"base": event}
            case EpochEnded():
                changes = {"epochs": self._with_epoch(event)}
            case SamplingStarted():
                # An image that was drawn before a loss, and reported after it, is not drawn again.
                changes = {"images": event.images, "drawn": event.already_drawn}
            case ImageDrawn():
                cells = (*self.newest_cells, event.cell)
                changes = {"drawn": self.drawn + 1, "newest_cells": cells[-_KEPT_IMAGES:]}
            case _:
                return self
        return self.model_copy(update=changes)

    def _with_epoch(self, ended: EpochEnded) -> tuple[EpochEnded, ...]:
        # An epoch that is repeated after a loss replaces the earlier one. Of the bands, those of the best are shown.
        others = [epoch for epoch in self.epochs if epoch.epoch != ended.epoch]
        epochs = [each if each.epoch == ended.best_epoch else _without_bands(each) for each in (*others, ended)]
        epochs.sort(key=lambda epoch: epoch.epoch)
        newest = epochs[-_KEPT_EPOCHS:]
        best = [epoch for epoch in epochs[:-_KEPT_EPOCHS] if epoch.epoch == newest[-1].best_epoch]
        return (*best, *newest)


def _without_bands(ended: EpochEnded) -> EpochEnded:
    if not ended.validation.bands:
        return ended
    return ended.model_copy(update={"validation": ended.validation.model_copy(update={"bands": ()})})
