"""Writes a Stable Diffusion with random weights to time: a UNet of 92 M parameters, the rest as in SD 1.5."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.models.base import tiny_folder

_WIDTH = 768


def small_base() -> Path:
    """Return the folder of the base; the first call writes it (about 1 GB)."""
    folder = Path(tempfile.gettempdir()) / "darkroom-bench" / "small-1"
    if not (folder / "model_index.json").exists():
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder() / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        unet=UNet2DConditionModel(
            sample_size=32, block_out_channels=(128, 256, 384, 384), cross_attention_dim=_WIDTH, attention_head_dim=8
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_WIDTH,
                intermediate_size=4 * _WIDTH,
                num_hidden_layers=12,
                num_attention_heads=12,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = folder.with_suffix(".part")
    pipeline.save_pretrained(part)
    part.rename(folder)
