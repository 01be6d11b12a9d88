"""Exported adapters: tensor names, metadata, and the same effect after loading them back.

`slow_lycoris` is an independent reference implementation of KohakuBlueleaf/LyCORIS 4.1.3 (`functional/locon.py`,
`loha.py`, `lokr.py`, `general.py: weight_decompose`, `modules/ia3.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.models.random_adapters import (
    FAMILIES_AND_KINDS,
    KINDS,
    Exports,
    Load,
    export_adapter,
    method_of,
    predict,
    train_a_little,
)
from trainer.errors import ExportError
from trainer.models.base import LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.checkpoint_file import tensor_hashes, write_single_file
from trainer.models.methods.kohya import kohya_keys, kohya_state, network_metadata
from trainer.models.methods.loading_back import load_back
from trainer.models.methods.readers import readers_of
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.events import ExportFormat, Reader
from trainer.protocol.settings import Method, MethodKind

KOHYA_KINDS = [kind for kind in KINDS if kind is not MethodKind.OFT]


def trained_on(base: LoadedBase, method: Method) -> Trained:
    trained = attach_adapter(base, method)
    train_a_little(trained)
    return trained


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_each_exported_file_has_the_trained_effect_on_a_fresh_base(
    load: Load, exported: Exports, family: str, kind: MethodKind
) -> None:
    adapter, fresh = exported(family, kind), load(family)

    # Every file that a program reads, and no other.
    assert [file.format for file in adapter.files] == [f for f in ExportFormat if readers_of(f, kind, adapter.family)]
    assert Reader.COMFYUI in {reader for file in adapter.files for reader in file.readers}
    for file in adapter.files:
        with load_back(file, fresh):
            difference = float((predict(fresh) - adapter.after).abs().max())
        assert difference < (1e-5 if file.format is ExportFormat.DIFFUSERS else 0.02 * adapter.effect), file
        assert torch.equal(predict(fresh), adapter.before), f"{file} changed the base"


#: Ranks of their own for convolutions and blocks, none for the middle.
SIZES: dict[str, Any] = {
    "conv_rank": 2,
    "conv_alpha": 3.0,
    "block_ranks": [
        {"blocks": "up_blocks.0", "rank": 6, "alpha": 9.0},
        {"blocks": "mid_block", "rank": 0},
        {"blocks": "text_encoder", "rank": 3},
    ],
}


@pytest.mark.parametrize("kind", KOHYA_KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4},
        # LoKr factorizes its second matrix at rank 4, and not at 64.
        pytest.param({"rank": 64}, marks=pytest.mark.slow),
        {"rank": 4, **SIZES, "rank_stabilized": True},
    ],
    ids=["rank 4", "rank 64", "ranks of their own"],
)
def test_a_kohya_file_describes_the_weights_that_peft_merges(
    load: Load, kind: MethodKind, settings: dict[str, Any]
) -> None:
    base = load("sd1")
    method = method_of(kind, **settings)
    trained = trained_on(base, method)
    state = {name: tensor.double() for name, tensor in kohya_state(base, method, trained.state()).items()}

    compared = 0
    for module_name, module in trained.modules.items():
        layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
        keys = kohya_keys(base, module_name, layers)
        for path, layer in layers.items():
            weight = layer.get_base_layer().weight.detach().clone()
            prefix = f"{keys[path]}."
            tensors = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            expected = slow_lycoris(weight.double(), tensors)
            layer.merge()
            merged = layer.get_base_layer().weight.detach()
            change = (merged - weight).abs().max()
            assert change > 1e-3
            assert (expected - merged).abs().max() < 0.005 * change, path
            compared += 1
    assert compared > 20


def slow_lycoris(weight: Tensor, t: dict[str, Tensor]) -> Tensor:
    """Return a weight merged with a layer of a LyCORIS file, computed with plain loops."""
    out, width = weight.shape[0], weight.shape[1]
    if "on_input" in t:
        scaled, factors = weight.clone(), t["weight"].flatten()
        if t["on_input"]:
            for index in range(width):
                scaled[:, index] = weight[:, index] * (1 + factors[index])
        else:
            for index in range(out):
                scaled[index] = weight[index] * (1 + factors[index])
        return scaled
    rows = weight.reshape(out, -1)
    merged = rows + slow_change(rows.shape, t)
    if "dora_scale" in t:
        assert t["dora_scale"].shape == (out, *(1,) * (weight.ndim - 1))
        for index in range(out):
            length = merged[index].pow(2).sum().sqrt()
            merged[index] = merged[index] / length * t["dora_scale"].flatten()[index]
    return merged.reshape(weight.shape)


def slow_change(shape: torch.Size, t: dict[str, Tensor]) -> Tensor:
    change = torch.zeros(shape, dtype=torch.float64)
    if "lora_up.weight" in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"].flatten(1)
        for index in range(len(down)):
            change += torch.outer(up[:, index], down[index]) * t["alpha"] / len(down)
        return change
    if "hada_w1_a" in t:
        rank = len(t["hada_w1_b"])
        first, second = torch.zeros_like(change), torch.zeros_like(change)
        for index in range(rank):
            first += torch.outer(t["hada_w1_a"][:, index], t["hada_w1_b"][index])
            second += torch.outer(t["hada_w2_a"][:, index], t["hada_w2_b"][index])
        return first * second * t["alpha"] / rank
    # LyCORIS scales only low-rank factors.
    scale = float(t["alpha"]) / len(t["lokr_w2_b"]) if "lokr_w2_b" in t else 1.0
    small = t["lokr_w1"]
    large = t["lokr_w2"].flatten(1) if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    height, width = large.shape
    for row in range(small.shape[0]):
        for column in range(small.shape[1]):
            block = change[row * height : (row + 1) * height, column * width : (column + 1) * width]
            block += scale * small[row, column] * large
    return change


def keys_of(base: LoadedBase, **settings: Any) -> dict[str, tuple[int, ...]]:
    kind = settings.pop("kind", MethodKind.LORA)
    method = method_of(kind, **settings)
    state = kohya_state(base, method, trained_on(base, method).state())
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_kohya_names_follow_sd_scripts(load: Load) -> None:
    shapes = keys_of(load("sd1"))

    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert shapes[f"{attention}.lora_down.weight"] == (4, 16)
    assert shapes[f"{attention}.lora_up.weight"] == (16, 4)
    assert shapes[f"{attention}.alpha"] == ()
    assert shapes[f"{text}.lora_down.weight"] == (4, 32)
    assert shapes["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"] == (4, 16, 3, 3)
    assert shapes["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"] == (16, 4, 1, 1)


@pytest.mark.slow
def test_kohya_names_of_sdxl_follow_the_original_layout(load: Load) -> None:
    """The names are those of LoRAs that kohya's trainer made for the real SDXL, with two layers per block."""
    from diffusers import UNet2DConditionModel

    base = load("sdxl")
    with torch.device("meta"):
        real = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            layers_per_block=2,
        )
    base.architecture.__dict__["unet"] = real
    expected = {
        "conv_in": "input_blocks_0_0",
        "time_embedding.linear_1": "time_embed_0",
        "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
        "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0": (
            "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0"
        ),
        "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (
            "middle_block_1_transformer_blocks_0_ff_net_0_proj"
        ),
        "up_blocks.0.attentions.2.proj_out": "output_blocks_2_1_proj_out",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
        "conv_out": "out_2",
    }

    keys = kohya_keys(base, "unet", expected)

    assert keys == {layer: f"lora_unet_{name}" for layer, name in expected.items()}
    assert all(layer in dict(real.named_modules()) for layer in expected)
    texts = kohya_keys(base, "text_encoder_2", ["text_model.encoder.layers.0.self_attn.q_proj"])
    assert list(texts.values()) == ["lora_te2_text_model_encoder_layers_0_self_attn_q_proj"]


