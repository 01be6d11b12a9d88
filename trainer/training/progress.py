"""The count of an epoch while it is trained: loss, pace, time left, said about once a second."""

from __future__ import annotations

import math
import time

import torch

from trainer.device import peak_memory_bytes
from trainer.errors import DivergedError
from trainer.protocol.events import StepDone
from trainer.training.session import Session

#: Reading the loss waits for the device: not at every step.
INTERVAL_S = 1.0


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
        self._began = self._flushed = time.monotonic()

    def add(self, loss_sum: torch.Tensor, *, pictures: int) -> None:
        """Count one optimizer step."""
        self._loss_sum += loss_sum
        self._steps += 1
        self._pictures += pictures
        if time.monotonic() - self._flushed >= INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Bring the count into the state, and say it.

        Raises:
            DivergedError: the loss is no longer a number.
        """
        if not self._steps:
            return
        loss_sum = self._loss_sum.item()
        if not math.isfinite(loss_sum):
            rate = self._session.spec.training.learning_rate
            raise DivergedError(
                f"The loss is no longer a number: the training diverged in epoch {self._session.state.epoch}. "
                "The checkpoint of the epoch before is kept.",
                f"Try a third of the learning rate ({rate / 3:.1e}).",
            )
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
            learning_rate=session.schedule.get_last_lr()[0],
            steps_per_s=steps_per_s,
            eta_s=steps_left / steps_per_s + epochs_left * state.epoch_end_seconds,
            peak_memory_bytes=peak_memory_bytes(session.task.device),
        )
