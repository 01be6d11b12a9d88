"""The configurations of Stability's released models, which their single files do not hold.

The values are those of the `config.json` files of stable-diffusion-v1-5, stable-diffusion-2-1,
stable-diffusion-xl-base-1.0, stable-diffusion-3-medium, and stable-diffusion-3.5-medium and -large in diffusers layout.
All files of a family have them; what differs (the prediction target of SD 2) is read from the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.clip_vocabulary import BEGIN, END, clip_vocabulary

Config = Mapping[str, Any]

_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    # diffusers takes this as the number of heads.
    "attention_head_dim": 8,
}
_SD2_HEADS = {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "upcast_attention": True}
_SDXL_UNET: Config = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_TRANSFORMER: Config = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_SD3_VAE: Config = {
    "sample_size": 1024,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_CLIP: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
#: OpenAI's CLIP ViT-L/14, and OpenCLIP's ViT-H/14 (without its last layer, which SD 2 does not read) and ViT-bigG/14.
_CLIP_L: Config = {
    **_CLIP,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_H: Config = {
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "pad_token_id": 0,
}
_CLIP_G: Config = {
    **_CLIP,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "pad_token_id": 0,
}
_SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

_SD1 = {"unet": _UNET, "vae": _VAE, "text_encoder": _CLIP_L, "scheduler": _SCHEDULER}
_SD2 = {
    "unet": {**_UNET, **_SD2_HEADS, "cross_attention_dim": 1024},
    "vae": _VAE,
    "text_encoder": _CLIP_H,
    "scheduler": _SCHEDULER,
}
_SDXL = {
    "unet": {**_UNET, **_SDXL_UNET},
    "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": _CLIP_L,
    "text_encoder_2": _CLIP_G,
    "scheduler": {**_SCHEDULER, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
}
_SD3 = {
    "transformer": _TRANSFORMER,
    "vae": {**_VAE, **_SD3_VAE},
    "text_encoder": _CLIP_L,
    "text_encoder_2": _CLIP_G,
    "scheduler": _FLOW,
}
#: By diffusers' type of a single file: the components of the released model, and the pipeline that they belong to.
RELEASED: Mapping[str, Mapping[str, Config]] = {
    "v1": _SD1,
    "v2": _SD2,
    "xl_base": _SDXL,
    "sd3": _SD3,
    "sd35_medium": {
        **_SD3,
        "transformer": {
            **_TRANSFORMER,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
    },
    "sd35_large": {
        **_SD3,
        "transformer": {
            **_TRANSFORMER,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "qk_norm": "rms_norm",
        },
    },
}
#: diffusers' types of single files, and their pipelines.
PIPELINES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
}
#: The second of two encoders, and the only one of SD 2, fill captions up with "!", token 0.
_PADS_WITH_ZERO = (_CLIP_G, _CLIP_H)


def write_configs(kind: str, folder: Path, **scheduler: Any) -> Path:
    """Write the configurations of a released model in diffusers layout, without weights and tokenizers.

    Args:
        kind: A key of `RELEASED`.
        scheduler: Changes to the configuration of the scheduler.
    """
    index: dict[str, Any] = {"_class_name": PIPELINES[kind]}
    if kind == "xl_base":
        index["force_zeros_for_empty_prompt"] = True
    for name, config in RELEASED[kind].items():
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        content = {**config, **scheduler} if name == "scheduler" else config
        (folder / name / file).write_text(json.dumps(content), encoding="utf-8")
        if name.startswith("text_encoder"):
            index[name] = ["transformers", _encoder_class(kind, name)]
            index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            index[name] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _encoder_class(kind: str, name: str) -> str:
    """SD 1, SD 2 and the first encoder of SDXL have no projection."""
    is_projected = kind.startswith("sd3") or name == "text_encoder_2"
    return "CLIPTextModelWithProjection" if is_projected else "CLIPTextModel"


def make_tokenizers(kind: str) -> dict[str, Any]:
    """Make the CLIP tokenizers of a released model, by their name in the pipeline."""
    from transformers import CLIPTokenizer

    tokens, merges = clip_vocabulary()
    return {
        name.replace("text_encoder", "tokenizer"): CLIPTokenizer(
            vocab=tokens,
            merges=merges,
            bos_token=BEGIN,
            eos_token=END,
            unk_token=END,
            pad_token="!" if config in _PADS_WITH_ZERO else END,
            model_max_length=77,
        )
        for name, config in RELEASED[kind].items()
        if name.startswith("text_encoder")
    }
