"""Noising, targets, signal-to-noise ratio and sampler: discrete schedules (SD 1, 2, XL) and rectified flow (SD 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from trainer.errors import BadSpecError, MissingModelError
from trainer.models.families.model import PredictionType
from trainer.protocol.settings import Objective, Prediction

#: How far guided predictions are scaled back to the deviation of unguided ones (Lin et al. 2023, section 3.4): with
#: pure noise at the first step, guidance overexposes images.
_GUIDANCE_RESCALE = 0.7


@dataclass(frozen=True, kw_only=True)
class DiscreteNoising:
    """Noise by a table of alpha_bar (Ho et al. 2020, arXiv:2006.11239)."""

    #: A DDPMScheduler.
    schedule: Any

    @property
    def prediction_type(self) -> PredictionType:
        prediction: PredictionType = self.schedule.config.prediction_type
        return prediction

    @property
    def steps(self) -> int:
        return int(self.schedule.config.num_train_timesteps)

    def read_timestep(self, timestep_B: Tensor) -> Tensor:
        """Return the timestep as it is: the UNet reads its number."""
        return timestep_B

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise (Ho et al. 2020, arXiv:2006.11239, equation 4)."""
        noisy_BCHW: Tensor = self.schedule.add_noise(latents_BCHW, noise_BCHW, timestep_B)
        return noisy_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """The noise, or sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x (Salimans & Ho 2022, arXiv:2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise_BCHW
        velocity_BCHW: Tensor = self.schedule.get_velocity(latents_BCHW, noise_BCHW, timestep_B)
        return velocity_BCHW

    def snr(self, timestep_B: Tensor) -> Tensor:
        """alpha_bar / (1 - alpha_bar), [B] (Kingma et al. 2021, arXiv:2107.00630)."""
        alpha_bar_B: Tensor = self.schedule.alphas_cumprod.to(timestep_B.device)[timestep_B]
        return alpha_bar_B / (1 - alpha_bar_B)

    def draw_timestep(self, seed: int) -> int:
        """Draw a timestep, all equally likely."""
        return Random(seed).randrange(self.steps)

    def sampling_arguments(self) -> dict[str, Any]:
        """Rescale guidance where the first sampling step starts from pure noise."""
        return {"guidance_rescale": _GUIDANCE_RESCALE} if self.schedule.config.rescale_betas_zero_snr else {}


def make_discrete_noising(source: str, scheduler: Any, objective: Objective) -> tuple[DiscreteNoising, Any]:
    """Make the noising and the sampler of a base from its scheduler and the job's objective.

    Zero terminal SNR rescales both, and samples from the very last timestep (Lin et al. 2023, arXiv:2305.08891).

    Raises:
        MissingModelError: the base has another kind of noise schedule or prediction target.
    """
    config = dict(scheduler.config)
    if "beta_schedule" not in config:
        raise MissingModelError(
            f"{source} was trained with the noise of {type(scheduler).__name__}, which is not trained here.",
            "Choose a base with a DDPM noise schedule, or an SD 3.",
        )
    if objective.prediction is not Prediction.AUTO:
        config["prediction_type"] = objective.prediction.value
    if objective.zero_terminal_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    schedule = DDPMScheduler.from_config(config)
    if schedule.config.prediction_type not in {"epsilon", "v_prediction"}:
        raise MissingModelError(
            f"{source} predicts {schedule.config.prediction_type!r}.", "Only epsilon and v_prediction are trained."
        )
    return DiscreteNoising(schedule=schedule), DPMSolverMultistepScheduler.from_config(config)


@dataclass(frozen=True, kw_only=True)
class FlowNoising:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): latents mixed with a share sigma of noise."""

    #: A FlowMatchEulerDiscreteScheduler whose table holds every training timestep, most noise first.
    schedule: Any
    #: Share of noise at each timestep, least first, [1000], with the schedule's shift applied.
    sigmas: Tensor

    prediction_type: Literal["flow"] = "flow"

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    def read_timestep(self, timestep_B: Tensor) -> Tensor:
        """1000 sigma, with the shift: what the transformer reads in sampling and in training."""
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
        """Draw a timestep, logit-normal(0, 1) before the shift (section 3.1; diffusers' SD 3 scripts)."""
        share = 1 / (1 + math.exp(-Random(seed).gauss(0, 1)))
        return min(int(share * self.steps), self.steps - 1)

    def sampling_arguments(self) -> dict[str, Any]:
        return {}

    def _sigma(self, timestep_B: Tensor) -> Tensor:
        return self.sigmas.to(timestep_B.device)[timestep_B]


def make_flow_noising(source: str, scheduler: Any, objective: Objective) -> tuple[FlowNoising, Any]:
    """Make the noising and the sampler of a rectified-flow base from its scheduler.

    Raises:
        BadSpecError: the objective is for models with a noise schedule.
        MissingModelError: the base has another kind of scheduler.
    """
    for setting, is_set in (
        ("prediction", objective.prediction is not Prediction.AUTO),
        ("zero_terminal_snr", objective.zero_terminal_snr),
    ):
        if is_set:
            raise BadSpecError(
                f"objective.{setting} is for bases with a noise schedule; {source} is a flow model, which always ends "
                "in pure noise.",
                f"Remove objective.{setting}.",
            )
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise MissingModelError(
            f"{source} was trained with the noise of {type(scheduler).__name__}, which is not trained here.",
            "Choose an SD 3 with a FlowMatchEulerDiscreteScheduler.",
        )
    schedule = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    sampler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    return FlowNoising(schedule=schedule, sigmas=torch.flip(schedule.sigmas, (0,))), sampler
