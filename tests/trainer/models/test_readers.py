"""The table of readers against what they do: their key maps and formulas, in a few lines each, and LyCORIS itself.

Sources: `network*.py` of AUTOMATIC1111/stable-diffusion-webui `extensions-builtin/Lora`; comfy/lora.py and
comfy/weight_adapter/ of comfyanonymous/ComfyUI; backend/patcher/lora.py of lllyasviel/stable-diffusion-webui-forge;
src/model/adapter/lora.hpp and src/name_conversion.cpp of leejet/stable-diffusion.cpp (97d2990, August 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lycoris.modules import get_module, make_module
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.models.random_adapters import (
    FAMILIES_AND_KINDS,
    OTHER_KINDS_ON_SD2,
    ExportedAdapter,
    Exports,
    Load,
    export_adapter,
    method_of,
)
from trainer.models.families.model import Family, LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.checkpoint_file import unet_name
from trainer.models.methods.kohya import kohya_keys, with_text_model
from trainer.models.methods.readers import readers_of
from trainer.models.methods.trained import ExportedFile
from trainer.protocol.events import ExportFormat, Reader
from trainer.protocol.settings import MethodKind

#: Of the largest change of a weight; fp16 rounds by 0.05 to 0.13 %.
EXACT = 0.005

Tensors = Mapping[str, Tensor]


class NotReadError(Exception):
    """The reader has no such adapter or layer."""


def comfyui(weight: Tensor, t: Tensors) -> Tensor:
    """Also Forge's: `load_lora` and `calculate_weight`; neither knows (IA)³."""
    if "diff" in t:
        return weight + t["diff"]
    if "dora_scale" not in t:
        return weight + product(weight, t)
    # On outputs the length is that of the base's weight.
    lengths = weight.reshape(len(weight), -1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    merged: Tensor = (weight + product(weight, t)) * (t["dora_scale"] / lengths)
    return merged


def a1111(weight: Tensor, t: Tensors) -> Tensor:
    """`calc_updown` of each network module, and `finalize_updown`."""
    if "diff" in t:
        return weight + t["diff"]
    if "on_input" in t:
        return weight + weight * (t["weight"] if t["on_input"] else t["weight"].reshape(-1, 1))
    merged = weight + product(weight, t)
    if "dora_scale" not in t:
        return merged
    # The lengths of inputs, whatever the scale is of.
    columns = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
    scaled: Tensor = merged * (
        t["dora_scale"] / columns.reshape(merged.shape[1], *[1] * (merged.ndim - 1)).transpose(0, 1)
    )
    return scaled


def product(weight: Tensor, t: Tensors) -> Tensor:
    """What LoRA, LoHa and LoKr add; both programs agree."""
    if "lora_up.weight" in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"].flatten(1)
        return (up @ down).reshape(weight.shape) * (t["alpha"] / len(down))
    if "hada_w1_a" in t:
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return change.reshape(weight.shape) * (t["alpha"] / len(t["hada_w1_b"]))
    if "lokr_w1" not in t:
        raise NotReadError
    large, scale = t.get("lokr_w2"), torch.tensor(1.0)
    if large is None:
        large, scale = t["lokr_w2_a"] @ t["lokr_w2_b"].flatten(1), t["alpha"] / len(t["lokr_w2_b"])
    return torch.kron(t["lokr_w1"], large.flatten(1)).reshape(weight.shape) * scale


def sd_cpp(weight: Tensor, t: Tensors) -> Tensor:
    """`get_weight_diff`; it knows neither (IA)³ nor the scale of DoRA."""
    if "diff" in t:
        return weight + t["diff"]
    if "lokr_w2" not in t or t["lokr_w2"].ndim == 2:
        down = t.get("lora_down.weight", t.get("hada_w1_b"))
        # `ne[ggml_n_dims(lora_down) - 1]`: sides of 1 at the end, which are the first ones here, are no dimensions.
        off = 1.0 if down is None else len(down) / next((side for side in down.shape if side != 1), 1)
        return weight + product(weight, t) * off
    # `ggml_ext_kronecker` pairs the first sides of both factors, in ggml's order: the last ones here.
    return weight + torch.kron(t["lokr_w1"][None, None], t["lokr_w2"]).reshape(weight.shape)


def dotted(key: str) -> str:
    """`convert_sep_to_dot`: all underscores but those within these words are dots."""
    return re.sub("_", ".", re.sub("|".join(WORDS), lambda found: found[0].replace("_", "\0"), key)).replace("\0", "_")


#: Of the protected tokens those that occur in Stable Diffusion; longer ones first.
WORDS = [
    "self_attn",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "to_k",
    "to_q",
    "to_v",
    "to_out",
    "text_model",
    "down_blocks",
    "mid_block",
    "up_block",
    "proj_in",
    "proj_out",
    "transformer_blocks",
    "conv_in",
    "conv_out",
    "time_emb_proj",
    "conv_shortcut",
    "time_embedding",
    "conv_norm_out",
    "input_blocks",
    "output_blocks",
    "middle_block",
    "skip_connection",
    "emb_layers",
    "in_layers",
    "out_layers",
]


def lycoris(layer: nn.Module, key: str, tensors: Tensors) -> Tensor:
    """LyCORIS's own loader and merge, on a copy of the layer."""
    own = deepcopy(layer)
    kind, parameters = get_module({f"{key}.{name}": tensor for name, tensor in tensors.items()}, key)
    if kind is None:
        raise NotReadError
    make_module(kind, parameters, key, own).merge_to(1)
    return own.get_parameter("weight").detach()


#: Keys that each program maps to a layer of a family. UNets: `lora_unet_`; SD 3: `model_lora_keys_unet` of ComfyUI has
#: `lycoris_`, Forge has that part commented out, A1111 splits at the last two dots and finds no module.
_UNET_KEYS = r"lora_(unet|te|te1|te2)_\w+"
_CPP_KEYS = {Family.SD2: r"lora_unet_\w+", Family.SD3: r"lycoris_\w+"} | dict.fromkeys(
    (Family.SD1, Family.SDXL), _UNET_KEYS
)
KEYS: dict[Reader, Callable[[Family], str]] = {
    Reader.A1111: lambda family: r"(?!)" if family is Family.SD3 else _UNET_KEYS,
    Reader.FORGE: lambda family: r"lora_(te1|te2)_\w+" if family is Family.SD3 else _UNET_KEYS,
    Reader.SD_CPP: lambda family: _CPP_KEYS[family],
    Reader.COMFYUI: lambda family: r"(lycoris|lora_te1|lora_te2)_\w+" if family is Family.SD3 else _UNET_KEYS,
    # `LORA_PREFIX_UNET` and `LORA_PREFIX_TEXT_ENCODER` of lycoris/kohya.py.
    Reader.LYCORIS: lambda family: r"lora_(te1|te2)_\w+" if family is Family.SD3 else _UNET_KEYS,
}


def merge(reader: Reader, layer: nn.Module, key: str, tensors: Tensors) -> Tensor:
    if reader is Reader.LYCORIS:
        return lycoris(layer, key, tensors)
    formula = {Reader.A1111: a1111, Reader.SD_CPP: sd_cpp}.get(reader, comfyui)
    return formula(layer.get_parameter("weight").detach(), {name: tensor.float() for name, tensor in tensors.items()})


def error_of(reader: Reader, file: ExportedFile, base: LoadedBase, expected: Mapping[str, Tensor]) -> float:
    """Largest difference of a weight as `reader` has it, as a share of the layer's largest change."""
    layers, by_key = keyed_layers(base), group(load_file(file.path))
    if not all(re.fullmatch(KEYS[reader](base.family), key) for key in by_key):
        raise NotReadError
    worst = 0.0
    for key, tensors in by_key.items():
        weight = layers[key].get_parameter("weight").detach()
        change = (expected[key] - weight).abs().max()
        assert change > 1e-4, key
        worst = max(worst, float((merge(reader, layers[key], key, tensors) - expected[key]).abs().max() / change))
    return worst


def group(state: Tensors) -> dict[str, dict[str, Tensor]]:
    by_key: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        key, _, own = name.partition(".")
        by_key.setdefault(key, {})[own] = tensor
    return by_key


def keyed_layers(base: LoadedBase) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name in (base.denoiser_name, *base.clip_encoders):
        layers = {path: m for path, m in base.module(name).named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        found |= {key: layers[path] for path, key in kohya_keys(base, name, layers).items()}
    return found


@pytest.mark.parametrize(("family", "kind"), [*FAMILIES_AND_KINDS, *OTHER_KINDS_ON_SD2])
def test_a_reader_is_named_if_and_only_if_it_reads_the_file_exactly(
    load: Load, exported: Exports, family: str, kind: MethodKind
) -> None:
    check_readers(load(family), exported(family, kind))


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.LOHA])
def test_the_readers_of_a_file_of_rank_1(load: Load, kind: MethodKind, tmp_path: Path) -> None:
    check_readers(load("sd1"), export_adapter(load, "sd1", method_of(kind, rank=1, alpha=1.0), tmp_path))


