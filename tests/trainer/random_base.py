"""A random Stable Diffusion of a few ten thousand parameters: real classes, no knowledge, fast."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.models.base import tiny_folder

WIDTH = 32


def make_random_base(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """Write a pipeline folder in diffusers layout: 64 px pictures, 16 × 16 latents."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder() / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        ),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=64,
                projection_dim=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_single_file(folder: Path, path: Path) -> Path:
    """The pipeline of a folder as one original-layout `.safetensors`, as model sites offer it.

    After diffusers' `scripts/convert_diffusers_to_original_stable_diffusion.py`, for any number of levels.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    state = {f"model.diffusion_model.{_ldm_unet(name)}": t for name, t in pipeline.unet.state_dict().items()}
    state |= {f"first_stage_model.{_ldm_vae(n)}": _as_conv(n, t) for n, t in pipeline.vae.state_dict().items()}
    for name, tensor in pipeline.text_encoder.state_dict().items():
        standard = name if name.startswith("text_model.") else f"text_model.{name}"
        state[f"cond_stage_model.transformer.{standard}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _ldm_unet(name: str) -> str:
    heads = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for ours, theirs in heads.items():
        if name.startswith(ours + "."):
            return name.replace(ours, theirs, 1)
    block, *rest = name.split(".")
    if block == "mid_block":
        place = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
        return _ldm_layers(".".join([place[".".join(rest[:2])], *rest[2:]]), rest[0])
    level, kind, index = int(rest[0]), rest[1], int(rest[2])
    # One layer a block: down has (resnet, downsampler), up has two resnets, the last with the upsampler.
    if block == "down_blocks":
        number = 1 + 2 * level + (1 if kind == "downsamplers" else index)
        slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
        tail = rest[4:] if kind == "downsamplers" else rest[3:]
        return _ldm_layers(".".join([f"input_blocks.{number}.{slot}", *tail]), kind)
    number = 2 * level + (1 if kind == "upsamplers" else index)
    slot = {"resnets": "0", "attentions": "1", "upsamplers": "1" if level == 0 else "2"}[kind]
    return _ldm_layers(".".join([f"output_blocks.{number}.{slot}", *rest[3:]]), kind)


def _ldm_layers(name: str, kind: str) -> str:
    if kind != "resnets":
        return name
    for ours, theirs in _RESNET.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _ldm_vae(name: str) -> str:
    for level in range(3):
        for side, theirs in (("encoder.down_blocks", f"encoder.down.{level}"), ("decoder.up_blocks", None)):
            there = theirs or f"decoder.up.{2 - level}"
            name = name.replace(f"{side}.{level}.resnets.", f"{there}.block.")
            name = name.replace(f"{side}.{level}.downsamplers.0.", f"{there}.downsample.")
            name = name.replace(f"{side}.{level}.upsamplers.0.", f"{there}.upsample.")
    for ours, theirs in {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }.items():
        name = name.replace(ours, theirs)
    return name


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    """The original VAE has 1 × 1 convolutions where diffusers has linear attention layers."""
    is_attention = "mid_block.attentions" in name and tensor.ndim == 2
    return tensor[:, :, None, None] if is_attention else tensor
