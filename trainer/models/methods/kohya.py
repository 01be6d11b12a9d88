"""Adapters under kohya's and LyCORIS's names, and the merge of such a file into a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.families.model import Family, LoadedBase
from trainer.models.methods.checkpoint_file import unet_name
from trainer.models.methods.layers import scale_of, size_of
from trainer.models.methods.trained import Weights
from trainer.protocol.settings import Method, MethodKind, Targets

#: LyCORIS's names of the kinds; `full` is a file of differences.
_ALGORITHMS = {
    MethodKind.LORA: "lora",
    MethodKind.DORA: "lora",
    MethodKind.LOHA: "loha",
    MethodKind.LOKR: "lokr",
    MethodKind.IA3: "ia3",
}


def kohya_state(base: LoadedBase, method: Method, weights: Weights) -> dict[str, Tensor]:
    """Convert an adapter to kohya's names: `lora_unet_….lora_down.weight`, `….hada_w1_a`, `….alpha`, …

    Weights are fp16, as kohya saves them by default. The alpha of LoRA and DoRA is the true one (diffusers' own
    converter writes the rank); LoHa and LoKr have it multiplied in, and the rank for alpha: LyCORIS 4.1.3 applies
    alpha / rank twice when it merges them (`get_diff_weight`), and no reader applies it to two full factors of LoKr.
    """
    state: dict[str, Tensor] = {}
    for module, tensors in weights.items():
        layers = by_layer(tensors)
        keys = kohya_keys(base, module, layers)
        for layer, adapter in layers.items():
            name = f"{module}.{layer}"
            tensors_of_layer = _layer_tensors(method, name, base.module(module).get_submodule(layer), adapter)
            state |= {f"{keys[layer]}.{suffix}": tensor for suffix, tensor in tensors_of_layer.items()}
    return state


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group peft's tensors (`….to_q.lora_A.weight`) by layer: `….to_q` -> `lora_A`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, weight = name.removesuffix(".weight").rpartition(".")
        layers.setdefault(layer, {})[weight] = tensor
    return layers


def _layer_tensors(method: Method, name: str, layer: nn.Module, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one layer, called `name`, by the suffixes of its key in the file."""
    rank, scale = size_of(method, name, layer)[0], scale_of(method, name, layer)
    # Readers scale by alpha / rank.
    alpha = torch.tensor(rank * scale)
    match method.kind:
        case MethodKind.LORA:
            return {**_lora(adapter), "alpha": alpha}
        case MethodKind.DORA:
            return {**_lora(adapter), "dora_scale": _dora_scale(adapter), "alpha": alpha}
        case MethodKind.LOHA:
            return _scaled(adapter, rank, scale, "hada_w1_a")
        case MethodKind.LOKR:
            return _scaled(adapter, rank, scale, "lokr_w1")
        case MethodKind.IA3:
            return _ia3(adapter["ia3_l"])
        case _:
            raise AssertionError(f"{method.kind} has no kohya file")


def _lora(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"lora_down.weight": adapter["lora_A"].half(), "lora_up.weight": adapter["lora_B"].half()}


def _dora_scale(adapter: Mapping[str, Tensor]) -> Tensor:
    """One magnitude per output, [out, 1] or [out, 1, 1, 1]: `wd_on_output` in LyCORIS 4, its default.

    In fp32: the steps of fp16 are as large as what training changes.
    """
    ones = (1,) * (adapter["lora_A"].ndim - 1)
    return adapter["lora_magnitude_vector"].reshape(-1, *ones).float()


def _scaled(adapter: Mapping[str, Tensor], rank: int, scale: float, factor: str) -> dict[str, Tensor]:
    """Multiply the scale into a factor, and write alpha = rank."""
    scaled = {**adapter, factor: adapter[factor] * scale}
    return {**{name: tensor.half() for name, tensor in scaled.items()}, "alpha": torch.tensor(float(rank))}


def _ia3(factor: Tensor) -> dict[str, Tensor]:
    """Convert (IA)³: LyCORIS stores the factor minus 1, [features] or [1, features, 1, 1].

    A linear layer scaled at the output has [out, 1] in peft. Convolutions of a UNet have a bias and are scaled at the
    input, always.
    """
    on_input = factor.shape[0] == 1
    weight = (factor - 1).half()
    return {"weight": weight.flatten() if weight.ndim == 2 else weight, "on_input": torch.tensor(int(on_input))}


