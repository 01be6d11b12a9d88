"""Reads the weights that a training starts from: exported files of any format that is written here, and others' of the
same kinds.

`read_start` puts a file or a folder into one set of tensors; `adapter_weights` fits them to a job, once its base is
loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import CheckpointError, first_line
from trainer.models.families.model import LoadedBase
from trainer.models.methods.adapter_files import LORA_FILE, PEFT_PREFIX
from trainer.models.methods.kohya import by_layer, kohya_keys, lokr_scale, with_text_model
from trainer.models.methods.layers import scale_of
from trainer.models.methods.trained import Weights
from trainer.protocol.settings import Method, MethodKind
from trainer.protocol.text import _

#: The tensor of each kind whose rows are the rank, by the end of its name in any file.
_RANKED = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b")
#: The same in peft's files, by the names of its weights.
_RANK_ROWS = ("lora_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
#: Ends of names by which a kind is recognized; the first that is found counts.
_KINDS = {
    ".dora_scale": MethodKind.DORA,
    "lora_magnitude_vector": MethodKind.DORA,
    ".lora_down.weight": MethodKind.LORA,
    ".lora_A.weight": MethodKind.LORA,
    ".hada_w1_a": MethodKind.LOHA,
    ".lokr_w1": MethodKind.LOKR,
    ".lokr_w1_a": MethodKind.LOKR,
    ".on_input": MethodKind.IA3,
    ".ia3_l": MethodKind.IA3,
    ".oft_R.weight": MethodKind.OFT,
}
#: Tensors that are the weight of a module of their own: `….lora_up.weight`.
_NAMED_WEIGHT = {"lora_down", "lora_mid", "lora_up", "lora_A", "lora_B", "oft_R"}
_PEFT_WEIGHTS = "adapter_model.safetensors"
_METADATA = "lora_adapter_metadata"


def read_start(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, or an exported folder (`diffusers/`, or peft's), by the names in it.

    Names in files for diffusers and peft are `unet.<layer>.<weight>`; the alphas of their metadata become tensors
    `unet.<layer>.alpha`.

    Raises:
        CheckpointError: There is no such file, or it cannot be read.
    """
    try:
        if path.is_file() and path.suffix == ".safetensors":
            return _read_file(path)
        if (path / LORA_FILE).is_file():
            return _read_file(path / LORA_FILE)
        if folders := sorted(each.parent for each in path.glob(f"*/{_PEFT_WEIGHTS}")):
            return {name: tensor for folder in folders for name, tensor in _read_peft(folder)}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            _("{path} cannot be read ({error}).", path=path, error=first_line(error)), _("Copy or download it again.")
        ) from error
    raise CheckpointError(
        _("Training cannot start from {path}.", path=path),
        _("Give a .safetensors file, the exported folder diffusers/, or the folder of a finished job."),
    )


def kind_of(tensors: Mapping[str, Tensor]) -> MethodKind | None:
    """Return the kind of adapter in a file; None if it has none that is known."""
    return next((kind for end, kind in _KINDS.items() if any(name.endswith(end) for name in tensors)), None)


def ranks_of(tensors: Mapping[str, Tensor]) -> set[int]:
    """Return the ranks of the layers of a LoRA, DoRA or LoHa."""
    return {len(tensor) for name, tensor in tensors.items() if name.endswith(_RANKED)}


def adapter_weights(base: LoadedBase, method: Method, untrained: Weights, tensors: Mapping[str, Tensor]) -> Weights:
    """Convert the tensors of a file to the weights of a job's adapter, of the same effect.

    Args:
        untrained: The adapter's own weights, which stay where the file has none.

    Raises:
        CheckpointError: The file has other layers, another kind or another rank.
    """
    left = by_layer_name(tensors)
    weights: dict[str, dict[str, Tensor]] = {}
    for module, mine in untrained.items():
        layers = by_layer(mine)
        keys = kohya_keys(base, module, layers)
        weights[module] = dict(mine)
        for layer in layers:
            dotted = with_text_model(layer) if module.startswith("text_encoder") else layer
            names = (keys[layer], f"{module}.{layer}", f"{module}.{dotted}")
            given = next((left.pop(name) for name in names if name in left), None)
            if given is None:
                continue
            own = {name: t for name, t in mine.items() if name.startswith(f"{layer}.")}
            scale = scale_of(method, f"{module}.{layer}", base.module(module).get_submodule(layer))
            found = {f"{layer}.{name}": tensor for name, tensor in _peft_tensors(given, scale).items()}
            for name in sorted(own.keys() | found.keys()):
                if name not in own or name not in found:
                    raise _shape_mismatch(f"{module}.{layer}", None, None)
                tensor, expected = found[name], own[name]
                if expected.numel() != tensor.numel():
                    raise _shape_mismatch(f"{module}.{layer}", tensor, expected)
                weights[module][name] = tensor.reshape(expected.shape).to(expected.dtype).contiguous()
    if left:
        raise CheckpointError(
            _(
                "The file to start from changes {n} layers that this job does not train, such as {layer}.",
                n=len(left),
                layer=next(iter(left)),
            ),
            _(
                "Choose the base, method.targets (all has the most) and method.text_encoder that the file was trained "
                "with."
            ),
        )
    return weights


