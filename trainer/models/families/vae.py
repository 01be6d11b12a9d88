"""Pictures to latents, by the VAE of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scale(vae: Any) -> int:
    """Pixels for each latent, along a side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    """(mode of the posterior - shift) * scale, [B, C, H, W], in fp32 whatever the precision around it.

    SDXL's VAE overflows in fp16, and latents are encoded once: here exactness costs next to nothing.
    """
    with torch.autocast(pixels_BCHW.device.type, enabled=False):
        mode_BCHW: Tensor = vae.encode(pixels_BCHW.float()).latent_dist.mode()
    # SD 1 and 2 have no shift in their configs, or None.
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (mode_BCHW - shift) * float(vae.config.scaling_factor)


def keep_in_fp32(vae: Any) -> None:
    """Let `vae.decode` compute in fp32 whatever the precision around it, as a sampling pipeline does not by itself.

    Pipelines upcast a VAE of fp16 weights; under autocast the weights are fp32, and they overflow all the same.
    """
    decode = vae.decode

    def decode_in_fp32(latents_BCHW: Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(latents_BCHW.device.type, enabled=False):
            return decode(latents_BCHW.float(), *arguments, **options)

    vae.decode = decode_in_fp32
