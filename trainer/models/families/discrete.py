"""The discrete noise schedules of SD 1, 2 and XL: noising, targets, signal-to-noise ratio, sampler."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from trainer.errors import MissingModelError
from trainer.models.families.model import PredictionType
from trainer.protocol.settings import Objective, Prediction

#: How far guided predictions are scaled back to the deviation of unguided ones (Lin et al. 2023, section 3.4): with
#: pure noise at the first step, guidance overexposes pictures.
_GUIDANCE_RESCALE = 0.7


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """Noise by a table of alpha_bar."""

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
        """The number itself."""
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
        """Each as often as any other."""
        return Random(seed).randrange(self.steps)

    def sampling_arguments(self) -> dict[str, Any]:
        """Rescaled guidance where the last step is noise alone."""
        return {"guidance_rescale": _GUIDANCE_RESCALE} if self.schedule.config.rescale_betas_zero_snr else {}


def make_noising(source: str, scheduler: Any, objective: Objective) -> tuple[Discrete, Any]:
    """The noise to train with, and the sampler, from the base's scheduler and the job's objective.

    Zero terminal SNR rescales both, and samples from the very last step (Lin et al. 2023, arXiv:2305.08891).

    Raises:
        MissingModelError: the base was trained with another kind of noise, or predicts something else.
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
    return Discrete(schedule=schedule), DPMSolverMultistepScheduler.from_config(config)
