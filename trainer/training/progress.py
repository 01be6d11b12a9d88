"""The count of an epoch while it is trained: loss, pace, time left, said about once a second."""

from __future__ import annotations

import math
import time

import torch

from trainer.device import peak_memory_bytes
from trainer.errors import DivergedError
from trainer.protocol.events import StepDone
from trainer.training.optimizers import effective_rate
from trainer.training.session import Session

#: Reading the loss waits for the device: not at every step.
INTERVAL_S = 1.0
#: The loss of one picture scatters by about its mean, so that of 32 by a fifth: five times as much is no chance.
MIN_WINDOW, MAX_RISE = 32, 5.0


class EpochProgress:
    """Adds up an epoch on the device, and brings it into `session.state` when it flushes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        dtype = torch.float32 if session.task.device.type == "mps" else torch.float64
        # One running sum, so that the mean is the same to the bit however often it is read or the run resumed.
        self._loss_sum = torch.tensor(session.state.loss_sum, dtype=dtype, device=session.task.device)
        self._steps = 0
        self._pictures = 0
        self._paced_steps = 0
        # Of the pictures since the loss was last compared with what it was: their number, and the sum before them.
        self._window_pictures = 0
        self._window_sum = session.state.loss_sum
        self._first_window: float | None = None
        self._began = self._flushed = time.monotonic()

    def add(self, loss_sum: torch.Tensor, *, pictures: int) -> None:
        """Count one optimizer step."""
        self._loss_sum += loss_sum
        self._steps += 1
        self._pictures += pictures
        # The first step is told at once: people wait for it.
        if self._paced_steps == 0 or time.monotonic() - self._flushed >= INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Bring the count into the state, and say it.

        Raises:
            DivergedError: the loss is no longer a number, or many times what it was at first.
        """
        if not self._steps:
            return
        loss_sum = self._loss_sum.item()
        self._window_pictures += self._pictures
        self._check(loss_sum)
        now = time.monotonic()
        state = self._session.state
        self._session.state = state.model_copy(
            update={
                "position": state.position + self._steps,
                "step": state.step + self._steps,
                "loss_sum": loss_sum,
                "loss_count": state.loss_count + self._pictures,
                "epoch_seconds": state.epoch_seconds + now - self._flushed,
            }
        )
        self._paced_steps += self._steps
        self._steps = self._pictures = 0
        self._flushed = now
        self._say()

    def _check(self, loss_sum: float) -> None:
        """Raises: DivergedError: the loss is no number any more, or many times what it was at first."""
        state = self._session.state
        if not math.isfinite(loss_sum):
            raise self._diverged("The loss is no longer a number")
        if self._window_pictures < MIN_WINDOW:
            return
        window = (loss_sum - self._window_sum) / self._window_pictures
        first = state.curve[0].train_loss if state.curve else self._first_window
        if first is not None and window > MAX_RISE * first:
            raise self._diverged(f"The loss rose from {first:.3g} to {window:.3g}")
        self._first_window = self._first_window or window
        self._window_sum, self._window_pictures = loss_sum, 0

    def _diverged(self, what: str) -> DivergedError:
        state, rate = self._session.state, self._session.schedule.get_last_lr()[0]
        kept = f"The checkpoint of epoch {state.epoch - 1} is kept" if state.curve else "No epoch was finished"
        finish = "; `run --finish` tests and exports the best one" if state.curve else ""
        return DivergedError(
            f"{what}: the training diverged in epoch {state.epoch}. {kept}{finish}.",
            f"Try a third of the learning rate ({rate / 3:.1e}), or a longer warm-up.",
        )

    def _say(self) -> None:
        session, state = self._session, self._session.state
        steps_per_s = self._paced_steps / max(self._flushed - self._began, 1e-9)
        steps_left = session.total_steps - state.step
        epochs_left = session.spec.training.epochs - state.epoch + 1
        session.reporter.say(
            StepDone,
            step=state.step,
            epoch=state.epoch,
            loss=state.loss_sum / state.loss_count,
            learning_rate=effective_rate(session.optimizer),
            steps_per_s=steps_per_s,
            eta_s=steps_left / steps_per_s + epochs_left * state.epoch_end_seconds,
            peak_memory_bytes=peak_memory_bytes(session.task.device),
        )