def by_layer_name(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group the tensors of a file by layer: kohya's names have one dot before the weight's, dotted names have many."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        own = name.removesuffix(".weight")
        is_weight = own != name and own.rpartition(".")[2] in _NAMED_WEIGHT
        layer, _dot, weight = (own if is_weight or own.endswith("lora_magnitude_vector") else name).rpartition(".")
        layers.setdefault(layer, {})[weight] = tensor
    return layers


def _peft_tensors(t: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Convert one layer to peft's names and to a job's own scale of the update, in fp32."""
    t = {name: tensor.float() for name, tensor in t.items()}
    if "on_input" in t:
        return {"ia3_l": 1 + t["weight"]}
    if "lora_down" in t or "lora_A" in t:
        down, up = t.get("lora_down", t.get("lora_A")), t.get("lora_up", t.get("lora_B"))
        assert down is not None
        assert up is not None
        if "lora_mid" in t:
            # The core of a Tucker decomposition, put into A.
            down = torch.einsum("ij...,jr->ir...", t["lora_mid"], down.flatten(1))
        found = {"lora_A.weight": down, "lora_B.weight": up * (_alpha(t, len(down)) / len(down) / scale)}
        magnitude = t.get("dora_scale", t.get("lora_magnitude_vector"))
        return found if magnitude is None else {**found, "lora_magnitude_vector": magnitude}
    own = {name: tensor for name, tensor in t.items() if name != "alpha"}
    if "hada_w1_b" in t:
        rank = len(t["hada_w1_b"])
        return {**own, "hada_w1_a": t["hada_w1_a"] * (_alpha(t, rank) / rank / scale)}
    first = next((name for name in ("lokr_w1", "lokr_w1_a") if name in t), None)
    if first is not None:
        return {**own, first: t[first] * (float(lokr_scale(t)) / scale)}
    return {f"{name}.weight" if name == "oft_R" else name: tensor for name, tensor in own.items()}


def _alpha(t: Mapping[str, Tensor], rank: int) -> float:
    return float(t["alpha"]) if "alpha" in t else float(rank)


def _shape_mismatch(layer: str, given: Tensor | None, expected: Tensor | None) -> CheckpointError:
    if given is None or expected is None:
        return CheckpointError(
            _("The file to start from is of another kind than this job (at {layer}).", layer=layer),
            _("Set method.kind to that of the file."),
        )
    return CheckpointError(
        _(
            "The file to start from does not fit this job: {layer} is {given} there and {expected} here.",
            layer=layer,
            given=" x ".join(map(str, given.shape)),
            expected=" x ".join(map(str, expected.shape)),
        ),
        _("Set method.rank (and conv_rank, block_ranks, factor, block_size) to what it was trained with."),
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header: Mapping[str, str] = file.metadata() or {}
    if _METADATA in header:
        metadata: dict[str, Any] = json.loads(header[_METADATA])
        for layer, own in by_layer_name(tensors).items():
            module = layer.partition(".")[0]
            config = {name.partition(".")[2]: v for name, v in metadata.items() if name.startswith(f"{module}.")}
            if "lora_A" in own and "lora_alpha" in config:
                tensors[f"{layer}.alpha"] = _alpha_tensor(config, "lora_alpha", layer, len(own["lora_A"]))
    return tensors


def _read_peft(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one of peft's folders, and their alphas."""
    config = PeftConfig.from_pretrained(str(folder)).to_dict()
    tensors = load_file(folder / _PEFT_WEIGHTS)
    tensors = {f"{folder.name}.{name.removeprefix(PEFT_PREFIX)}": tensor for name, tensor in tensors.items()}
    key = "lora_alpha" if "lora_alpha" in config else "alpha"
    if config.get(key) is not None:
        for layer, own in by_layer_name(tensors).items():
            if rank := next((len(own[name]) for name in _RANK_ROWS if name in own), 0):
                yield f"{layer}.alpha", _alpha_tensor(config, key, layer, rank)
            else:
                # A LoKr of two whole factors: peft scales it, other files have the scale multiplied in.
                patterns = config.get("rank_pattern") or {}
                rank = patterns.get(get_pattern_key(list(patterns), layer.partition(".")[2]), config["r"])
                tensors[f"{layer}.lokr_w1"] = own["lokr_w1"] * (_alpha_tensor(config, key, layer, rank) / rank)
    yield from tensors.items()


def _alpha_tensor(config: Mapping[str, Any], key: str, layer: str, rank: int) -> Tensor:
    """Return the alpha by which other readers scale, alpha / rank, from a config of peft."""
    patterns = config.get("alpha_pattern") or {}
    name = layer.partition(".")[2]
    alpha = float(patterns.get(get_pattern_key(list(patterns), name), config[key]))
    return torch.tensor(alpha * rank**0.5 if config.get("use_rslora") else alpha)