def network_metadata(method: Method) -> dict[str, Any]:
    """`ss_network_*` metadata: the network of kohya's that reads the file."""
    arguments: dict[str, str] = {}
    if method.kind is not MethodKind.LORA:
        arguments["algo"] = _ALGORITHMS[method.kind]
    if method.kind is MethodKind.DORA:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    if method.kind is MethodKind.LOKR:
        arguments["factor"] = str(method.factor or -1)
    if method.kind is MethodKind.IA3:
        size = {}
    else:
        size = {"ss_network_dim": method.rank, "ss_network_alpha": method.effective_alpha}
        if method.targets in {Targets.CONV, Targets.ALL}:
            rank, alpha = method.rank, method.effective_alpha
            if method.conv_rank is not None:
                rank, alpha = method.conv_rank, method.conv_alpha or float(method.conv_rank)
            arguments |= {"conv_dim": str(rank), "conv_alpha": str(alpha)}
    module = "networks.lora" if method.kind is MethodKind.LORA else "lycoris.kohya"
    return {
        "ss_network_module": module,
        **size,
        "ss_network_dropout": method.dropout,
        "ss_network_args": arguments,
    }


def merged_weight(weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Merge one layer of an adapter's file into a base weight, in fp32, same shape.

    Formulas of KohakuBlueleaf/LyCORIS 4.1.3: `functional/` `locon.py`, `loha.py`, `lokr.py`, `modules/ia3.py`, and
    `apply_weight_decompose` of `modules/` for DoRA, whose magnitudes are of the outputs or, in older files, of the
    inputs. A full difference is added.

    Args:
        weight: Of the base.
        tensors: By their names without `.weight`, as `starting_files.by_layer_name` groups them; `lora_A` and `lora_B`
            are peft's names of `lora_down` and `lora_up`.

    Raises:
        ValueError: It holds tensors that no formula here knows.
    """
    base = weight.float()
    t = {name: tensor.to(base) for name, tensor in tensors.items()}
    if set(t) == {"diff"}:
        return base + t["diff"].reshape(base.shape)
    if "on_input" in t:
        side = 1 if t["on_input"] else 0
        shape = [-1 if dim == side else 1 for dim in range(base.ndim)]
        return base * (1 + t["weight"].reshape(shape))
    # peft has that of convolutions as [1, out, 1, 1].
    of_inputs = "dora_scale" in t and t["dora_scale"].shape[0] == 1 < base.shape[0]
    magnitude = next((t.pop(name) for name in ("dora_scale", "lora_magnitude_vector") if name in t), None)
    merged = base + _product(t).reshape(base.shape)
    if magnitude is None:
        return merged
    others = [dim for dim in range(base.ndim) if dim != of_inputs]
    norms = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    scaled: Tensor = merged * (magnitude.reshape(norms.shape) / norms)
    return scaled


def _product(t: Mapping[str, Tensor]) -> Tensor:
    """The weight update of LoRA, LoHa or LoKr; its shape may be flattened."""
    match sorted(t.keys() - {"alpha", "lora_mid", "hada_t1", "hada_t2", "lokr_t2"}):
        case [down, up] if (down, up) in {("lora_down", "lora_up"), ("lora_A", "lora_B")}:
            left = t[up].flatten(1)
            left = left.T if "lora_mid" in t else left
            return _scale(t, len(t[down])) * _low_rank(left, t[down].flatten(1), t.get("lora_mid"))
        case ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]:
            scale = _scale(t, len(t["hada_w1_b"]))
            first = _low_rank(t["hada_w1_a"], t["hada_w1_b"], t.get("hada_t1"))
            return scale * first * _low_rank(t["hada_w2_a"], t["hada_w2_b"], t.get("hada_t2"))
        case ["lokr_w1" | "lokr_w1_a", *_rest]:
            small = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
            large = t["lokr_w2"] if "lokr_w2" in t else _low_rank(t["lokr_w2_a"], t["lokr_w2_b"], t.get("lokr_t2"))
            # Kernel pixels are the last axes of the large factor.
            return lokr_scale(t) * torch.kron(small.reshape(*small.shape, *(1,) * (large.ndim - 2)), large.contiguous())
        case others:
            raise ValueError(f"no known kind of adapter has {', '.join(others)}")


def _low_rank(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """The product of a [out, rank] and b [rank, …]; of a [rank, out] and b [rank, in] with a core between them, which
    is a Tucker decomposition (`rebuild_tucker` of LyCORIS)."""
    if core is None:
        return (a @ b.flatten(1)).reshape(len(a), *b.shape[1:])
    return torch.einsum("ij...,ip,jr->pr...", core, a, b)


def _scale(t: Mapping[str, Tensor], rank: int) -> Tensor:
    """The factor of an update; a file without alpha has that multiplied in."""
    return t["alpha"] / rank if "alpha" in t else torch.tensor(1.0)


def lokr_scale(t: Mapping[str, Tensor]) -> Tensor:
    """The factor of a LoKr's update: none where both factors are whole."""
    ranks: Iterable[Tensor] = (t[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in t)
    low_rank = next(iter(ranks), None)
    return torch.tensor(1.0) if low_rank is None else t["alpha"] / len(low_rank)


#: Prefixes of denoiser and text encoders by family. UNets: `networks/lora.py` of kohya-ss/sd-scripts. SD3: diffusers'
#: names as SimpleTuner writes them and ComfyUI reads them (`comfy/lora.py`).
_PREFIXES = {
    Family.SD1: {"unet": "lora_unet", "text_encoder": "lora_te"},
    Family.SD2: {"unet": "lora_unet", "text_encoder": "lora_te"},
    Family.SDXL: {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    Family.SD3: {"transformer": "lycoris", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}


def kohya_keys(base: LoadedBase, module: str, layers: Iterable[str]) -> dict[str, str]:
    """Map layers to their keys in a kohya or LyCORIS file, without the weight's name: `lora_unet_down_blocks_0_…`.

    `module` is `unet`, `transformer`, `text_encoder` or `text_encoder_2`, and a layer is a path in it. The UNet of
    SDXL goes by its original names there (`input_blocks_4_1_…`): `make_unet_conversion_map` of kohya-ss/sd-scripts
    `library/sdxl_model_util.py`.
    """
    names = {layer: layer for layer in layers}
    if module.startswith("text_encoder"):
        names = {layer: with_text_model(layer) for layer in names}
    elif base.family is Family.SDXL:
        state = base.denoiser.state_dict()
        names = {layer: unet_name(f"{layer}.weight", state).removesuffix(".weight") for layer in names}
    prefix = _PREFIXES[base.family][module]
    return {layer: f"{prefix}_{name.replace('.', '_')}" for layer, name in names.items()}


def with_text_model(name: str) -> str:
    """Add the prefix `text_model.` to a text encoder's layer name; all readers expect it.

    transformers >= 5.23 dropped that level of CLIPTextModel.
    """
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


#: Layers of SD 3 in the files of kohya's scripts (`networks/lora_sd3.py`), which have the original names, and those of
#: diffusers: `convert_sd3_transformer_checkpoint_to_diffusers` of its `loaders/single_file_utils.py`. Queries, keys and
#: values are one layer there.
_SD3_HEADS = {
    "context_embedder": "context_embedder",
    "x_embedder_proj": "pos_embed.proj",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
_SD3_BLOCK = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
    "context_block_adaLN_modulation_1": ("norm1_context.linear",),
}


def sd3_layers(blocks: int) -> dict[str, tuple[str, ...]]:
    """Map kohya's names of the layers of an SD 3 transformer to the paths of the one or three layers that they are."""
    names: dict[str, tuple[str, ...]] = {f"lora_unet_{theirs}": (ours,) for theirs, ours in _SD3_HEADS.items()}
    for number in range(blocks):
        for theirs, paths in _SD3_BLOCK.items():
            own = tuple(f"transformer_blocks.{number}.{path}" for path in paths)
            names[f"lora_unet_joint_blocks_{number}_{theirs}"] = own
    return names


def has_swapped_halves(path: str, blocks: int) -> bool:
    """True for a layer of SD 3 that gives shift and scale, in this order in original files, and the other way around in
    diffusers: of the last norm, and of that of the last block's context."""
    return path in {"norm_out.linear", f"transformer_blocks.{blocks - 1}.norm1_context.linear"}
