"""The diffusion objective as small pure functions, under the papers' names.

Shapes: B batch, C latent channels, H and W latent sides. `timestep_B` counts from 0 (least noise) to T - 1.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor


def snr(timestep_B: Tensor, schedule: DDPMScheduler) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) of each timestep (Kingma et al. 2021, arXiv:2107.00630)."""
    alpha_bar_B: Tensor = schedule.alphas_cumprod.to(timestep_B.device)[timestep_B]
    return alpha_bar_B / (1 - alpha_bar_B)


def min_snr_weight(timestep_B: Tensor, schedule: DDPMScheduler, gamma: float) -> Tensor:
    """Min-SNR-gamma loss weight (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    min(SNR, gamma) / SNR for a noise prediction, min(SNR, gamma) / (SNR + 1) for a velocity prediction.
    """
    snr_B = snr(timestep_B, schedule)
    divisor_B = snr_B + 1 if schedule.config.prediction_type == "v_prediction" else snr_B
    return snr_B.clamp(max=gamma) / divisor_B


def prediction_target(latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor, schedule: DDPMScheduler) -> Tensor:
    """What the UNet should say: the noise, or the velocity (Salimans & Ho 2022, arXiv:2202.00512)."""
    if schedule.config.prediction_type == "v_prediction":
        velocity: Tensor = schedule.get_velocity(latents_BCHW, noise_BCHW, timestep_B)
        return velocity
    return noise_BCHW


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, [B], in fp32."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that is a function of the seed alone (drawn on the CPU, so alike on every device)."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
