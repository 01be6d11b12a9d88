"""Shows a run on a terminal: a progress bar, a line for each epoch, and the terminal event."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TypeAlias

from tqdm import tqdm

from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    Failed,
    Finished,
    ImageDrawn,
    PhaseBegan,
    SamplingFinished,
    SamplingStarted,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
    TerminalEvent,
    Tested,
    ValidationLoss,
    Warned,
)
from trainer.protocol.text import _, duration, ngettext, size, verdict

#: Called with the phase, the number of items done, and the total.
Progress: TypeAlias = Callable[[str, int, int], None]


def ignore_progress(phase: str, done: int, total: int) -> None:
    """The `Progress` of a command that shows none."""


class Listener(Protocol):
    """Called with each event once it is durable."""

    def __call__(self, event: Event, /) -> None: ...


def ignore_event(event: Event, /) -> None:
    """The listener of a trainer without a terminal: its events are in the file."""


class Console:
    """Writes to stderr; the progress bar only appears on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._advance(event)
        elif isinstance(event, SamplingStarted):
            self._bar = tqdm(
                total=event.images, initial=event.already_drawn, unit="image", file=sys.stderr, disable=None
            )
        elif isinstance(event, ImageDrawn) and self._bar is not None:
            self._bar.update()
        elif isinstance(event, PhaseBegan) and self._bar is not None:
            self._bar.set_description(event.phase.value)
        elif (line := describe(event)) is not None:
            tqdm.write(line, file=sys.stderr)
        if isinstance(event, TerminalEvent) and self._bar is not None:
            self._bar.close()

    def _begin(self, event: Started) -> None:
        images = ngettext("{n} training image", "{n} training images", event.train_images)
        line = _(
            "{device}, {precision}: {images}, {validation} for validation, {test} for the test; "
            "{parameters:,} parameters at {resolution} px. {data}",
            device=event.device,
            precision=event.precision,
            images=images,
            validation=event.validation_images,
            test=event.test_images,
            parameters=event.trainable_parameters,
            resolution=event.resolution,
            data=event.data_summary,
        )
        tqdm.write(line.rstrip(), file=sys.stderr)
        self._bar = tqdm(
            total=event.total_steps, initial=event.resumed_from_step, unit="step", file=sys.stderr, disable=None
        )

    def _advance(self, event: StepDone) -> None:
        if self._bar is None:
            return
        self._bar.set_description("training", refresh=False)
        self._bar.set_postfix(loss=f"{event.loss:.4f}", lr=f"{event.learning_rate:.1e}", refresh=False)
        self._bar.update(event.step - self._bar.n)


def loss_verdict(loss: ValidationLoss) -> str:
    """A validation loss beside the base model's, with its interval."""
    return verdict(loss.ratio, loss.ratio_low, loss.ratio_high)


def describe(event: Event) -> str | None:
    """Return one line about an event, None for events that are not shown."""
    match event:
        case BaseValidated():
            return _("before training: validation loss {loss:.4f}", loss=event.validation.loss)
        case EpochEnded():
            return _(
                "epoch {epoch}: training loss {loss:.4f}, {verdict}, {time}",
                epoch=event.epoch,
                loss=event.train_loss,
                verdict=loss_verdict(event.validation),
                time=duration(event.seconds),
            ) + ("  * best" if event.is_best and event.validation.ratio < 1 else "")
        case StoppedEarly(reason=sentence) | Warned(message=sentence):
            return sentence
        case Tested():
            return _("on the test images: {verdict}", verdict=loss_verdict(event.test))
        case Exported():
            return _(
                "{format}: {path} ({size}), loaded back and compared",
                format=event.format,
                path=event.path,
                size=size(event.bytes),
            )
        case Finished():
            return _(
                "finished: epoch {epoch} is {verdict}",
                epoch=event.best_epoch,
                verdict=verdict(event.best_ratio),
            )
        case SamplingFinished():
            images = ngettext("{n} image", "{n} images", event.images)
            return _("finished: {images}, {time}", images=images, time=duration(event.seconds))
        case Stopped():
            return _("stopped at step {step}; run it again to resume", step=event.step)
        case Failed():
            return _("failed: {message} {hint}", message=event.message, hint=event.hint)
        case _:
            return None
