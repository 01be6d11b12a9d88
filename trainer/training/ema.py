"""The exponential moving average of what is trained: kept beside it, and put in its place to be judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.errors import CheckpointError


class Ema:
    """Averages of parameters, by name, in their precision and on their device.

    A parameter gets its average when it is first trained: what stays frozen, or is still frozen, costs no memory.
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
        """That of the next update: min(decay, (1 + n) / (10 + n)) after n updates, so that the first steps, which are
        far from where the training ends, are soon forgotten.

        Source: `ExponentialMovingAverage(num_updates=)` of TensorFlow, which diffusers' EMAModel takes over.
        """
        return min(self._decay, (1 + self._updates) / (10 + self._updates))

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step. What was trained and is frozen now is averaged on, towards what it stays at."""
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and name not in self._averages:
                self._averages[name] = parameter.detach().clone()
        if not self._averages:
            return
        self._follow()
        current = [self._parameters[name].data for name in self._averages]
        average: Any = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]  # torch has no types for it
        average(list(self._averages.values()), current, None)
        self._updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages in the place of the parameters; these are back, equal to the bit, afterwards.

        Nothing is copied. What is loaded or trained within is lost.
        """
        self._follow()
        kept = {name: self._parameters[name].data for name in self._averages}
        try:
            for name, average in self._averages.items():
                self._parameters[name].data = average
            yield
        finally:
            for name, tensor in kept.items():
                self._parameters[name].data = tensor

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left.

        Raises:
            CheckpointError: the averages are of another job.
        """
        averages: Mapping[str, Tensor] = state["averages"]
        for name, average in averages.items():
            if name not in self._parameters or self._parameters[name].shape != average.shape:
                raise CheckpointError(f"The averaged weights do not fit this job (at {name}).", "Start it anew.")
        self._updates = state["updates"]
        self._averages = {
            name: torch.empty_like(self._parameters[name].data).copy_(average) for name, average in averages.items()
        }

    def _follow(self) -> None:
        """The averages go where their parameters went."""
        for name, average in self._averages.items():
            self._averages[name] = average.to(self._parameters[name].device)
