"""A whole Stable Diffusion as one file in the original (LDM) layout, which A1111 and ComfyUI read.

The names are those of diffusers' `scripts/convert_diffusers_to_original_stable_diffusion.py` and `…_sdxl.py`, told from
the shape of the model instead of written down for one: any number of levels and of layers in a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.models.families.model import BaseModel, Family

#: Families whose original layout is known.
FAMILIES = ("sd1", "sd2", "sdxl")

State = dict[str, Tensor]

_UNET_HEADS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE = {
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
}
#: transformers' CLIP as OpenCLIP names it; q, k and v lie in one tensor there.
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}
_QKV = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def write_checkpoint(
    path: Path,
    family: str,
    unet: nn.Module,
    vae: nn.Module,
    text_encoders: Mapping[str, nn.Module],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    marks: Iterable[str] = (),
) -> Path:
    """One `.safetensors` of a whole model of one of `FAMILIES`, in half precision unless told otherwise.

    `marks` are empty tensors by which a file says what it predicts (see `marks_of`).
    """
    state = original_state(family, unet, vae, text_encoders)
    # A tensor at a time: the copy in half precision is all the memory that this takes.
    state = {name: state.pop(name).detach().to("cpu", dtype).contiguous() for name in list(state)}
    state |= {mark: torch.empty(0) for mark in marks}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(state, part, metadata={"format": "pt", **(metadata or {})})
    part.replace(path)
    return path


def marks_of(base: BaseModel) -> tuple[str, ...]:
    """What a single file of an SDXL that says the velocity is marked with, since nothing else tells: `v_pred`, and
    `ztsnr` where its noise schedule ends in noise alone. ComfyUI's convention; SD 2's readers find out by themselves.
    """
    if base.family is not Family.SDXL or base.prediction_type != "v_prediction":
        return ()
    return ("v_pred", "ztsnr") if base.noise_schedule.config.rescale_betas_zero_snr else ("v_pred",)


def original_state(family: str, unet: nn.Module, vae: nn.Module, text_encoders: Mapping[str, nn.Module]) -> State:
    """The weights of a model under their original names, as they are and where they are."""
    unet_state = unet.state_dict()
    state = {f"model.diffusion_model.{unet_name(name, unet_state)}": t for name, t in unet_state.items()}
    vae_state = vae.state_dict()
    state |= {f"first_stage_model.{_vae_name(n, vae_state)}": _as_conv(n, t) for n, t in vae_state.items()}
    encoders = {name: _without_text_model(encoder.state_dict()) for name, encoder in text_encoders.items()}
    if family == "sd1":
        return state | _prefixed("cond_stage_model.transformer.text_model.", encoders["text_encoder"])
    if family == "sd2":
        return state | _prefixed("cond_stage_model.model.", open_clip_state(encoders["text_encoder"]))
    state |= _prefixed("conditioner.embedders.0.transformer.text_model.", encoders["text_encoder"])
    return state | _prefixed("conditioner.embedders.1.model.", open_clip_state(encoders["text_encoder_2"]))


def unet_name(name: str, state: Mapping[str, Tensor]) -> str:
    """The original name of a UNet's weight; `state` tells how many layers its blocks have."""
    for ours, theirs in _UNET_HEADS.items():
        if name.startswith(ours + "."):
            name = name.replace(ours, theirs, 1)
            return _in_resnet(name) if ".resnets." in f".{ours}." else name
    block, level_text, kind, index_text, *rest = name.split(".")
    level, index = int(level_text), int(index_text)
    per_level = _count(state, f"{block}.0.resnets")
    if block == "down_blocks":
        # Each level: its layers, then the downsampler.
        number = 1 + (per_level + 1) * level + (per_level if kind == "downsamplers" else index)
        slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
        head = f"input_blocks.{number}.{slot}"
    else:
        # The upsampler is the last part of the last layer of a level.
        number = per_level * level + (per_level - 1 if kind == "upsamplers" else index)
        has_attention = any(other.startswith(f"up_blocks.{level}.attentions.") for other in state)
        slot = {"resnets": "0", "attentions": "1", "upsamplers": "2" if has_attention else "1"}[kind]
        head = f"output_blocks.{number}.{slot}"
    tail = ".".join(rest[1:] if kind == "downsamplers" else rest)
    return _in_resnet(f"{head}.{tail}") if kind == "resnets" else f"{head}.{tail}"


def open_clip_state(state: Mapping[str, Tensor]) -> State:
    """A CLIP of transformers (names without `text_model.`) as OpenCLIP has it: SD 2.x, and the second one of SDXL."""
    original: State = {}
    for name, tensor in state.items():
        if (found := _QKV.fullmatch(name)) is not None:
            layer, kind = found.groups()
            parts = [state[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            original[f"{_open_clip_name(layer)}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif name == "text_projection.weight":
            original["text_projection"] = tensor.T
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            original[_open_clip_name(name)] = tensor
    return original


def _open_clip_name(name: str) -> str:
    for ours, theirs in _OPEN_CLIP.items():
        name = name.replace(ours, theirs)
    return name


def _in_resnet(name: str) -> str:
    for ours, theirs in _UNET_RESNET.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae_name(name: str, state: Mapping[str, Tensor]) -> str:
    last = _count(state, "decoder.up_blocks") - 1
    if found := re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        side, level, kind, index, rest = found.groups()
        # The original counts the decoder's levels from the output.
        there = level if side == "encoder.down" else str(last - int(level))
        head = {"resnets": f"block.{index}", "downsamplers": "downsample", "upsamplers": "upsample"}[kind]
        name = f"{side}.{there}.{head}.{rest}"
    for ours, theirs in _VAE.items():
        name = name.replace(ours, theirs)
    return name


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    """The original VAE has 1 × 1 convolutions where diffusers has linear attention layers."""
    is_attention = "mid_block.attentions" in name and tensor.ndim == 2
    return tensor[:, :, None, None] if is_attention else tensor


def _without_text_model(state: Mapping[str, Tensor]) -> State:
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are under a prefix."""
    return len(set(_numbers(state, prefix)))


def _numbers(state: Mapping[str, Tensor], prefix: str) -> Iterator[str]:
    for name in state:
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.").split(".")[0]
