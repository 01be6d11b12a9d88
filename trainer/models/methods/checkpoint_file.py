"""Writes single `.safetensors` files: metadata and hashes for A1111, and whole models in the original (LDM) layout.

The LDM names are those of diffusers' `scripts/convert_diffusers_to_original_stable_diffusion.py` and `…_sdxl.py`,
derived from the model's structure, so they hold for any number of levels and layers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from trainer.exchange.files import atomic_write
from trainer.models.families.model import Family, LoadedBase

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
#: transformers' CLIP names and OpenCLIP's, which has q, k and v in one tensor.
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
    """Write a whole model of one of `FAMILIES` as one `.safetensors`, in half precision by default.

    `marks` are empty tensors that state the prediction target (see `marks_of`).
    """
    state = original_state(family, unet, vae, text_encoders)
    # One tensor at a time: only the half-precision copy takes extra memory.
    state = {name: state.pop(name).detach().to("cpu", dtype).contiguous() for name in list(state)}
    state |= {mark: torch.empty(0) for mark in marks}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file(state, partial, metadata={"format": "pt", **(metadata or {})})
    return path


def marks_of(base: LoadedBase) -> tuple[str, ...]:
    """Marker tensors of an SDXL file that predicts the velocity: `v_pred`, and `ztsnr` with zero terminal SNR.

    ComfyUI's convention; nothing else in the file says it. Readers of SD 2 files find out by themselves.
    """
    if base.family is not Family.SDXL or base.prediction_type != "v_prediction":
        return ()
    return ("v_pred", "ztsnr") if base.noise_schedule.config.rescale_betas_zero_snr else ("v_pred",)


def original_state(family: str, unet: nn.Module, vae: nn.Module, text_encoders: Mapping[str, nn.Module]) -> State:
    """Return the weights under their original names; not copied, on their device."""
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
    """Return the original name of a UNet weight; the number of layers per block is read from `state`."""
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
        # The upsampler is the last module of a level's last layer.
        number = per_level * level + (per_level - 1 if kind == "upsamplers" else index)
        has_attention = any(other.startswith(f"up_blocks.{level}.attentions.") for other in state)
        slot = {"resnets": "0", "attentions": "1", "upsamplers": "2" if has_attention else "1"}[kind]
        head = f"output_blocks.{number}.{slot}"
    tail = ".".join(rest[1:] if kind == "downsamplers" else rest)
    return _in_resnet(f"{head}.{tail}") if kind == "resnets" else f"{head}.{tail}"


def open_clip_state(state: Mapping[str, Tensor]) -> State:
    """Convert a transformers CLIP (names without `text_model.`) to OpenCLIP names: SD 2.x, and SDXL's second one."""
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
    """Convert VAE weights: the original has 1 x 1 convolutions where diffusers has linear attention layers."""
    is_attention = "mid_block.attentions" in name and tensor.ndim == 2
    return tensor[:, :, None, None] if is_attention else tensor


def _without_text_model(state: Mapping[str, Tensor]) -> State:
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len(set(_numbers(state, prefix)))


def _numbers(state: Mapping[str, Tensor], prefix: str) -> Iterator[str]:
    for name in state:
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.").split(".")[0]


def write_single_file(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write tensors with metadata and the two hashes by which A1111 identifies a file; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, path, metadata={**as_metadata(metadata), **tensor_hashes(contiguous)})
    return path


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Convert values to strings, as safetensors requires: numbers as kohya prints them, nested values as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in values.items()
    }


def tensor_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Compute `sshs_model_hash` and `sshs_legacy_hash`: SHA-256 of the tensor bytes, without the metadata.

    Source: `precalculate_safetensors_hashes` of kohya-ss/sd-scripts `library/train_util.py`.
    """
    blob = save(dict(state))
    header = int.from_bytes(blob[:8], "little")
    model_hash = hashlib.sha256(blob[8 + header :]).hexdigest()
    # A1111's original hash: 64 KiB at an offset of 1 MiB, eight hex digits.
    legacy_hash = hashlib.sha256(blob[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}


#: Licenses of the original models, by the beginning of their names on the hub.
_LICENSES = {
    "CompVis/stable-diffusion-v1-": "CreativeML Open RAIL-M",
    "stable-diffusion-v1-5/": "CreativeML Open RAIL-M",
    "stabilityai/stable-diffusion-2": "CreativeML Open RAIL++-M",
    "stabilityai/stable-diffusion-xl-base": "CreativeML Open RAIL++-M",
    "stabilityai/stable-diffusion-3": "Stability AI Community License",
}


@cache
def base_metadata(source: str) -> Mapping[str, str]:
    """Name and license of a base, as far as they are known; of a single file also the hashes by which A1111 finds it.

    Source: `model_hash` and `calculate_sha256` of kohya-ss/sd-scripts `library/train_util.py`.
    """
    path = Path(source).expanduser()
    found = {"ss_sd_model_name": path.name}
    license_name = next((name for start, name in _LICENSES.items() if source.startswith(start)), "")
    if path.is_file():
        with path.open("rb") as file:
            found["ss_new_sd_model_hash"] = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0x100000)
            found["ss_sd_model_hash"] = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        with safe_open(path, "pt") as opened:
            license_name = (opened.metadata() or {}).get("modelspec.license", "")
    elif (path / "README.md").is_file():
        # The model card of the hub begins with YAML.
        card = (path / "README.md").read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        named = re.search(r"^license: *(.+)$", card, flags=re.MULTILINE)
        license_name = named[1].strip() if named and card.startswith("---") else ""
    return {**found, **({"modelspec.license": license_name} if license_name else {})}