def test_kohya_names_of_sd3_follow_comfyui(load: Load) -> None:
    names = keys_of(load("sd3"), kind=MethodKind.LOHA)

    assert "lycoris_transformer_blocks_0_attn_add_q_proj.hada_w1_a" in names
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.hada_w1_a" in names


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.DORA, MethodKind.LOHA])
def test_layers_have_the_ranks_of_their_blocks_and_convolutions(load: Load, kind: MethodKind) -> None:
    shapes = keys_of(load("sd1"), kind=kind, **SIZES)

    def rank(key: str) -> int:
        return shapes[f"{key}.{'hada_w1_b' if kind is MethodKind.LOHA else 'lora_down.weight'}"][0]

    assert rank("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q") == 4
    assert rank("lora_unet_down_blocks_0_resnets_0_conv1") == 2
    assert rank("lora_unet_up_blocks_0_resnets_0_conv1") == 6
    assert rank("lora_te_text_model_encoder_layers_0_self_attn_q_proj") == 3
    assert not any("mid_block" in key for key in shapes)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.LOHA])
def test_files_with_ranks_of_their_own_have_the_trained_effect_on_a_fresh_base(
    load: Load, family: str, kind: MethodKind, tmp_path: Path
) -> None:
    method = method_of(kind, **SIZES, rank_stabilized=kind is MethodKind.LORA)
    adapter, fresh = export_adapter(load, family, method, tmp_path), load(family)

    for file in adapter.files:
        with load_back(file, fresh):
            difference = float((predict(fresh) - adapter.after).abs().max())
        assert difference < 0.02 * adapter.effect, file


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_rank_stabilized_lora_is_scaled_by_the_root_of_its_rank(load: Load, rank: int) -> None:
    """Kalajdzievski 2023, arXiv:2312.03732; readers scale by alpha / rank."""
    base = load("sd1")
    method = method_of(MethodKind.LORA, rank=rank, alpha=3.0, rank_stabilized=True)

    state = kohya_state(base, method, trained_on(base, method).state())

    alphas = {round(float(tensor), 4) for name, tensor in state.items() if name.endswith(".alpha")}
    assert alphas == {round(3.0 * rank**0.5, 4)}


