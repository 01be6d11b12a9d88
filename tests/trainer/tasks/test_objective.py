"""The training objective against slow reference implementations of the papers' formulas."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainer.errors import BadSpecError
from trainer.protocol.settings import LossKind, Objective
from trainer.tasks.diffusion_loss import (
    check_objective,
    elementwise_loss,
    noise_like,
    perturbed,
    reduce_loss,
    seeded_noise,
    squared_error,
    timestep_weight,
)

SHAPE = (4, 12, 8)
#: Values of SD's schedule, and the extremes of any schedule.
SNRS = [0.0, 1e-9, 0.0047, 0.5, 1.0, 4.99, 5.0, 5.01, 1175.0, 1e12, math.inf]


def alpha_bar(timestep: int) -> float:
    """Return the cumulative alpha of Stable Diffusion's schedule, from its definition."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return math.prod(1 - (low + (high - low) * i / 999) ** 2 for i in range(timestep + 1))


def objective(**settings: object) -> Objective:
    return Objective.model_validate(settings)


def a_pair(seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return a prediction and a target whose differences lie on both sides of a delta of 0.1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn((batch, *SHAPE), generator=generator) for _ in range(2))
    return prediction, target


def each_pixel(tensor: Tensor) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*map(range, tensor.shape))


# -- noise -----------------------------------------------------------------------------------------------------------


def test_seeded_noise_depends_on_the_seed_only() -> None:
    first = seeded_noise((4, 8, 8), 7)
    torch.manual_seed(123)

    assert torch.equal(first, seeded_noise((4, 8, 8), 7))
    assert not torch.equal(first, seeded_noise((4, 8, 8), 8))


@pytest.mark.parametrize("settings", [{}, {"noise_offset": 0.1}, {"pyramid_noise": 0.3}], ids=str)
def test_noise_depends_on_the_seed_only_and_leaves_the_global_generator_unchanged(settings: dict[str, float]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise_like(SHAPE, 7, objective(**settings))

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, noise_like(SHAPE, 7, objective(**settings)))
    assert not torch.equal(first, noise_like(SHAPE, 8, objective(**settings)))


def test_plain_noise_equals_the_noise_of_validation() -> None:
    assert torch.equal(noise_like(SHAPE, 3, objective()), seeded_noise(SHAPE, 3))


def test_offset_noise_shifts_each_channel() -> None:
    generator = torch.Generator().manual_seed(5)
    plain = torch.randn(SHAPE, generator=generator)
    shift = torch.randn(SHAPE[0], generator=generator).tolist()

    noise = noise_like(SHAPE, 5, objective(noise_offset=0.25))

    for c, y, x in each_pixel(noise):
        assert noise[c, y, x].item() == pytest.approx(plain[c, y, x].item() + 0.25 * shift[c], abs=1e-6)


def test_offset_noise_has_the_variance_of_the_formula() -> None:
    means = [noise_like((4, 8, 8), seed, objective(noise_offset=0.5)).mean((1, 2)) for seed in range(500)]

    # Variance of a channel's mean: offset², plus 1 / 64 of the pixels' own variance.
    assert torch.stack(means).var().item() == pytest.approx(0.25 + 1 / 64, rel=0.1)


def bilinear(coarse: Tensor, y: int, x: int, height: int, width: int) -> float:
    """Return one pixel of [h, w] resized to [H, W] bilinearly, corners not aligned, edges repeated."""
    h, w = coarse.shape
    at_y = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
    at_x = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
    top, left = int(at_y), int(at_x)
    below, right = min(top + 1, h - 1), min(left + 1, w - 1)
    fy, fx = at_y - top, at_x - left
    rows = [(1 - fx) * coarse[row, left] + fx * coarse[row, right] for row in (top, below)]
    return float((1 - fy) * rows[0] + fy * rows[1])


