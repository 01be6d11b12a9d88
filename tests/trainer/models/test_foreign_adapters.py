"""Adapters that other programs wrote, applied to a base: their effect is that of the program's own network.

LyCORIS is run itself; for kohya's SD 3 names diffusers' converter says which weights they are. kohya's own network was
run once (30 November 2026: `networks/lora_sd3.py` of kohya-ss/sd-scripts on its MMDiT, and its file on diffusers'
transformer with the same weights): equal within 2e-6 of effects of 0.1 and 0.8, without and with `emb_dims`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from lycoris.config import PRESET
from lycoris.kohya import create_network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.trainer.models.random_adapters import Load, predict
from trainer.errors import BadSpecError
from trainer.models.adapter_header import read_adapter_header
from trainer.models.methods.applying import ChangeableWeights, FileChange

CPU = torch.device("cpu")
#: Classes of diffusers' UNet.
_BLOCKS = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
METADATA = {"ss_base_model_version": "sd_v1"}


@torch.no_grad()
def written_by_lycoris(unet: nn.Module, path: Path, **arguments: Any) -> None:
    """Put a random network of LyCORIS on a UNet, and write its file."""
    # Its own list has the layers of the time embedding twice, and refuses that.
    targets = {"unet_target_module": _BLOCKS, "unet_target_name": ["conv_in", "conv_out"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESET, "full", {**PRESET["full"], **targets})
        network = create_network(1.0, 4, 2.0, None, None, unet, **arguments)
    network.apply_to(None, unet, False, True)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in network.state_dict().items()}
    save_file(state, path, METADATA)


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        ({"algo": "lora", "use_tucker": True}, {"lora_mid.weight"}),
        ({"algo": "loha", "use_tucker": True}, {"hada_t1", "hada_t2"}),
        ({"algo": "lokr", "use_tucker": True, "factor": 2}, {"lokr_t2"}),
        ({"algo": "lokr", "factor": 2, "decompose_both": True}, {"lokr_w2_a"}),
        ({"algo": "full", "train_norm": True}, {"diff", "diff_b", "w_norm", "b_norm"}),
        ({"algo": "lora", "train_norm": True, "rs_lora": True}, {"lora_down.weight", "w_norm"}),
        ({"algo": "lora", "dora_wd": True, "wd_on_output": False}, {"dora_scale"}),
        ({"algo": "loha", "dora_wd": True, "wd_on_output": True}, {"dora_scale"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_file_of_lycoris_has_the_effect_of_its_network(
    load: Load, tmp_path: Path, arguments: dict[str, Any], ends: set[str]
) -> None:
    path = tmp_path / "theirs.safetensors"
    theirs, fresh = load("sd1"), load("sd1")
    written_by_lycoris(theirs.denoiser, path, **arguments)
    expected = predict(theirs)
    weights = ChangeableWeights(fresh, CPU, torch.float32)
    untrained = predict(fresh)

    weights.apply(FileChange(path=path), 1.0)
    found = predict(fresh)
    weights.apply(None, 0.0)

    assert read_adapter_header(path).family == "sd1"
    assert ends <= {name.partition(".")[2] for name in load_file(path)}
    effect = float((expected - untrained).abs().max())
    assert effect > 1e-3
    assert float((found - expected).abs().max()) <= 1e-3 * effect + 1e-5
    assert torch.equal(predict(fresh), untrained)


def sd3_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The weights of an SD 3 transformer that LoRAs change, by their original names (`library/sd3_models.py`)."""
    width, patch = config.attention_head_dim * config.num_attention_heads, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "context_embedder": (width, config.joint_attention_dim),
        "x_embedder.proj": (width, config.in_channels, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, config.pooled_projection_dim),
        "y_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * config.out_channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for number in range(config.num_layers):
        is_last = number == config.num_layers - 1
        for part in ("x_block", "context_block"):
            is_short = is_last and part == "context_block"
            layers = {"attn.qkv": (3 * width, width), "adaLN_modulation.1": ((2 if is_short else 6) * width, width)}
            if not is_short:
                layers |= {"attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            shapes |= {f"joint_blocks.{number}.{part}.{layer}": shape for layer, shape in layers.items()}
    return shapes


def test_a_lora_for_sd3_by_kohyas_names_changes_the_weights_that_diffusers_converter_says(
    load: Load, tmp_path: Path
) -> None:
    fresh = load("sd3")
    transformer = fresh.denoiser
    generator = torch.Generator().manual_seed(4)
    file: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {"pos_embed": torch.zeros(1)}
    for name, (rows, *others) in sd3_shapes(transformer.config).items():
        key = f"lora_unet_{name.replace('.', '_')}"
        down = torch.randn((4, *others), generator=generator)
        up = 0.1 * torch.randn((rows, 4, *[1] * (len(others) - 1)), generator=generator)
        file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
        added[f"{name}.weight"] = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(rows, *others)
        added[f"{name}.bias"] = torch.zeros(rows)
    save_file(file, tmp_path / "kohya.safetensors")
    expected = convert_sd3_transformer_checkpoint_to_diffusers(added)
    weights = ChangeableWeights(fresh, CPU, torch.float32)
    before = {name: tensor.clone() for name, tensor in transformer.named_parameters()}

    weights.apply(FileChange(path=tmp_path / "kohya.safetensors"), 1.0)

    facts = read_adapter_header(tmp_path / "kohya.safetensors")
    assert (facts.family, facts.modules) == ("sd3", ("transformer",))
    for name, tensor in transformer.named_parameters():
        assert torch.allclose(tensor, before[name] + expected[name], atol=1e-6), name
    assert sum(bool(delta.any()) for delta in expected.values()) == len(file) // 3 + 2 * 2 * 2


def test_a_bias_that_the_base_does_not_have_is_refused(load: Load, tmp_path: Path) -> None:
    fresh = load("sd1")
    layer = next(name for name, _module in fresh.denoiser.named_modules() if name.endswith("to_q"))
    rows = len(fresh.denoiser.get_submodule(layer).weight)
    save_file(
        {f"lora_unet_{layer.replace('.', '_')}.diff_b": torch.ones(rows)}, tmp_path / "bias.safetensors", METADATA
    )
    weights = ChangeableWeights(fresh, CPU, torch.float32)

    with pytest.raises(BadSpecError, match=r"to_q\.bias, which this base does not have"):
        weights.apply(FileChange(path=tmp_path / "bias.safetensors"), 1.0)
