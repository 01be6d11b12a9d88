"""Headers of adapter files: what they say, and files that are refused before anything of them is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import BadSpecError
from trainer.models import adapter_header
from trainer.models.adapter_header import read_adapter_header

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: str = "F16",
    tail: int = 0,
    **changes: Mapping[str, Any],
) -> Path:
    """Write a file with these tensors, all zero; `tail` bytes are cut off (or added), `changes` spoil entries."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, shape in shapes.items():
        size = _BYTES.get(dtype, 1)
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    for name, change in changes.items():
        header[name].update(change)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position + tail))
    return path


def lora(width: int = 768, layer: str = _LAYER, rank: int = 8) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lora_down.weight": (rank, width), f"{layer}.lora_up.weight": (320, rank), f"{layer}.alpha": ()}


def test_the_header_of_a_lora_of_kohya(tmp_path: Path) -> None:
    shapes = lora() | lora(768, "lora_te_text_model_encoder_layers_0_self_attn_q_proj")
    metadata = {"ss_output_name": "momo\n", "modelspec.trigger_phrase": "momo dog"}

    facts = read_adapter_header(write(tmp_path / "a.safetensors", shapes, metadata))

    assert (facts.family, facts.method, facts.ranks, facts.layers) == ("sd1", "lora", (8,), 2)
    assert facts.modules == ("text_encoder", "unet")
    assert (facts.title, facts.trigger) == ("momo", "momo dog")
    assert facts.bytes == (tmp_path / "a.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("shapes", "metadata", "family", "kind"),
    [
        (lora(1024), {}, "sd2", "lora"),
        (lora(2048), {}, "sdxl", "lora"),
        # Its shapes count more than what it says of itself.
        (lora(2048), {"ss_base_model_version": "sd_v1"}, "sdxl", "lora"),
        (lora(128), {"ss_base_model_version": "sd_v1"}, "sd1", "lora"),
        (
            lora(640, "lora_unet_x_attn1_to_q"),
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
            "sdxl",
            "lora",
        ),
        (lora(640, "lora_te2_text_model_encoder_layers_0_mlp_fc1"), {}, "sdxl", "lora"),
        (lora() | {f"{_LAYER}.dora_scale": (320, 1)}, {}, "sd1", "dora"),
        (
            {f"unet.down.attn2.to_k.lora_{end}.weight": shape for end, shape in (("A", (4, 768)), ("B", (320, 4)))},
            {},
            "sd1",
            "lora",
        ),
        (
            {f"transformer.blocks.0.attn.to_k.lora_{end}.weight": (4, 4) for end in "AB"},
            {},
            "sd3",
            "lora",
        ),
        (
            {
                f"{_LAYER}.hada_{name}": (8, 768) if name.endswith("b") else (320, 8)
                for name in ("w1_a", "w1_b", "w2_a", "w2_b")
            },
            {},
            "sd1",
            "loha",
        ),
        (
            {f"{_LAYER}.lokr_w1": (4, 4), f"{_LAYER}.lokr_w2": (80, 192)},
            {"ss_base_model_version": "sd_v1"},
            "sd1",
            "lokr",
        ),
        ({f"{_LAYER}.weight": (320,), f"{_LAYER}.on_input": ()}, {"ss_base_model_version": "sd_v1"}, "sd1", "ia3"),
        ({f"{_LAYER}.diff": (320, 768)}, {"ss_base_model_version": "sd_v1"}, "sd1", "difference"),
    ],
)
def test_family_and_kind_are_recognized(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], family: str, kind: str
) -> None:
    facts = read_adapter_header(write(tmp_path / "a.safetensors", shapes, metadata))
    assert (facts.family, facts.method) == (family, kind)


@pytest.mark.parametrize(
    ("shapes", "metadata", "family", "vectors", "trigger"),
    [
        ({"emb_params": (2, 768)}, {}, "sd1", 2, "momo"),
        ({"emb_params": (1, 1024)}, {"modelspec.trigger_phrase": "zkz"}, "sd2", 1, "zkz"),
        ({"<cat-toy>": (768,)}, {}, "sd1", 1, "cat-toy"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, {}, "sdxl", 4, "momo"),
    ],
)
def test_a_word_has_the_name_by_which_prompts_call_it(
    tmp_path: Path,
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    family: str,
    vectors: int,
    trigger: str,
) -> None:
    facts = read_adapter_header(write(tmp_path / "momo.safetensors", shapes, metadata))
    assert (facts.family, facts.method, facts.vectors, facts.trigger) == (family, "textual_inversion", vectors, trigger)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a .safetensors file"),
        (b"PK\x03\x04 a zip that torch.load would unpickle", "is not a .safetensors file"),
        (struct.pack("<Q", 2**40) + b"{}", "is not a .safetensors file"),
        (struct.pack("<Q", 9) + b"{not json", "header of .* is damaged"),
        (struct.pack("<Q", 2) + b"[]", "header of .* is damaged"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "header of .* is damaged"),
        (struct.pack("<Q", 26) + b'{"__metadata__": {"a": 1}}', "header of .* is damaged"),
        (struct.pack("<Q", 2) + b"{}", "has 0 tensors"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadSpecError, match=sentence):
        read_adapter_header(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tail": -1}, "is cut off"),
        ({"tail": 1}, "is cut off, or longer"),
        ({"dtype": "F4"}, "of the type F4"),
        ({f"{_LAYER}.alpha": {"data_offsets": [0, 2]}}, "header of .* is damaged"),
        ({f"{_LAYER}.alpha": {"shape": [2]}}, "header of .* is damaged"),
        ({f"{_LAYER}.alpha": {"shape": [-1]}}, "header of .* is damaged"),
        ({f"{_LAYER}.alpha": {"shape": [1] * 9}}, "header of .* is damaged"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, options: Any, sentence: str) -> None:
    with pytest.raises(BadSpecError, match=sentence):
        read_adapter_header(write(tmp_path / "a.safetensors", lora(), **options))


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "which no kind of adapter"),
        ({"emb_params": (2, 640)}, "is not for Stable Diffusion"),
        ({"emb_params": (76, 768)}, "is not for Stable Diffusion"),
        ({"clip_l": (2, 768), "clip_g": (3, 1280)}, "is not for Stable Diffusion"),
        ({"<cat-toy>": (2, 2048)}, "is not for Stable Diffusion"),
        ({f"{_LAYER}.alpha": ()}, "has no weights of an adapter"),
        (lora(3072, "lora_unet_double_blocks_0_img_attn_qkv"), "is not for Stable Diffusion"),
        (lora(3072, "transformer.single_transformer_blocks.0.attn.to_q"), "is not for Stable Diffusion"),
        (lora(640, "lora_unet_x_attn1_to_q"), "is not for Stable Diffusion"),
        ({**lora(), f"{_LAYER}.oft_blocks": (8, 8, 8)}, "oft_blocks”, which no kind"),
        ({**lora(), **lora(64, "lora_te3_encoder_block_0_layer_0_SelfAttention_q")}, "also changes the T5"),
    ],
)
def test_what_is_no_adapter_for_stable_diffusion_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], sentence: str
) -> None:
    with pytest.raises(BadSpecError, match=sentence):
        read_adapter_header(write(tmp_path / "a.safetensors", shapes))


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_header, "MAX_BYTES", 100)
    path = write(tmp_path / "a.safetensors", lora())
    with pytest.raises(BadSpecError, match=r"has .*; at most .* are read"):
        read_adapter_header(path)