@pytest.mark.parametrize("shape", [(4, 12, 8), (2, 5, 16), (1, 1, 3)])
@pytest.mark.parametrize("discount", [0.3, 0.9])
def test_pyramid_noise_adds_noise_of_coarser_scales(shape: tuple[int, int, int], discount: float) -> None:
    channels, height, width = shape
    generator = torch.Generator().manual_seed(11)
    total = torch.randn(shape, generator=generator).double()
    for level in range(6):
        ratio = 2 + 2 * torch.rand((), generator=generator).item()
        h, w = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse = torch.randn((1, channels, h, w), generator=generator)[0].double()
        for c, y, x in each_pixel(total):
            total[c, y, x] += bilinear(coarse[c], y, x, height, width) * discount**level
        if h == 1 or w == 1:
            break
    mean = total.mean()
    deviation = math.sqrt(sum((value - mean).item() ** 2 for value in total.flatten()) / (total.numel() - 1))

    noise = noise_like(shape, 11, objective(pyramid_noise=discount))

    assert torch.allclose(noise.double(), total / deviation, atol=1e-5)
    assert noise.std().item() == pytest.approx(1, abs=1e-5)


def test_a_higher_discount_makes_pyramid_noise_smoother() -> None:
    def roughness(discount: float) -> float:
        noise = noise_like((4, 64, 64), 1, objective(pyramid_noise=discount))
        return (noise[:, 1:] - noise[:, :-1]).square().mean().item()

    assert roughness(0.9) < roughness(0.5) < roughness(0.1)


def test_input_perturbation_adds_independent_noise() -> None:
    noise = seeded_noise((4, 64, 64), 3)

    added = (perturbed(noise, 3, 0.1) - noise) / 0.1

    assert added.std().item() == pytest.approx(1, abs=0.02)
    # Correlated noise would only scale it.
    assert abs((added * noise).mean().item()) < 0.03
    assert torch.equal(perturbed(noise, 3, 0.1), perturbed(noise, 3, 0.1))
    assert not torch.equal(perturbed(noise, 3, 0.1), perturbed(noise, 4, 0.1))
    assert torch.equal(perturbed(noise, 3, 0), noise)


# -- loss ------------------------------------------------------------------------------------------------------------


def slow_loss(kind: str, difference: float, delta: float) -> float:
    distance = abs(difference)
    match kind:
        case "mse":
            return distance**2
        case "l1":
            return distance
        case "huber":
            return distance**2 if distance <= delta else 2 * delta * distance - delta**2
        case _:
            return distance**2 / (2 * delta) if distance <= delta else distance - delta / 2


@pytest.mark.parametrize("kind", LossKind)
@pytest.mark.parametrize("delta", [0.1, 0.7, 10.0])
def test_each_loss_follows_its_formula(kind: LossKind, delta: float) -> None:
    prediction, target = a_pair()

    loss = elementwise_loss(prediction, target, objective(loss=kind, huber_delta=delta))

    assert loss.shape == prediction.shape
    for pixel in each_pixel(loss):
        difference = (prediction[pixel] - target[pixel]).item()
        assert loss[pixel].item() == pytest.approx(slow_loss(kind, difference, delta), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", LossKind)
def test_losses_are_computed_in_fp32(kind: LossKind) -> None:
    prediction = torch.full((1, 1, 2, 2), 300.0, dtype=torch.bfloat16)

    loss = elementwise_loss(prediction, torch.full((1, 1, 2, 2), 299.0), objective(loss=kind, huber_delta=10))

    assert loss.dtype == torch.float32
    assert loss.tolist() == torch.full_like(loss, slow_loss(kind, 1.0, 10)).tolist()


def test_extreme_deltas_turn_huber_into_mse_and_smooth_l1_into_l1() -> None:
    prediction, target = a_pair()
    wide, narrow = objective(loss="huber", huber_delta=10), objective(loss="smooth_l1", huber_delta=1e-6)

    assert torch.allclose(elementwise_loss(prediction, target, wide), F.mse_loss(prediction, target, reduction="none"))
    l1 = F.l1_loss(prediction, target, reduction="none")
    assert torch.allclose(elementwise_loss(prediction, target, narrow), l1, atol=1e-6)


@pytest.mark.parametrize("kind", LossKind)
def test_losses_have_finite_gradients_where_prediction_equals_target(kind: LossKind) -> None:
    prediction = torch.tensor([0.0, 1.0, -3.0], requires_grad=True)

    elementwise_loss(prediction, torch.zeros(3), objective(loss=kind)).sum().backward()

    assert prediction.grad is not None
    assert prediction.grad[0] == 0
    assert prediction.grad[1] > 0 > prediction.grad[2]


def test_the_squared_error_is_computed_in_fp32() -> None:
    target = torch.tensor([[[[1.0, -3.0]]]])

    error = squared_error(torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16), target)

    assert error.tolist() == [[[[1.0, 9.0]]]]
    assert error.dtype == torch.float32


