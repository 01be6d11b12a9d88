"""The formulas against slow, obvious ones."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.tasks.objective import min_snr_weight, prediction_target, seeded_noise, snr, squared_error

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(**SCHEDULE, prediction_type=prediction_type)


def alpha_bar(timestep: int) -> float:
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return math.prod(1 - (low + (high - low) * i / 999) ** 2 for i in range(timestep + 1))


@pytest.mark.parametrize("timestep", [0, 1, 250, 500, 999])
def test_snr_is_signal_over_noise(timestep: int) -> None:
    expected = alpha_bar(timestep) / (1 - alpha_bar(timestep))

    assert snr(torch.tensor([timestep]), schedule()).item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("timestep", [0, 100, 400, 900])
def test_min_snr_caps_the_weight_of_clean_pictures(timestep: int) -> None:
    ratio = alpha_bar(timestep) / (1 - alpha_bar(timestep))
    step = torch.tensor([timestep])

    noise_weight = min_snr_weight(step, schedule(), gamma=5.0).item()
    velocity_weight = min_snr_weight(step, schedule("v_prediction"), gamma=5.0).item()

    assert noise_weight == pytest.approx(min(ratio, 5) / ratio, rel=2e-3)
    assert velocity_weight == pytest.approx(min(ratio, 5) / (ratio + 1), rel=2e-3)


def test_the_target_is_the_noise_or_the_velocity() -> None:
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([10, 700])

    velocity = prediction_target(latents, noise, timesteps, schedule("v_prediction"))

    assert prediction_target(latents, noise, timesteps, schedule()) is noise
    for row, timestep in enumerate((10, 700)):
        expected = math.sqrt(alpha_bar(timestep)) * noise[row] - math.sqrt(1 - alpha_bar(timestep)) * latents[row]
        assert torch.allclose(velocity[row], expected, atol=1e-3)


def test_the_error_is_one_number_for_each_picture() -> None:
    prediction = torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16)
    target = torch.stack([torch.ones(4, 8, 8), torch.full((4, 8, 8), 3.0)])

    assert squared_error(prediction, target).tolist() == [1.0, 9.0]


def test_noise_follows_from_the_seed_alone() -> None:
    first = seeded_noise((4, 8, 8), 7)
    torch.manual_seed(123)

    assert torch.equal(first, seeded_noise((4, 8, 8), 7))
    assert not torch.equal(first, seeded_noise((4, 8, 8), 8))
