"""Exported LoRAs carry the names, the alpha and the metadata that other programs read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.errors import ExportError
from trainer.models.base import load_base
from trainer.models.export import kohya_state, tensor_hashes, write_diffusers, write_kohya
from trainer.models.lora import add_text_encoder_lora, add_unet_lora, load_lora_state, lora_state
from trainer.protocol.spec import Adapter, Base, Targets
from trainer.tasks.verify import compare_exports

ADAPTER = Adapter(rank=4, alpha=2.0, targets=Targets.ALL, text_encoder=True)
Weights = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def weights(random_base: Path) -> Weights:
    """A LoRA on every kind of layer, with B filled so that it does something."""
    base = load_base(Base(source=str(random_base)))
    add_unet_lora(base.unet, ADAPTER)
    add_text_encoder_lora(base.text_encoder, ADAPTER)
    generator = torch.Generator().manual_seed(1)
    found = {"unet": lora_state(base.unet), "text_encoder": lora_state(base.text_encoder)}
    return {
        model: {name: torch.randn(t.shape, generator=generator) * 0.2 for name, t in state.items()}
        for model, state in found.items()
    }


def test_kohya_names_follow_sd_scripts(weights: Weights) -> None:
    state = kohya_state(weights, alpha=2.0)

    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert state[f"{attention}.lora_down.weight"].shape == (4, 16)
    assert state[f"{attention}.lora_up.weight"].shape == (16, 4)
    assert state[f"{text}.lora_down.weight"].shape == (4, 32)
    assert state["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape == (4, 16, 3, 3)
    assert state["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"].shape == (16, 4, 1, 1)


def test_every_module_has_down_up_and_the_true_alpha(weights: Weights) -> None:
    state = kohya_state(weights, alpha=2.0)

    modules = {name.split(".")[0] for name in state}
    assert len(modules) == sum(map(len, weights.values())) // 2
    for module in modules:
        assert {f"{module}.lora_down.weight", f"{module}.lora_up.weight", f"{module}.alpha"} <= state.keys()
        assert state[f"{module}.alpha"].item() == 2.0


def test_both_files_load_back_and_do_the_same(weights: Weights, random_base: Path, tmp_path: Path) -> None:
    files = _write(weights, tmp_path)

    comparisons = compare_exports(
        Base(source=str(random_base)), ADAPTER, weights, files, caption="a red egg", device=torch.device("cpu")
    )

    assert all(comparison.max_effect > 0.1 for comparison in comparisons)
    assert comparisons[0].max_difference < 1e-5
    assert comparisons[1].max_difference < 0.02 * comparisons[1].max_effect


@pytest.mark.parametrize("damage", ["alpha", "missing text encoder", "one matrix"])
def test_a_file_that_does_something_else_is_caught(
    weights: Weights, random_base: Path, tmp_path: Path, damage: str
) -> None:
    _, kohya = _write(weights, tmp_path)
    state = load_file(kohya)
    if damage == "alpha":
        state = {name: t * 2 if name.endswith(".alpha") else t for name, t in state.items()}
    elif damage == "missing text encoder":
        state = {name: t for name, t in state.items() if not name.startswith("lora_te_")}
    else:
        name = next(name for name in state if name.endswith("attn2_to_v.lora_up.weight"))
        state[name] = torch.zeros_like(state[name])
    save_file(state, kohya)

    with pytest.raises(ExportError, match="loaded back"):
        compare_exports(
            Base(source=str(random_base)), ADAPTER, weights, [kohya], caption="a red egg", device=torch.device("cpu")
        )


def test_the_hash_is_of_the_tensors_and_not_of_the_metadata(weights: Weights, tmp_path: Path) -> None:
    state = kohya_state(weights, alpha=2.0)
    hashes = []
    for name in ("a", "b"):
        path = write_kohya(tmp_path / f"{name}.safetensors", state, {"ss_output_name": name})
        with safe_open(path, "pt") as file:
            hashes.append(file.metadata()["sshs_model_hash"])
            assert file.metadata()["ss_output_name"] == name

    assert hashes[0] == hashes[1] == tensor_hashes(state)["sshs_model_hash"]


def test_weights_of_another_lora_are_refused(random_base: Path, weights: Weights) -> None:
    from trainer.errors import CheckpointError

    base = load_base(Base(source=str(random_base)))
    add_unet_lora(base.unet, ADAPTER.model_copy(update={"rank": 8}))

    with pytest.raises(CheckpointError, match="do not fit"):
        load_lora_state(base.unet, weights["unet"])


def _write(weights: Weights, folder: Path) -> list[Path]:
    from peft import LoraConfig

    from trainer.models.lora import UNET_TARGETS

    config = LoraConfig(r=4, lora_alpha=2.0, lora_dropout=0.5, target_modules=list(UNET_TARGETS[Targets.ALL]))
    return [
        write_diffusers(folder / "diffusers", weights, config),
        write_kohya(folder / "kohya.safetensors", kohya_state(weights, alpha=2.0), {}),
    ]