# -- mean ------------------------------------------------------------------------------------------------------------


def a_mask(seed: int, batch: int = 2) -> Tensor:
    return torch.rand((batch, 1, *SHAPE[1:]), generator=torch.Generator().manual_seed(seed))


def slow_mean(loss_CHW: Tensor, mask_1HW: Tensor, floor: float) -> float:
    weighted = weights = 0.0
    for c, y, x in each_pixel(loss_CHW):
        weight = mask_1HW[0, y, x].item() * (1 - floor) + floor
        weighted += weight * loss_CHW[c, y, x].item()
        weights += weight
    return weighted / weights


def test_the_loss_of_an_image_is_the_mean_over_its_pixels() -> None:
    loss, _ = a_pair()

    assert reduce_loss(loss, None, 0.0).tolist() == pytest.approx([loss[0].mean().item(), loss[1].mean().item()])


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_a_mask_weights_each_pixel(floor: float) -> None:
    (loss, _), mask = a_pair(), a_mask(1)

    reduced = reduce_loss(loss, mask, floor)

    assert reduced.shape == (2,)
    for row in range(2):
        assert reduced[row].item() == pytest.approx(slow_mean(loss[row], mask[row], floor), rel=1e-3, abs=1e-5)


def test_a_white_mask_or_a_floor_of_1_equals_no_mask() -> None:
    (loss, _), mask = a_pair(), a_mask(1)

    assert torch.allclose(reduce_loss(loss, torch.ones_like(mask), 0.3), reduce_loss(loss, None, 0.3), atol=1e-6)
    assert torch.allclose(reduce_loss(loss, mask, 1.0), reduce_loss(loss, None, 0.0), atol=1e-6)


def test_only_pixels_in_the_mask_count_and_its_size_does_not() -> None:
    mask = torch.zeros(1, 1, *SHAPE[1:])
    mask[..., 2:4, 3:5] = 1
    loss = torch.full((1, *SHAPE), 100.0, requires_grad=True)
    within = torch.where(mask.bool(), 2.0, loss)

    reduced = reduce_loss(within, mask, 0.0)

    assert reduced.tolist() == [2.0]
    reduced.sum().backward()
    assert loss.grad is not None
    assert loss.grad.abs().sum() == 0


def test_an_empty_mask_has_no_loss_and_a_faint_one_a_small_loss() -> None:
    loss = torch.full((1, *SHAPE), 3.0, requires_grad=True)
    empty = torch.zeros(1, 1, *SHAPE[1:])
    faint = empty.clone()
    faint[0, 0, 1, 1] = 1 / 64

    nothing, little = reduce_loss(loss, empty, 0.0), reduce_loss(loss, faint, 0.0)

    assert nothing.tolist() == [0.0]
    assert little.tolist() == pytest.approx([3 / 64])
    nothing.sum().backward()
    assert loss.grad is not None
    assert loss.grad.isfinite().all()