def check_readers(fresh: LoadedBase, adapter: ExportedAdapter) -> None:
    files, expected = adapter.files, adapter.merged
    found: dict[ExportFormat, dict[Reader, float]] = {}
    for file in files:
        if file.format is ExportFormat.DIFFUSERS:
            continue
        # The file holds the layers that were trained, all of them.
        assert group(load_file(file.path)).keys() == expected.keys()
        for reader in KEYS:
            try:
                found.setdefault(file.format, {})[reader] = error_of(reader, file, fresh, expected)
            # LyCORIS 4.1.3 fails on (IA)³: `make_module_from_state_dict` is given on_input too.
            except (NotReadError, TypeError):
                continue

    for file_format, errors in found.items():
        exact = {reader for reader, error in errors.items() if error < EXACT}
        named = {reader for file in files if file.format is file_format for reader in file.readers} & KEYS.keys()
        assert named == exact, (file_format, errors)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_stable_diffusion_cpp_finds_the_layer_of_each_key(load: Load, family: str) -> None:
    """Its names of layers are the original ones for SDXL, and diffusers', which it converts, for the others."""
    base = load(family)
    state = base.denoiser.state_dict()
    trained = attach_adapter(base, method_of(MethodKind.LORA), lambda: load(family))
    for module, attached in trained.modules.items():
        layers = [path for path, each in attached.named_modules() if isinstance(each, BaseTunerLayer)]
        for layer, key in kohya_keys(base, module, layers).items():
            name = layer
            if module != base.denoiser_name:
                name = with_text_model(layer)
            elif base.family is Family.SDXL:
                name = unet_name(f"{layer}.weight", state).removesuffix(".weight")
            assert dotted(key.split("_", 2)[2]) == name


