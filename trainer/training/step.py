"""One optimizer step: every picture's gradient, summed over micro-batches and processes, whatever their number.

What a picture draws (timestep, noise, caption dropout) follows from the step and from the picture's place in it, so
halving the micro-batch for want of memory, or sharing a step between processes, changes no more than the rounding.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from math import ceil
from typing import TypeAlias

import torch
from torch import Tensor

from trainer.dataset.seeds import derive_seed
from trainer.device import is_out_of_memory
from trainer.errors import OutOfMemoryError
from trainer.protocol.events import Warned
from trainer.protocol.settings import Precision
from trainer.tasks.examples import View
from trainer.training.batches import chunks
from trainer.training.session import Session

log = logging.getLogger(__name__)

#: Place of its first picture in the step, and what the pictures are seen as.
Piece: TypeAlias = tuple[int, tuple[View, ...]]


def take_step(session: Session, step: Sequence[tuple[View, ...]], number: int) -> Tensor:
    """One optimizer step, the `number`-th from 0; the sum of the loss over its pictures, on the device.

    Raises:
        OutOfMemoryError: not even single pictures fit.
    """
    while True:
        loss_sum, is_too_large = _accumulate(session, step, number)
        if not is_too_large:
            break
        session.optimizer.zero_grad()
        _halve(session)
    session.accelerator.clip_grad_norm_(session.parameters, session.spec.training.max_grad_norm)
    session.optimizer.step()
    session.schedule.step()
    session.optimizer.zero_grad()
    if session.ema is not None:
        session.ema.update()
    return loss_sum


def _accumulate(session: Session, step: Sequence[tuple[View, ...]], number: int) -> tuple[Tensor, bool]:
    """Gradients of the whole step in the parameters, the sum of the loss, and whether memory ran out somewhere."""
    pictures = sum(map(len, step))
    processes = session.processes
    loss_sum = torch.zeros((), device=session.task.device)
    is_too_large = False
    try:
        for first, views in list(pieces(step, session.state.parts))[processes.share]:
            # No stop is heard here: a step is whole or was not taken.
            session.reporter.say_working()
            loss_sum += _backward(session, views, first, number, pictures)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory in step %d", number)
        is_too_large = True
    if processes.count == 1:
        return loss_sum, is_too_large
    flags = torch.tensor([float(is_too_large), float(session.stop.is_set)], device=session.task.device)
    loss_sum, too_large, stopping = processes.sum_gradients(session.parameters, loss_sum, flags[0], flags[1])
    # A signal may reach one process before the others: they stop after the same step.
    session.stop.is_agreed = bool(stopping)
    return loss_sum, bool(too_large)


def pieces(step: Sequence[tuple[View, ...]], parts: int) -> Iterator[Piece]:
    """What goes through the model at once: the micro-batches of a step, each in `parts` parts."""
    place = 0
    for micro_batch in step:
        for part in chunks(micro_batch, ceil(len(micro_batch) / parts)):
            yield place, part
            place += len(part)


def _backward(session: Session, views: Sequence[View], first: int, number: int, pictures: int) -> Tensor:
    seed = session.spec.training.seed
    # Dropout layers draw from the global generators, all else from one of each picture: both follow from the step.
    torch.manual_seed(derive_seed("dropout", seed, number, first))
    seeds = [derive_seed("step", seed, number, first + place) for place in range(len(views))]
    loss_B = session.task.train_loss(session.train_examples(session.stage), views, seeds)
    session.accelerator.backward(loss_B.sum() / pictures)
    return loss_B.detach().sum()


def _halve(session: Session) -> None:
    """Let half as many pictures through at once from here on; the effective batch stays."""
    parts, micro_batch = session.state.parts * 2, session.fit.micro_batch_size
    if parts >= 2 * micro_batch:
        raise OutOfMemoryError(
            "Not even one picture at a time fits into the device's memory.",
            "Take a smaller training.resolution, or training.gradient_checkpointing.",
        )
    gc.collect()
    if session.task.device.type == "cuda":
        torch.cuda.empty_cache()
    session.state = session.state.model_copy(update={"parts": parts})
    session.reporter.say(
        Warned,
        kind="micro_batch_halved",
        message=(
            f"The device ran out of memory: from here on {ceil(micro_batch / parts)} instead of "
            f"{ceil(2 * micro_batch / parts)} pictures go through the model at once. The batch stays at "
            f"{session.spec.training.batch_size}, by accumulation; what is learnt stays the same."
        ),
    )


def try_step(session: Session, pictures: int, *, in_bf16: bool) -> None:
    """A forward and backward pass of the largest size, of which nothing stays."""
    task = session.task
    train = max(session.train_at.values(), key=lambda examples: max(w * h for w, h in examples.sizes))
    largest = max(range(len(train.sizes)), key=lambda place: train.sizes[place][0] * train.sizes[place][1])
    precision = task.precision
    if in_bf16:
        task.precision = Precision.BF16
    try:
        task.train_mode(True)
        loss_B = task.train_loss(train, [View(index=largest)] * pictures, list(range(pictures)))
        torch.autograd.backward(loss_B.sum())
    finally:
        task.precision = precision
        for _, parameter in task.trained.named_parameters():
            parameter.grad = None
