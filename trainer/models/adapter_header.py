"""Reads the header of an adapter file from elsewhere and checks it, before any of its weights are loaded.

Only `.safetensors` files: other formats can run code when they are opened. It needs no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from trainer.errors import BadSpecError
from trainer.protocol.frozen import Frozen
from trainer.protocol.sampling import AdapterFacts
from trainer.protocol.settings import MethodKind
from trainer.protocol.text import _, sanitize, size

#: Bytes of the longest header and of the largest file that are read: tags of a large dataset take some MB, and whole
#: differences of SDXL's weights 5 GB.
MAX_HEADER, MAX_BYTES = 2**24, 6 * 2**30
_MAX_TENSORS = 50_000
#: Tokens of a word: all that a chunk of a prompt has.
_MAX_VECTORS = 75
#: Bits of the numbers that weights are stored in.
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "I32": 32}
#: What ends the name of a tensor, by the kind of adapter; the first that is found is the kind.
_ENDS: Mapping[str, tuple[str, ...]] = {
    MethodKind.DORA: ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    MethodKind.LORA: ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight"),
    MethodKind.LOHA: ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    MethodKind.LOKR: ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    MethodKind.IA3: ("on_input", "weight"),
    "difference": ("diff", "diff_b", "w_norm", "b_norm"),
}
_END = "|".join(sorted(map(re.escape, {"alpha"}.union(*_ENDS.values())), key=len, reverse=True))
_KNOWN = re.compile(rf"(.+?)\.({_END})")
#: Beginnings of names in the files of kohya, LyCORIS, diffusers and peft, and the module that they are of.
_MODULES = {
    # Of SD 3: its original names.
    "lora_unet_joint_blocks_": "transformer",
    "lora_unet_context_embedder": "transformer",
    "lora_unet_x_embedder_": "transformer",
    "lora_unet_y_embedder_": "transformer",
    "lora_unet_t_embedder_": "transformer",
    "lora_unet_final_layer_": "transformer",
    "lora_te3_": "text_encoder_3",
    "lora_unet_": "unet",
    "unet.": "unet",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lycoris_": "transformer",
    "lora_transformer_": "transformer",
    "transformer.": "transformer",
}
#: Width of the captions that the attention of a UNet reads, by family.
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
#: Beginnings of `ss_base_model_version` and `modelspec.architecture`.
_VERSIONS = {
    "sd_v1": "sd1",
    "sd_v2": "sd2",
    "sdxl": "sdxl",
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-v3": "sd3",
}
FAMILY_NAMES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3"}
#: In names of layers that only models of other kinds have: Flux, and others like it.
_OTHERS = ("single_transformer_blocks", "single_blocks", "double_blocks", "diffusion_model.")


class _TensorEntry(Frozen):
    dtype: str
    shape: tuple[int, ...] = Field(max_length=5)
    data_offsets: tuple[int, int]


_entries: TypeAdapter[dict[str, _TensorEntry]] = TypeAdapter(dict[str, _TensorEntry])
_texts: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def read_adapter_header(path: Path) -> AdapterFacts:
    """Return what the header of an adapter file says.

    Raises:
        BadSpecError: It is not a whole `.safetensors` file, or no adapter that can be applied to Stable Diffusion.
    """
    entries, metadata = _read_header(path)
    if set(entries) == {"clip_l", "clip_g"} or (len(entries) == 1 and "." not in next(iter(entries))):
        return _word_facts(path, entries, metadata)
    layers: dict[str, set[str]] = {}
    for name in entries:
        found = _KNOWN.fullmatch(name)
        # A weight alone is that of a whole model, or of a part that is not known here.
        if found is None or (found[2] == "weight" and f"{found[1]}.on_input" not in entries):
            raise _refused(
                _(
                    "{file} has “{name}”, which no kind of adapter that is known here has.",
                    file=path.name,
                    name=name[:120],
                )
            )
        layers.setdefault(found[1], set()).add(found[2])
    modules = _modules_of(path, layers)
    if "text_encoder_3" in modules:
        raise BadSpecError(
            _("{file} also changes the T5 text encoder, which cannot be changed here.", file=path.name),
            _("Give a file that was trained without it."),
        )
    ends = set().union(*layers.values())
    kind = next((kind for kind, own in _ENDS.items() if ends & set(own)), None)
    if kind is None:
        raise _refused(_("{file} has no weights of an adapter.", file=path.name))
    family = _family_of(entries, modules, metadata)
    if not family:
        raise _refused(_("{file} is not for Stable Diffusion 1, 2, XL or 3.", file=path.name))
    ranked = ("lora_down.weight", "lora_A.weight", "hada_w1_b")
    return AdapterFacts(
        family=family,
        method=kind,
        ranks=tuple(sorted({e.shape[0] for name, e in entries.items() if name.endswith(ranked) and e.shape})),
        layers=len(layers),
        modules=modules,
        bytes=path.stat().st_size,
        title=_text_of(metadata, "modelspec.title", "ss_output_name"),
        trigger=_text_of(metadata, "modelspec.trigger_phrase"),
    )


def _word_facts(path: Path, entries: Mapping[str, _TensorEntry], metadata: Mapping[str, str]) -> AdapterFacts:
    """Return what the header of a word says (textual inversion): `emb_params` or its token for one text encoder,
    `clip_l` and `clip_g` for the two of SDXL.

    Raises:
        BadSpecError: It is for another model, or no word.
    """
    shapes = {name: (1, *entry.shape) if len(entry.shape) == 1 else entry.shape for name, entry in entries.items()}
    name, shape = next(iter(shapes.items()))
    vectors = shape[0] if all(len(each) == 2 and each[0] == shape[0] for each in shapes.values()) else 0
    own = _family_by_name(metadata) or ("sdxl" if len(shapes) == 2 else _WIDTHS.get(shape[-1], ""))
    if not 1 <= vectors <= _MAX_VECTORS or own not in ({"sdxl"} if len(shapes) == 2 else {"sd1", "sd2"}):
        raise _refused(_("{file} is not for Stable Diffusion 1, 2, XL or 3.", file=path.name))
    # A1111 takes the word from the file's name, diffusers from that of the tensor.
    token = path.stem if name in {"emb_params", "clip_l", "clip_g"} else name.strip("<>")
    return AdapterFacts(
        family=own,
        method=MethodKind.TEXTUAL_INVERSION,
        ranks=(),
        layers=0,
        modules=("text_encoder", "text_encoder_2")[: len(shapes)],
        bytes=path.stat().st_size,
        title=_text_of(metadata, "modelspec.title", "ss_output_name"),
        trigger=_text_of(metadata, "modelspec.trigger_phrase") or sanitize(token)[:50].strip(),
        vectors=vectors,
    )


def _read_header(path: Path) -> tuple[dict[str, _TensorEntry], dict[str, str]]:
    """Return the tensors and the metadata of a file; the tensors fill it exactly.

    Format: https://github.com/huggingface/safetensors#format.
    """
    total = path.stat().st_size
    if total > MAX_BYTES:
        raise _refused(
            _("{file} has {size}; at most {most} are read.", file=path.name, size=size(total), most=size(MAX_BYTES))
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, total - 8):
            raise _refused(_("{file} is not a .safetensors file, or a part of one.", file=path.name))
        header = file.read(length)
    try:
        content = json.loads(header)
        metadata = _texts.validate_python(content.pop("__metadata__", {}))
        entries = _entries.validate_python(content)
    except (ValueError, TypeError, AttributeError, RecursionError, ValidationError):
        raise _refused(_("The header of {file} is damaged.", file=path.name)) from None
    _check_layout(path, entries, total - 8 - length)
    return entries, metadata


def _check_layout(path: Path, entries: Mapping[str, _TensorEntry], available: int) -> None:
    """Raise BadSpecError unless the tensors fill the file one after another, each as long as its shape says."""
    if not 0 < len(entries) <= _MAX_TENSORS:
        raise _refused(_("{file} has {n} tensors.", file=path.name, n=len(entries)))
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.data_offsets):
        start, end = entry.data_offsets
        bits = _BITS.get(entry.dtype)
        if bits is None:
            raise _refused(_("The numbers of {file} are of the type {type}.", file=path.name, type=entry.dtype[:20]))
        if start != position or any(side < 0 for side in entry.shape):
            raise _refused(_("The header of {file} is damaged.", file=path.name))
        if 8 * (end - start) != bits * math.prod(entry.shape):
            raise _refused(_("The header of {file} is damaged.", file=path.name))
        position = end
    if position != available:
        raise _refused(_("{file} is cut off, or longer than its header says: copy it again.", file=path.name))


def _modules_of(path: Path, layers: Iterable[str]) -> tuple[str, ...]:
    modules: set[str] = set()
    for layer in layers:
        if any(mark in layer for mark in _OTHERS):
            raise _refused(_("{file} is not for Stable Diffusion 1, 2, XL or 3.", file=path.name))
        own = layer.removeprefix("base_model.model.")
        # peft's own files name no module: they are of the UNet.
        modules.add(next((module for start, module in _MODULES.items() if own.startswith(start)), "unet"))
    return tuple(sorted(modules))


def _family_of(entries: Mapping[str, _TensorEntry], modules: Iterable[str], metadata: Mapping[str, str]) -> str:
    """Return the family that a file is for, by its shapes, else by what it says of itself; empty: not known."""
    if "transformer" in modules:
        return "sd3"
    for name, entry in entries.items():
        if re.search(r"attn2[._]to_[kv]\.(lora_down\.weight|lora_A\.weight|hada_w1_b)$", name) and len(entry.shape) > 1:
            if (family := _WIDTHS.get(entry.shape[1])) is not None:
                return family
            break
    if "text_encoder_2" in modules:
        return "sdxl"
    return _family_by_name(metadata)


def _family_by_name(metadata: Mapping[str, str]) -> str:
    said = (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))
    return next((family for start, family in _VERSIONS.items() if any(each.startswith(start) for each in said)), "")


def _text_of(metadata: Mapping[str, Any], *names: str) -> str:
    text = next((metadata[name] for name in names if metadata.get(name)), "")
    return sanitize(text)[:60].strip()


def _refused(why: str) -> BadSpecError:
    return BadSpecError(
        why,
        _("Give a LoRA, LoHa, LoKr, DoRA or embedding for Stable Diffusion 1, 2, XL or 3 as a .safetensors file."),
    )