def test_the_documentation_names_the_readers_of_the_table() -> None:
    lines = (Path(__file__).parents[3] / "docs/methods.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| kind | file | SD 1, 2, XL | SD 3 |") + 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : lines.index("", start)]]
    documented = {}
    for kinds, file, *cells in rows:
        for kind in re.findall(r"`(\w+)`", kinds):
            documented[kind, file] = [names.split(", ") if names != "–" else [] for names in cells]

    names = {
        ExportFormat.KOHYA: "`<name>.safetensors`",
        ExportFormat.DIFFERENCE: "`<name>-diff.safetensors`",
        ExportFormat.EMBEDDING: "`<word>.safetensors`",
        ExportFormat.CHECKPOINT: "`<name>.safetensors`",
        ExportFormat.DIFFUSERS: "`diffusers/`",
    }
    written = {}
    for file_format, name in names.items():
        for kind in MethodKind:
            readers = {family: readers_of(file_format, kind, family) for family in Family}
            assert readers[Family.SD1] == readers[Family.SDXL]
            # The page says once that stable-diffusion.cpp does not read SD 2's.
            assert readers[Family.SD2] == tuple(each for each in readers[Family.SD1] if each is not Reader.SD_CPP)
            if any(readers.values()):
                written[kind.value, name] = [list(readers[Family.SD1]), list(readers[Family.SD3])]
    assert documented == written
