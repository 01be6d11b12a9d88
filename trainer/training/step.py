"""One optimizer step, and the progress of an epoch.

A step sums the gradients of its images over micro-batches and processes. What an image draws (timestep, noise, caption
dropout) follows from the step and the image's position in it, so splitting a micro-batch to save memory, or sharing a
step between processes, changes only rounding (docs/adr/0009).
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.dataset.seeds import derive_seed
from trainer.device import is_out_of_memory, peak_memory_bytes
from trainer.errors import DivergedError, OutOfMemoryError
from trainer.protocol.events import StepDone, Warned
from trainer.protocol.text import _
from trainer.tasks.examples import ImageView
from trainer.training.batches import split_step
from trainer.training.fused_backward import stepping_in_backward
from trainer.training.optimizers import effective_rate
from trainer.training.session import PROGRESS_INTERVAL_S, Session

log = logging.getLogger(__name__)

#: What follows the last epoch takes about as long as the ends of so many epochs: a test, a diagnosis that draws twice
#: as many samples, and the export.
_FINALE_EPOCH_ENDS = 3
#: The training diverges if the mean loss of `MIN_WINDOW` images is `MAX_RISE` times what it was at first. The loss of
#: one image scatters by about its mean, so that of 32 by a fifth.
MIN_WINDOW, MAX_RISE = 32, 5.0


def take_step(session: Session, step: Sequence[ImageView], number: int) -> Tensor:
    """Take the `number`-th optimizer step (from 0), and return the sum of the loss over its images, on the device.

    Raises:
        OutOfMemoryError: Not even single images fit.
    """
    while True:
        loss_sum, is_too_large = _accumulate(session, step, number)
        if not is_too_large:
            break
        session.optimizer.zero_grad()
        _halve_micro_batches(session)
    # A fused backward pass has changed the weights.
    has_stepped = session.spec.training.fused_backward or _step_optimizer(session)
    session.step_rates = [group["lr"] for group in session.optimizer.param_groups]
    # A skipped step changes no weights, so it does not count, as in accelerate's schedules.
    if has_stepped:
        session.schedule.step()
        if session.ema is not None:
            session.ema.update()
    session.optimizer.zero_grad()
    return loss_sum


def _step_optimizer(session: Session) -> bool:
    """Clip the gradients and change the weights, unless they overflowed in fp16; return whether the weights changed."""
    session.accelerator.clip_grad_norm_(session.parameters, session.spec.training.max_grad_norm)
    scaler = session.accelerator.scaler
    if scaler is None:
        session.optimizer.step()
        return True
    # An overflow lowers the scale. accelerate's `step_was_skipped` misses the steps that a fused optimizer skips.
    before = scaler.get_scale()
    session.optimizer.step()
    return bool(scaler.get_scale() >= before)


def _accumulate(session: Session, step: Sequence[ImageView], number: int) -> tuple[Tensor, bool]:
    """Accumulate the gradients of a step; return the sum of the loss, and whether any rank ran out of memory."""
    processes = session.processes
    most = min(session.micro_batch_size, math.ceil(len(step) / processes.count))
    micro_batches = list(split_step(step, session.train_examples(session.stage).sizes, most))[processes.shard]
    loss_sum = torch.zeros((), device=session.task.device)
    is_too_large = False
    try:
        for position, (first, views) in enumerate(micro_batches, 1):
            # No check for a stop request: a step is taken completely or not at all.
            session.reporter.keep_alive()
            with _changing_weights(session, is_last=position == len(micro_batches)):
                loss_sum += _backward(session, views, first, number, image_count=len(step))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory in step %d", number)
        if session.spec.training.fused_backward:
            # Some weights have changed: the step cannot be taken again in smaller parts.
            raise
        is_too_large = True
    if processes.count == 1:
        return loss_sum, is_too_large
    flags = torch.tensor([float(is_too_large), float(session.stop.is_set)], device=session.task.device)
    loss_sum, too_large, stopping = processes.sum_gradients(session.parameters, loss_sum, flags[0], flags[1])
    # A signal may reach one process before the others; all stop after the same step.
    session.stop.is_agreed = bool(stopping)
    return loss_sum, bool(too_large)


def _changing_weights(session: Session, *, is_last: bool) -> AbstractContextManager[None]:
    """Change the weights during the backward pass of the last micro-batch, if the job has a fused one."""
    training = session.spec.training
    if not (training.fused_backward and is_last):
        return nullcontext()
    # Within accelerate's wrapper, which is for steps after the pass.
    optimizer: Any = session.optimizer
    return stepping_in_backward(optimizer.optimizer, max_grad_norm=training.max_grad_norm)


def _backward(session: Session, views: Sequence[ImageView], first: int, number: int, *, image_count: int) -> Tensor:
    seed = session.spec.training.seed
    # Dropout layers draw from the global generator, everything else from one generator per image.
    torch.manual_seed(derive_seed("dropout", seed, number, first))
    seeds = [derive_seed("step", seed, number, first + offset) for offset in range(len(views))]
    loss_B = session.task.train_loss(session.train_examples(session.stage), views, seeds)
    session.accelerator.backward(loss_B.sum() / image_count)
    return loss_B.detach().sum()


def _halve_micro_batches(session: Session) -> None:
    """Put half as many images through the model at once from now on; the effective batch is unchanged."""
    before = session.micro_batch_size
    if before == 1:
        raise OutOfMemoryError(
            _("Not even one image at a time fits into the device's memory."),
            _("Use a smaller training.resolution, or training.gradient_checkpointing."),
        )
    gc.collect()
    if session.task.device.type == "cuda":
        torch.cuda.empty_cache()
    session.state = session.state.model_copy(update={"micro_batch_limit": math.ceil(before / 2)})
    session.reporter.emit(
        Warned,
        kind="micro_batch_halved",
        message=_(
            "The device ran out of memory: from now on {now} instead of {before} images go through the model at once. "
            "The batch stays at {batch}, by accumulation, so the result is the same.",
            now=session.micro_batch_size,
            before=before,
            batch=session.spec.training.batch_size,
        ),
    )


class EpochProgress:
    """Accumulates the loss of an epoch on the device, and updates `session.state` when flushed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        dtype = torch.float32 if session.task.device.type == "mps" else torch.float64
        # One running sum, so that the mean does not depend, not even in rounding, on flushes and resumes.
        self._loss_sum = torch.tensor(session.state.loss_sum, dtype=dtype, device=session.task.device)
        self._steps = 0
        self._images = 0
        self._timed_steps = 0
        # Images since the last check for divergence, and the loss sum at that check.
        self._window_images = 0
        self._window_sum = session.state.loss_sum
        self._first_window: float | None = None
        self._began = self._flushed = time.monotonic()

    def add(self, loss_sum: torch.Tensor, *, images: int) -> None:
        """Count one optimizer step."""
        self._loss_sum += loss_sum
        self._steps += 1
        self._images += images
        # Report the first step at once: users wait for it.
        if self._timed_steps == 0 or time.monotonic() - self._flushed >= PROGRESS_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Update the state and emit `StepDone`.

        Raises:
            DivergedError: The loss is not finite, or many times what it was at first.
        """
        if not self._steps:
            return
        loss_sum = self._loss_sum.item()
        self._window_images += self._images
        self._check_divergence(loss_sum)
        now = time.monotonic()
        state = self._session.state
        self._session.state = state.model_copy(
            update={
                "position": state.position + self._steps,
                "step": state.step + self._steps,
                "loss_sum": loss_sum,
                "loss_count": state.loss_count + self._images,
                "epoch_seconds": state.epoch_seconds + now - self._flushed,
                "learning_rate": effective_rate(self._session.optimizer, self._session.step_rates),
            }
        )
        self._timed_steps += self._steps
        self._steps = self._images = 0
        self._flushed = now
        self._emit()

    def _check_divergence(self, loss_sum: float) -> None:
        state = self._session.state
        if not math.isfinite(loss_sum):
            raise self._diverged(_("The loss is no longer a number"))
        if self._window_images < MIN_WINDOW:
            return
        window = (loss_sum - self._window_sum) / self._window_images
        first = state.curve[0].train_loss if state.curve else self._first_window
        if first is not None and window > MAX_RISE * first:
            raise self._diverged(_("The loss rose from {first:.3g} to {now:.3g}", first=first, now=window))
        self._first_window = self._first_window or window
        self._window_sum, self._window_images = loss_sum, 0

    def _diverged(self, cause: str) -> DivergedError:
        state, rate = self._session.state, self._session.schedule.get_last_lr()[0]
        if state.curve:
            message = _(
                "{cause}: the training diverged in epoch {epoch}. The checkpoint of epoch {last} is kept; "
                "`run --finish` tests and exports the best one.",
                cause=cause,
                epoch=state.epoch,
                last=state.epoch - 1,
            )
        else:
            message = _(
                "{cause}: the training diverged in epoch {epoch}. No epoch was finished.",
                cause=cause,
                epoch=state.epoch,
            )
        hint = _("Try a third of the learning rate ({rate:.1e}), or a longer warm-up.", rate=rate / 3)
        return DivergedError(message, hint)

    def _emit(self) -> None:
        session, state = self._session, self._session.state
        steps_per_s = self._timed_steps / max(self._flushed - self._began, 1e-9)
        steps_left = session.total_steps - state.step
        epochs_left = session.epochs - state.epoch + 1
        session.reporter.emit(
            StepDone,
            step=state.step,
            epoch=state.epoch,
            loss=state.loss_sum / state.loss_count,
            learning_rate=state.learning_rate,
            steps_per_s=steps_per_s,
            eta_s=steps_left / steps_per_s + (epochs_left + _FINALE_EPOCH_ENDS) * state.epoch_end_seconds,
            elapsed_s=state.seconds + state.epoch_seconds,
            peak_memory_bytes=peak_memory_bytes(session.task.device),
        )
