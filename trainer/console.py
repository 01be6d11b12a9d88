"""What a person at a terminal sees while a job runs: a progress bar, a line for each epoch, the last word."""

from __future__ import annotations

import sys
from typing import Protocol

from tqdm import tqdm

from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Failed,
    Finished,
    PhaseBegan,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
    Tested,
    Warned,
)


class Listener(Protocol):
    """Is told each event once it is durable."""

    def __call__(self, event: Event, /) -> None: ...


def say_nothing(event: Event, /) -> None:
    """For a trainer without a person in front of it: the events file has it all."""


class Console:
    """Writes to stderr; a bar only where that is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._advance(event)
        elif isinstance(event, PhaseBegan) and self._bar is not None:
            self._bar.set_description(event.phase.value)
        elif (line := describe(event)) is not None:
            tqdm.write(line, file=sys.stderr)
        if isinstance(event, Finished | Stopped | Failed) and self._bar is not None:
            self._bar.close()

    def _begin(self, event: Started) -> None:
        tqdm.write(
            f"{event.device}, {event.precision}: {event.train_images} pictures to train on, "
            f"{event.validation_images} to validate, {event.test_images} to test; "
            f"{event.trainable_parameters:,} parameters at {event.resolution} px. {event.data_words}".rstrip(),
            file=sys.stderr,
        )
        self._bar = tqdm(
            total=event.total_steps, initial=event.resumed_from_step, unit="step", file=sys.stderr, disable=None
        )

    def _advance(self, event: StepDone) -> None:
        if self._bar is None:
            return
        self._bar.set_description("training", refresh=False)
        self._bar.set_postfix(loss=f"{event.loss:.4f}", lr=f"{event.learning_rate:.1e}", refresh=False)
        self._bar.update(event.step - self._bar.n)


def describe(event: Event) -> str | None:
    """One line for an event that is worth one."""
    match event:
        case BaseValidated():
            return f"before training: validation loss {event.validation.loss:.4f}"
        case EpochEnded():
            star = "  * best" if event.is_best else ""
            return (
                f"epoch {event.epoch}: loss {event.train_loss:.4f}, validation {event.validation.loss:.4f} "
                f"({event.validation.ratio:.1%} of the base's), {event.seconds:.0f} s{star}"
            )
        case StoppedEarly() | Warned():
            return event.reason if isinstance(event, StoppedEarly) else event.message
        case Tested():
            return f"test loss {event.test.loss:.4f} ({event.test.ratio:.1%} of the base's)"
        case Exported():
            return f"{event.format}: {event.path} ({event.bytes / 2**20:.1f} MiB), loaded back and compared"
        case Finished():
            return f"finished: best epoch {event.best_epoch}, {event.best_ratio:.1%} of the base's validation loss"
        case Stopped():
            return f"stopped at step {event.step}; run it again to go on"
        case Failed():
            return f"failed: {event.message} {event.hint}"
        case _:
            return None
