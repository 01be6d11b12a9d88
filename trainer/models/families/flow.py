"""The straight path from picture to noise of SD 3: rectified flow (Esser et al. 2024, arXiv:2403.03206)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from trainer.errors import BadSpecError, MissingModelError
from trainer.protocol.settings import Objective, Prediction


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Noise by its share sigma of a latent."""

    #: A FlowMatchEulerDiscreteScheduler as it was made: its table holds each training step, most noise first.
    schedule: Any
    #: Share of the noise at each timestep, least first, [1000]; the schedule's shift is in it.
    sigmas: Tensor

    prediction_type: Literal["flow"] = "flow"

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    def read_timestep(self, timestep_B: Tensor) -> Tensor:
        """1000 sigma, the shift included: what the transformer is told when it samples, and in training."""
        return self._sigma(timestep_B) * self.steps

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """(1 - sigma) x + sigma noise."""
        sigma_B111 = self._sigma(timestep_B).to(latents_BCHW)[:, None, None, None]
        return (1 - sigma_B111) * latents_BCHW + sigma_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """noise - x, the velocity along the path, at every timestep."""
        return noise_BCHW - latents_BCHW

    def snr(self, timestep_B: Tensor) -> Tensor:
        """((1 - sigma) / sigma)², [B]."""
        sigma_B = self._sigma(timestep_B)
        return ((1 - sigma_B) / sigma_B) ** 2

    def draw_timestep(self, seed: int) -> int:
        """Logit-normal(0, 1), before the shift: the middle most often (section 3.1; diffusers' SD 3 scripts)."""
        place = 1 / (1 + math.exp(-Random(seed).gauss(0, 1)))
        return min(int(place * self.steps), self.steps - 1)

    def sampling_arguments(self) -> dict[str, Any]:
        return {}

    def _sigma(self, timestep_B: Tensor) -> Tensor:
        return self.sigmas.to(timestep_B.device)[timestep_B]


def make_noising(source: str, scheduler: Any, objective: Objective) -> tuple[Flow, Any]:
    """The path to train on, and the sampler, from the base's scheduler.

    Raises:
        BadSpecError: the objective is for models with a noise schedule.
        MissingModelError: the base was trained with another kind of noise.
    """
    for setting, is_set in (
        ("prediction", objective.prediction is not Prediction.AUTO),
        ("zero_terminal_snr", objective.zero_terminal_snr),
    ):
        if is_set:
            raise BadSpecError(
                f"objective.{setting} is for bases with a noise schedule; {source} is a flow model, whose last step is "
                "noise alone as it is.",
                f"Leave objective.{setting} away.",
            )
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise MissingModelError(
            f"{source} was trained with the noise of {type(scheduler).__name__}, which is not trained here.",
            "Choose an SD 3 with a FlowMatchEulerDiscreteScheduler.",
        )
    schedule = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    sampler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    return Flow(schedule=schedule, sigmas=torch.flip(schedule.sigmas, (0,))), sampler