# -- timesteps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", SNRS[1:-1])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_gamma_caps_the_weight_at_high_snr(ratio: float, gamma: float) -> None:
    settings = objective(snr_gamma=gamma)

    of_noise = timestep_weight(torch.tensor([ratio]), "epsilon", settings).item()
    of_velocity = timestep_weight(torch.tensor([ratio]), "v_prediction", settings).item()

    assert of_noise == pytest.approx(min(ratio, gamma) / ratio)
    assert of_velocity == pytest.approx(min(ratio, gamma) / (ratio + 1))


@pytest.mark.parametrize("ratio", [0.0047, 0.5, 1.0, 900.0])
def test_the_debiased_weight_is_one_over_the_root_of_snr(ratio: float) -> None:
    weight = timestep_weight(torch.tensor([ratio]), "epsilon", objective(debiased=True)).item()

    assert weight == pytest.approx(1 / math.sqrt(ratio))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("settings", [{}, {"snr_gamma": 5.0}, {"debiased": True}], ids=str)
def test_timestep_weights_are_finite_for_any_snr(prediction_type: str, settings: dict[str, float]) -> None:
    weights = timestep_weight(torch.tensor(SNRS), prediction_type, objective(**settings))

    assert weights.shape == (len(SNRS),)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_weights_at_zero_snr() -> None:
    nothing = torch.zeros(1)

    assert timestep_weight(nothing, "epsilon", objective(snr_gamma=5.0)).item() == 1
    assert timestep_weight(nothing, "v_prediction", objective(snr_gamma=5.0)).item() == 0
    assert timestep_weight(nothing, "epsilon", objective(debiased=True)).item() == pytest.approx(math.sqrt(1000))


def test_all_timesteps_have_weight_1_by_default_and_always_in_a_flow_model() -> None:
    ratios = torch.tensor([0.0, 0.5, 100.0])

    assert timestep_weight(ratios, "epsilon", objective()).tolist() == [1, 1, 1]
    assert timestep_weight(ratios, "flow", objective(snr_gamma=5.0)).tolist() == [1, 1, 1]


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction_type", "settings", "named"),
    [
        ("flow", {"snr_gamma": 5.0}, "snr_gamma"),
        ("flow", {"debiased": True}, "debiased"),
        ("flow", {"zero_terminal_snr": True}, "zero_terminal_snr"),
        ("flow", {"prediction": "v_prediction"}, "prediction"),
        ("epsilon", {"zero_terminal_snr": True}, "zero_terminal_snr"),
        ("v_prediction", {"debiased": True}, "debiased"),
    ],
)
def test_a_setting_that_contradicts_the_base_is_refused(
    prediction_type: str, settings: dict[str, object], named: str
) -> None:
    with pytest.raises(BadSpecError, match=named) as caught:
        check_objective(objective(**settings), prediction_type)
    assert named.split("_")[0] in caught.value.hint


@pytest.mark.parametrize(
    ("prediction_type", "settings"),
    [
        ("flow", {"noise_offset": 0.1, "input_perturbation": 0.1, "loss": "huber", "masked": True}),
        ("epsilon", {"snr_gamma": 5.0}),
        ("epsilon", {"debiased": True}),
        ("v_prediction", {"snr_gamma": 5.0, "zero_terminal_snr": True, "prediction": "v_prediction"}),
    ],
)
def test_settings_that_fit_the_base_are_accepted(prediction_type: str, settings: dict[str, object]) -> None:
    check_objective(objective(**settings), prediction_type)


def test_the_mask_of_one_image_does_not_affect_another() -> None:
    (loss, _), mask, random = a_pair(), a_mask(1), Random(0)
    other = mask.clone()
    other[1] = random.random()

    assert reduce_loss(loss, mask, 0.1)[0] == reduce_loss(loss, other, 0.1)[0]
    assert reduce_loss(loss, mask, 0.1)[1] != reduce_loss(loss, other, 0.1)[1]
