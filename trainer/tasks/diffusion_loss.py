"""The diffusion objective as small pure functions under the papers' names.

Shapes: B batch, C latent channels, H and W latent sides. `timestep_B` runs from 0 (least noise) to T - 1.
docs/objective.md explains each setting and its formula.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  its customary name
from torch import Generator, Tensor

from trainer.dataset.seeds import derive_seed
from trainer.errors import BadSpecError
from trainer.protocol.settings import LossKind, Objective, Prediction

#: Clamp for 1 / sqrt(SNR); the schedules of SD 1, 2 and XL run from 1,175 to 0.0047. kohya has the same upper limit.
#: The lower one keeps the weight finite at zero terminal SNR.
_LOWEST_SNR, _HIGHEST_SNR = 1e-3, 1e3
#: Scales of pyramid noise including the finest: the default of kohya's `multires_noise_iterations`.
_PYRAMID_LEVELS = 6


def check_objective(objective: Objective, prediction_type: str) -> None:
    """Check the objective against the base's prediction target: `epsilon`, `v_prediction` or `flow`.

    Raises:
        BadSpecError: a setting has no meaning for this base, or contradicts it.
    """
    if prediction_type == "flow":
        _check_flow(objective)
    elif prediction_type == "epsilon" and objective.zero_terminal_snr:
        raise BadSpecError(
            "objective.zero_terminal_snr leaves no signal in the last timestep, but this base predicts the noise.",
            "Set objective.prediction to v_prediction, or turn zero_terminal_snr off.",
        )
    elif prediction_type == "v_prediction" and objective.debiased:
        raise BadSpecError(
            "objective.debiased is for bases that predict the noise, but this one predicts the velocity.",
            "Set objective.snr_gamma to 5 instead, or turn debiased off.",
        )


def _check_flow(objective: Objective) -> None:
    for name, is_set in (
        ("snr_gamma", objective.snr_gamma is not None),
        ("debiased", objective.debiased),
        ("zero_terminal_snr", objective.zero_terminal_snr),
        ("prediction", objective.prediction is not Prediction.AUTO),
    ):
        if is_set:
            raise BadSpecError(
                f"objective.{name} is for bases with a noise schedule; this one is a flow model, which has none.",
                f"Remove objective.{name}.",
            )


def timestep_weight(snr_B: Tensor, prediction_type: str, objective: Objective) -> Tensor:
    """The loss weight of each timestep, [B]: 1, min-SNR-gamma or debiased estimation; always 1 for a flow.

    Min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556, section 3.4): min(SNR, gamma) / SNR for the noise, and
    min(SNR, gamma) / (SNR + 1) for the velocity. Debiased (Yu et al. 2023, arXiv:2310.08442): 1 / sqrt(SNR).
    """
    if prediction_type == "flow":
        return torch.ones_like(snr_B)
    if objective.snr_gamma is not None:
        if prediction_type == "v_prediction":
            return snr_B.clamp(max=objective.snr_gamma) / (snr_B + 1)
        # The same as min(SNR, gamma) / SNR, and 1 instead of 0 / 0 at zero SNR.
        return (objective.snr_gamma / snr_B).clamp(max=1)
    if objective.debiased:
        return snr_B.clamp(_LOWEST_SNR, _HIGHEST_SNR).rsqrt()
    return torch.ones_like(snr_B)


def elementwise_loss(prediction_BCHW: Tensor, target_BCHW: Tensor, objective: Objective) -> Tensor:
    """The loss of each latent pixel, same shape, in fp32. d is the difference, D is `huber_delta`.

    mse: d². l1: |d|. huber: d² up to D and 2 D |d| - D² beyond, so that it meets mse as D grows (Huber 1964; torch's
    has half of it). smooth_l1: d² / 2 D up to D and |d| - D / 2 beyond, so that it meets l1 as D shrinks.
    """
    prediction_BCHW, target_BCHW = prediction_BCHW.float(), target_BCHW.float()
    match objective.loss:
        case LossKind.MSE:
            return squared_error(prediction_BCHW, target_BCHW)
        case LossKind.L1:
            return F.l1_loss(prediction_BCHW, target_BCHW, reduction="none")
        case LossKind.HUBER:
            return 2 * F.huber_loss(prediction_BCHW, target_BCHW, reduction="none", delta=objective.huber_delta)
        case LossKind.SMOOTH_L1:
            return F.smooth_l1_loss(prediction_BCHW, target_BCHW, reduction="none", beta=objective.huber_delta)


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Squared error of each latent pixel, same shape, in fp32."""
    return F.mse_loss(prediction_BCHW.float(), target_BCHW.float(), reduction="none")


def reduce_loss(loss_BCHW: Tensor, mask_B1HW: Tensor | None, floor: float) -> Tensor:
    """The mean loss of each image, [B], weighted by a mask from 0 to 1 if there is one.

    A latent pixel's weight is mask * (1 - floor) + floor, and the sum is divided by the sum of weights: a face that
    fills a tenth of an image contributes as much as a whole image. OneTrainer has this as "normalize masked area loss".
    kohya does not divide, so small masks learn more slowly and losses are not comparable. The divisor is at least 1, so
    a mask below one latent pixel contributes less, and an empty one nothing.
    """
    if mask_B1HW is None:
        return loss_BCHW.flatten(1).mean(1)
    weight_BHW = (mask_B1HW * (1 - floor) + floor).squeeze(1)
    weighted_B = (loss_BCHW.mean(1) * weight_BHW).sum((1, 2))
    return weighted_B / weight_BHW.sum((1, 2)).clamp(min=1)


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that depends on the seed only; drawn on the CPU, so equal for every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def noise_like(shape_CHW: tuple[int, ...], seed: int, objective: Objective) -> Tensor:
    """The noise of one image, [C, H, W]: `seeded_noise`, plus offset or pyramid noise if the objective has it.

    Offset noise (Guttenberg, CrossLabs 2023): noise + offset * xi, with one standard normal xi per channel.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise_CHW = torch.randn(shape_CHW, generator=generator)
    if objective.pyramid_noise is not None:
        return _pyramid(noise_CHW, objective.pyramid_noise, generator)
    if objective.noise_offset:
        return noise_CHW + objective.noise_offset * torch.randn((shape_CHW[0], 1, 1), generator=generator)
    return noise_CHW


def _pyramid(noise_CHW: Tensor, discount: float, generator: Generator) -> Tensor:
    """Multi-resolution noise (Whitaker 2023) as in kohya's `pyramid_noise_like`, scaled to unit deviation.

    Level i is noise at 1 / r^i of the size, r drawn per level from 2 to 4, upsampled, times discount^i. Level 0 has
    full size and adds to the noise.
    """
    _, height, width = noise_CHW.shape
    total_CHW = noise_CHW
    for level in range(_PYRAMID_LEVELS):
        ratio = 2 + 2 * float(torch.rand((), generator=generator))
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse_1CHW = torch.randn((1, noise_CHW.shape[0], *size), generator=generator)
        total_CHW = total_CHW + F.interpolate(coarse_1CHW, (height, width), mode="bilinear")[0] * discount**level
        if 1 in size:
            break
    return total_CHW / total_CHW.std()


def perturbed(noise_CHW: Tensor, seed: int, gamma: float) -> Tensor:
    """Input perturbation (Ning et al. 2023, arXiv:2301.11706, algorithm 1): noise + gamma * xi for the input only.

    The target keeps the unperturbed noise. xi is standard normal and depends on the seed only.
    """
    return noise_CHW + gamma * seeded_noise(tuple(noise_CHW.shape), derive_seed("input perturbation", seed))
