"""Averaged weights for evaluation: an exponential moving average (EMA), and the average of schedule-free optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.errors import CheckpointError
from trainer.protocol.text import _


class Ema:
    """Exponential moving averages of parameters, in the parameters' dtype and on their device.

    An average starts when its parameter is first trained, so frozen parameters take no memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self._parameters = dict(parameters)
        self._averages: dict[str, Tensor] = {}
        self._decay = decay
        self._updates = 0

    def __repr__(self) -> str:
        return f"<Ema of {len(self._averages)} parameters after {self._updates} updates>"

    @property
    def decay(self) -> float:
        """Decay of the next update: min(decay, (1 + n) / (10 + n)) after n updates.

        The ramp forgets the first steps, which are far from the final weights, quickly. Source:
        `ExponentialMovingAverage(num_updates=)` of TensorFlow, as in diffusers' EMAModel.
        """
        return min(self._decay, (1 + self._updates) / (10 + self._updates))

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after an optimizer step, including those of parameters that were frozen meanwhile."""
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and name not in self._averages:
                self._averages[name] = parameter.detach().clone()
        if not self._averages:
            return
        self._move_to_parameters()
        current = [self._parameters[name].data for name in self._averages]
        average: Any = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]  # torch has no types for it
        average(list(self._averages.values()), current, None)
        self._updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the averages in while the body runs, then restore the parameters bit for bit.

        Nothing is copied. Changes that the body makes to the weights are lost.
        """
        self._move_to_parameters()
        trained = {name: self._parameters[name].data for name in self._averages}
        try:
            for name, average in self._averages.items():
                self._parameters[name].data = average
            yield
        finally:
            for name, tensor in trained.items():
                self._parameters[name].data = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: The averages are from another job.
        """
        averages: Mapping[str, Tensor] = state["averages"]
        for name, average in averages.items():
            if name not in self._parameters or self._parameters[name].shape != average.shape:
                raise CheckpointError(
                    _("The averaged weights do not fit this job (at {name}).", name=name),
                    _("Start the job again from the beginning."),
                )
        self._updates = state["updates"]
        self._averages = {
            name: torch.empty_like(self._parameters[name].data).copy_(average) for name, average in averages.items()
        }

    def _move_to_parameters(self) -> None:
        for name, average in self._averages.items():
            self._averages[name] = average.to(self._parameters[name].device)


def averages_weights(optimizer: Optimizer) -> bool:
    """True for a schedule-free optimizer, which is evaluated by an average of the weights."""
    return any("train_mode" in group for group in optimizer.param_groups)


@contextmanager
def evaluation_mode(optimizer: Optimizer) -> Iterator[None]:
    """Swap in the averaged weights of a schedule-free optimizer while the body runs; no-op for other optimizers.

    The training weights are copied and restored bit for bit, because the library's `train()` recomputes them from the
    averages with rounding. The copy takes as much memory as the gradients, which do not exist between steps.
    """
    if not averages_weights(optimizer):
        yield
        return
    trained: list[nn.Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    averaged = [parameter for parameter in trained if optimizer.state.get(parameter)]
    copies = [parameter.detach().clone() for parameter in averaged]
    optimizer.eval()  # type: ignore[attr-defined]  # schedule-free optimizers and accelerate's wrapper have it
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(averaged, copies, strict=True):
                parameter.copy_(value)
        for group in optimizer.param_groups:
            group["train_mode"] = True
