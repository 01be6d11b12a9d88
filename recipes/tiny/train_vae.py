"""Trains the VAE under a time budget, on drawn scenes and on doodles, which add variety.

Then the decoder alone is polished. Loss: L1 + MSE + edges (L1 of neighbor differences, for outlines) + a small KL.
No GAN and no LPIPS: neither is needed for flat drawings, and both would double a step.

What a VAE this small lacks is steps: for the first 60 % of the time it sees crops of 32 px (0.1 s a step of 12 on two
cores, against 0.4 s for whole images), and for the first 30 % three of its latent channels are also drawn towards
the downscaled image's RGB. Without these it draws gray shapes for many minutes before it learns color.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from recipes.tiny.networks import new_vae
from recipes.tiny.scenes import IMAGE_PX
from recipes.tiny.training_images import ImageArray

logger = logging.getLogger(__name__)

BATCH = 12
DOODLES_PER_BATCH = 3
PEAK_LR = 1.2e-3
CROP_PX = 32
CROPS_UNTIL = 0.6
COLOR_HINT_UNTIL = 0.3
POLISH_LR = 1e-3
#: Standard deviation of the noise on the decoder's latents, in the UNet's units.
DECODER_NOISE = 0.04

#: The loss to minimize, and its L1 part for the log.
Losses: TypeAlias = tuple[Tensor, Tensor]
WARMUP_SHARE = 0.03
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5


def to_tensor(images_BHWC: ImageArray) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float (B, 3, H, W) in -1..1, channels last."""
    tensor = torch.from_numpy(np.ascontiguousarray(images_BHWC)).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def cosine(progress: float, floor: float = 0.02) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then half a cosine down to `floor`."""
    if progress < WARMUP_SHARE:
        return max(progress / WARMUP_SHARE, 0.01)
    fall = min((progress - WARMUP_SHARE) / (1 - WARMUP_SHARE), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * fall)))


def edge_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical gradients."""
    error = output_BCHW - target_BCHW
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def color_hint(mean_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Return the distance of the first three latent channels from the downscaled image."""
    small = functional.interpolate(pixels_BCHW, size=mean_BCHW.shape[-2:], mode="area")
    return (mean_BCHW[:, :3] - small).square().mean()


def rebuild_loss(output_BCHW: Tensor, pixels_BCHW: Tensor) -> Losses:
    """Return L1 + MSE + edge loss, and the L1 part alone for the log."""
    error = output_BCHW - pixels_BCHW
    l1 = error.abs().mean()
    return l1 + error.square().mean() + EDGE_WEIGHT * edge_loss(output_BCHW, pixels_BCHW), l1.detach()


def vae_loss(vae: AutoencoderKL, pixels_BCHW: Tensor, hint_weight: float) -> Losses:
    """Return the loss of encoder and decoder."""
    posterior = vae.encode(pixels_BCHW).latent_dist
    loss, l1 = rebuild_loss(vae.decode(posterior.sample()).sample, pixels_BCHW)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return loss + KL_WEIGHT * kl + hint_weight * color_hint(posterior.mean, pixels_BCHW), l1


def decoder_loss(vae: AutoencoderKL, pixels_BCHW: Tensor) -> Losses:
    """Return the loss of the decoder alone, on latents with a little noise, as the UNet's have."""
    with torch.no_grad():
        latents = vae.encode(pixels_BCHW).latent_dist.mean
    wrong = latents + DECODER_NOISE / vae.config.scaling_factor * torch.randn_like(latents)
    return rebuild_loss(vae.decode(wrong).sample, pixels_BCHW)


def _batch(scenes: ImageArray, doodles: ImageArray, rng: np.random.Generator, *, is_cropped: bool) -> Tensor:
    chosen = scenes[np.sort(rng.integers(len(scenes), size=BATCH - DOODLES_PER_BATCH))]
    extra = doodles[np.sort(rng.integers(len(doodles), size=DOODLES_PER_BATCH))]
    batch = np.concatenate([chosen, extra])
    if is_cropped:
        y, x = rng.integers(IMAGE_PX - CROP_PX + 1, size=2)
        batch = batch[:, y : y + CROP_PX, x : x + CROP_PX]
    return to_tensor(batch if rng.random() < 0.5 else batch[:, :, ::-1])


@torch.no_grad()
def _quieten(vae: AutoencoderKL) -> None:
    """Start with little posterior noise: at its usual deviation of 1 it hides the colors for many minutes."""
    vae.quant_conv.weight[4:] *= 0.1
    vae.quant_conv.bias[4:] = -6.0


def _fit(weights: list[nn.Parameter], loss_at: Callable[[float], Losses], peak_lr: float, budget_s: float) -> None:
    """Minimize `loss_at(progress from 0 to 1)` for `budget_s` seconds."""
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    began, step, l1_mean = time.monotonic(), 0, 0.0
    while (elapsed_s := time.monotonic() - began) < budget_s:
        optimizer.param_groups[0]["lr"] = peak_lr * cosine(elapsed_s / budget_s)
        loss, l1 = loss_at(elapsed_s / budget_s)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        l1_mean += (float(l1) - l1_mean) * max(0.03, 1 / step)
        if step % 100 == 0:
            logger.info("vae step %d, %.0f s: loss %.4f, L1 %.4f", step, elapsed_s, float(loss), l1_mean)


def train_vae(scenes: ImageArray, doodles: ImageArray, budget_s: float) -> AutoencoderKL:
    """Train a VAE from scratch for `budget_s` seconds and set its `scaling_factor`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vae = new_vae().to(memory_format=torch.channels_last)
    _quieten(vae)

    def loss_at(progress: float) -> Losses:
        batch = _batch(scenes, doodles, rng, is_cropped=progress < CROPS_UNTIL)
        return vae_loss(vae, batch, hint_weight=max(0.0, 1 - progress / COLOR_HINT_UNTIL))

    _fit(list(vae.parameters()), loss_at, PEAK_LR, budget_s)
    _set_scaling(vae, scenes)
    return vae


def polish_decoder(vae: AutoencoderKL, scenes: ImageArray, doodles: ImageArray, budget_s: float) -> None:
    """Train the decoder alone: sharper images from the same latents, so that a UNet trained on them stays valid."""
    rng = np.random.default_rng(1)
    weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    _fit(weights, lambda _: decoder_loss(vae, _batch(scenes, doodles, rng, is_cropped=False)), POLISH_LR, budget_s)


def _set_scaling(vae: AutoencoderKL, scenes: ImageArray) -> None:
    """Set `scaling_factor` to 1 / the latents' standard deviation, as SD does, so that the UNet sees unit variance."""
    latents = encode(vae, scenes[:512], scaled=False)
    logger.info("vae latents: mean %s, deviation %s", latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist())
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))


@torch.no_grad()
def encode(vae: AutoencoderKL, images_NHWC: ImageArray, *, scaled: bool = True) -> Tensor:
    """Return the mean latents (N, 4, 16, 16) of uint8 images; 3 ms per image."""
    chunks = [to_tensor(images_NHWC[start : start + 64]) for start in range(0, len(images_NHWC), 64)]
    latents = torch.cat([vae.encode(chunk).latent_dist.mean.contiguous() for chunk in chunks])
    return latents * vae.config.scaling_factor if scaled else latents
