"""Stable Diffusions of a few hundred thousand random parameters, one per family, with the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from trainer.models.base import tiny_folder
from trainer.models.methods.checkpoint_file import write_checkpoint

WIDTH = 32
#: Width of the second CLIP of SDXL and SD 3; diffusers distinguishes the two CLIPs of a single file by width.
_SECOND_WIDTH = 48
#: Wider than both CLIPs together, as in SD 3, which pads their embeddings with zeros.
_T5_WIDTH = 96

_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def make_random_base(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """Write an SD 1 in diffusers layout: 64 px images, 16 × 16 latents."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=_vae(latent_channels=4),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            # diffusers takes this as the number of heads.
            attention_head_dim=2,
            norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_random_sd2(folder: Path) -> Path:
    """Write a random base with text embeddings as wide as SD 2's."""
    make_random_base(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    text = pipeline.text_encoder.config.to_dict() | {
        "hidden_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(text))
    unet = {**pipeline.unet.config, "cross_attention_dim": 1024, "use_linear_projection": True}
    pipeline.unet = UNet2DConditionModel.from_config(unet)
    pipeline.save_pretrained(folder)
    return folder


def make_random_sdxl(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """Write an SDXL in diffusers layout: 64 px images, 16 × 16 latents, two text encoders."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    # As in the real SDXL, whose config has 2, which transformers reads as "the highest token id".
    projected = _clip_config(tokenizer, layers=3, width=_SECOND_WIDTH, eos_token_id=2)
    time_width = 8
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(latent_channels=4),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            layers_per_block=1,
            cross_attention_dim=WIDTH + _SECOND_WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + _SECOND_WIDTH,
        ),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, layers=3)),
        text_encoder_2=CLIPTextModelWithProjection(projected),
        tokenizer=tokenizer,
        tokenizer_2=_tokenizer(),
        scheduler=EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading", prediction_type=prediction_type),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_random_sd3(folder: Path, *, has_t5: bool = False) -> Path:
    """Write an SD 3 in diffusers layout: 64 px images, 16 × 16 latents of 16 channels, T5 or none."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    t5_tokenizer = _t5_tokenizer() if has_t5 else None
    pipeline = StableDiffusion3Pipeline(
        vae=_vae(
            latent_channels=16,
            shift_factor=0.0609,
            scaling_factor=1.5305,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=WIDTH,
            joint_attention_dim=_T5_WIDTH,
            pooled_projection_dim=WIDTH + _SECOND_WIDTH,
            pos_embed_max_size=24,
        ),
        text_encoder=CLIPTextModelWithProjection(_clip_config(tokenizer, layers=3)),
        text_encoder_2=CLIPTextModelWithProjection(
            _clip_config(tokenizer, layers=3, width=_SECOND_WIDTH, eos_token_id=2)
        ),
        text_encoder_3=None if t5_tokenizer is None else _t5(t5_tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=_tokenizer(),
        tokenizer_3=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder)
    return folder


def store_in_half(folder: Path) -> Path:
    """Convert all weights of a folder to fp16, as models are offered."""
    for path in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    return folder


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_folder() / "tokenizer")


def _clip_config(
    tokenizer: CLIPTokenizer, *, layers: int, width: int = WIDTH, eos_token_id: int | None = None
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vae(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **settings,
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter and T5's layout (padding 0, end 1), without sentencepiece."""
    letters = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.-"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def _t5(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=_T5_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def write_single_file(folder: Path, path: Path) -> Path:
    """Write the SD 1 of a folder as one `.safetensors` in the original layout, as model sites offer it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    encoders = {"text_encoder": pipeline.text_encoder}
    return write_checkpoint(path, "sd1", pipeline.unet, pipeline.vae, encoders, dtype=torch.float32)