def test_each_layer_stores_the_alpha_of_the_method(exported: Exports) -> None:
    _diffusers, file = exported("sd1", MethodKind.LORA).files
    state = load_file(file.path)

    layers = {name.split(".")[0] for name in state}
    assert len(layers) > 20
    assert {float(state[f"{layer}.alpha"]) for layer in layers} == {2.0}


def test_the_diffusers_file_has_no_dropout_and_a_scale_of_1(exported: Exports) -> None:
    """Readers that ignore the metadata take the rank for alpha."""
    adapter = exported("sd1", MethodKind.DORA)
    assert adapter.method.dropout > 0

    file = adapter.files[0]
    with safe_open(file.path, "pt") as opened:
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert {metadata["unet.lora_dropout"], metadata["text_encoder.lora_dropout"]} == {0.0}
    assert {metadata[f"{part}.{name}"] for part in ("unet", "text_encoder") for name in ("r", "lora_alpha")} == {4}
    assert metadata["unet.use_dora"] is True


@pytest.mark.parametrize("kind", [MethodKind.LOHA, MethodKind.OFT])
def test_peft_loads_an_exported_folder(load: Load, kind: MethodKind, tmp_path: Path) -> None:
    base, fresh = load("sd1"), load("sd1")
    method = method_of(kind, text_encoder=False, targets="attention", dropout=0.5)
    file, *_ = trained_on(base, method).export(tmp_path, "egg", {})

    model = PeftModel.from_pretrained(fresh.denoiser, file.path / "unet")

    assert torch.equal(predict(fresh), predict(base))
    assert model.peft_config["default"].inference_mode
    config = json.loads((file.path / "unet" / "adapter_config.json").read_text())
    assert config["module_dropout"] == 0.0
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize(
    ("settings", "module", "arguments"),
    [
        ({"kind": "lora", "targets": "attention"}, "networks.lora", {}),
        ({"kind": "lora", "targets": "all"}, "networks.lora", {"conv_dim": "4", "conv_alpha": "2.0"}),
        ({"kind": "dora", "targets": None}, "lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
        ({"kind": "loha", "targets": None}, "lycoris.kohya", {"algo": "loha"}),
        ({"kind": "lokr", "targets": None, "factor": 8}, "lycoris.kohya", {"algo": "lokr", "factor": "8"}),
        ({"kind": "ia3", "targets": None}, "lycoris.kohya", {"algo": "ia3"}),
    ],
)
def test_the_metadata_names_the_network_module_and_its_arguments(
    settings: dict[str, Any], module: str, arguments: dict[str, str]
) -> None:
    metadata = network_metadata(method_of(MethodKind(settings.pop("kind")), **settings))

    assert metadata["ss_network_module"] == module
    assert arguments.items() <= metadata["ss_network_args"].items()
    assert bool(arguments) == bool(metadata["ss_network_args"])
    assert metadata.get("ss_network_dim", 4) == 4
    assert ("ss_network_alpha" in metadata) == (arguments.get("algo") != "ia3")


def test_the_file_has_the_given_metadata_and_that_of_its_network(load: Load, tmp_path: Path) -> None:
    trained = trained_on(load("sd1"), method_of(MethodKind.LOKR))

    *_, file = trained.export(tmp_path, "egg", {"ss_output_name": "egg", "ss_steps": 7})

    assert file.path == tmp_path / "egg.safetensors"
    with safe_open(file.path, "pt") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_output_name"], metadata["ss_steps"], metadata["ss_network_dim"]) == ("egg", "7", "4")
    assert json.loads(metadata["ss_network_args"])["algo"] == "lokr"
    assert len(metadata["sshs_model_hash"]) == 64


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.LOHA])
@pytest.mark.parametrize("damage", ["no safetensors", "unknown layer"])
def test_a_damaged_file_is_refused_and_leaves_the_base_unchanged(
    load: Load, kind: MethodKind, damage: str, tmp_path: Path
) -> None:
    fresh = load("sd1")
    before = predict(fresh)
    path = tmp_path / "egg.safetensors"
    if damage == "no safetensors":
        path.write_bytes(b"nothing")
    else:
        save_file({"lora_unet_nowhere.hada_w1_a": torch.ones(1)}, path)
    readers = readers_of(ExportFormat.KOHYA, kind, fresh.family)

    with (
        pytest.raises(ExportError, match=r"egg\.safetensors"),
        load_back(ExportedFile(format=ExportFormat.KOHYA, path=path, readers=readers), fresh),
    ):
        pass
    assert torch.equal(predict(fresh), before)


def test_an_error_in_the_with_block_is_not_reported_as_a_damaged_file(load: Load, exported: Exports) -> None:
    fresh = load("sd1")
    before = predict(fresh)

    for file in exported("sd1", MethodKind.LOHA).files:
        with pytest.raises(KeyError), load_back(file, fresh):
            raise KeyError("raised by the caller")
        assert torch.equal(predict(fresh), before)


def test_the_model_hash_covers_the_tensors_only(tmp_path: Path) -> None:
    state = {"a.alpha": torch.tensor(2.0), "a.weight": torch.ones(3, 2).T}
    hashes = []
    for name in ("a", "b"):
        path = write_single_file(tmp_path / f"{name}.safetensors", state, {"ss_output_name": name})
        with safe_open(path, "pt") as file:
            hashes.append(file.metadata()["sshs_model_hash"])
            assert file.metadata()["ss_output_name"] == name

    assert torch.equal(load_file(path)["a.weight"], torch.ones(2, 3))
    assert hashes[0] == hashes[1]
    changed = {"a.alpha": torch.tensor(3.0), "a.weight": torch.ones(2, 3)}
    assert tensor_hashes(changed)["sshs_model_hash"] != hashes[0]
