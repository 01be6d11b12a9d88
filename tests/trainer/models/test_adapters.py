"""Adapters of every kind: target layers, initial state, weights, and running the base alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.trainer.models.random_adapters import (
    FAMILIES_AND_KINDS,
    KINDS,
    KINDS_MOSTLY_SLOW,
    Load,
    method_of,
    predict,
    train_a_little,
)
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import LoadedBase
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.layers import matches
from trainer.protocol.settings import MethodKind, Targets


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_an_adapter_has_no_effect_until_it_is_trained(load: Load, family: str, kind: MethodKind) -> None:
    base = load(family)
    before = predict(base)

    trained = attach_adapter(base, method_of(kind))
    assert (predict(base) - before).abs().max() < 1e-5

    train_a_little(trained)
    after = predict(base)
    assert (after - before).abs().max() > 0.005
    with trained.base_only():
        assert torch.equal(predict(base), before)
    assert torch.equal(predict(base), after)


def test_a_loha_starts_as_in_lycoris(load: Load) -> None:
    """Deviations of 0.1, 1, 0 and 1 (LyCORIS 4.1.3, `modules/loha.py`), here over all layers together."""
    trained = attach_adapter(load("sd1"), method_of(MethodKind.LOHA))
    expected = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_a": 0.0, "hada_w2_b": 1.0}

    for part, deviation in expected.items():
        factors = [parameter.flatten() for name, parameter in trained.named_parameters() if name.endswith(part)]
        assert torch.cat(factors).std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("kind", KINDS_MOSTLY_SLOW)
def test_weights_are_restored_from_a_state(load: Load, kind: MethodKind) -> None:
    first, second = load("sd1"), load("sd1")
    trained, other = attach_adapter(first, method_of(kind)), attach_adapter(second, method_of(kind))
    train_a_little(trained)

    other.load(trained.state())

    assert torch.equal(predict(second), predict(first))
    assert {name: set(tensors) for name, tensors in other.state().items()} == {
        name: set(tensors) for name, tensors in trained.state().items()
    }


@pytest.mark.parametrize("kind", KINDS_MOSTLY_SLOW)
@pytest.mark.parametrize(
    "wrong", ["size", pytest.param("layers", marks=pytest.mark.slow), pytest.param("modules", marks=pytest.mark.slow)]
)
def test_weights_of_another_job_are_refused(load: Load, kind: MethodKind, wrong: str) -> None:
    # (IA)3 has no size.
    changes: dict[str, dict[str, object]] = {
        "size": {"targets": Targets.LINEAR} if kind is MethodKind.IA3 else {"rank": 1, "block_size": 4},
        "layers": {"targets": Targets.ATTENTION},
        "modules": {"text_encoder": False},
    }
    trained = attach_adapter(load("sd1"), method_of(kind))
    other = attach_adapter(load("sd1"), method_of(kind, **changes[wrong]))

    with pytest.raises(CheckpointError, match="adapter weights"):
        trained.load(other.state())


@pytest.mark.parametrize("kind", KINDS_MOSTLY_SLOW)
def test_only_adapter_weights_require_gradients_in_fp32_under_layer_names(load: Load, kind: MethodKind) -> None:
    base = load("sd1")
    originals = {name for name, _ in base.denoiser.named_modules()}
    base.denoiser.to(torch.bfloat16)
    trained = attach_adapter(base, method_of(kind))
    parameters = dict(trained.named_parameters())

    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    learning = [p for module in trained.modules.values() for p in module.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in parameters.values()}
    for name in parameters:
        module, _, path = name.partition(".")
        assert module in trained.modules
        assert module != "unet" or path.rpartition(".")[0] in originals, name
        assert sum(matches(name, block) for block in trained.blocks) == 1, name


def test_blocks_list_the_text_encoders_first(load: Load) -> None:
    blocks = attach_adapter(load("sdxl"), method_of(MethodKind.LORA)).blocks

    modules = [block.partition(".")[0] for block in blocks]
    assert list(dict.fromkeys(modules)) == ["text_encoder", "text_encoder_2", "unet"]


def test_running_the_base_alone_keeps_frozen_weights_frozen(load: Load) -> None:
    trained = attach_adapter(load("sd1"), method_of(MethodKind.LOKR))
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(matches(name, "up_blocks"))
    before = {name: parameter.requires_grad for name, parameter in trained.named_parameters()}

    with pytest.raises(KeyError), trained.base_only():
        raise KeyError("an error inside")

    assert {name: parameter.requires_grad for name, parameter in trained.named_parameters()} == before


def layers_of(base: LoadedBase, **settings: object) -> set[str]:
    """Return the names of the denoiser's layers that get an adapter."""
    kind = MethodKind(str(settings.pop("kind", "lora")))
    trained = attach_adapter(base, method_of(kind, text_encoder=False, **settings))
    return {name.partition(".")[2].rpartition(".")[0] for name, _ in trained.named_parameters()}


def test_targets_select_layers_of_a_unet(load: Load) -> None:
    attention = layers_of(load("sd1"), targets="attention")
    linear = layers_of(load("sd1"), targets="linear")
    conv = layers_of(load("sd1"), targets="conv")
    everything = layers_of(load("sd1"), targets="all")

    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert {name.removeprefix(f"{block}.attn1.") for name in attention if f"{block}.attn1" in name} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    }
    assert {f"{block}.ff.net.0.proj", f"{block}.ff.net.2", "down_blocks.0.attentions.0.proj_in"} <= linear - attention
    assert {"down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"} <= conv
    assert not conv & linear
    assert "down_blocks.0.resnets.0.time_emb_proj" in everything - linear - conv
    assert attention | linear | conv <= everything
    assert not everything & {"conv_in", "conv_out", "time_embedding.linear_1"}
    assert layers_of(load("sd1"), targets=None) == attention


def test_targets_select_layers_of_the_sd3_transformer(load: Load) -> None:
    attention = layers_of(load("sd3"), targets="attention")
    linear = layers_of(load("sd3"), targets="linear")
    everything = layers_of(load("sd3"), targets="all")

    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj"} <= attention
    assert {"transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.0.proj"} <= linear - attention
    assert "transformer_blocks.0.norm1.linear" in everything - linear
    assert not everything & {"proj_out", "context_embedder"}
    with pytest.raises(BadSpecError, match="no layer that lora with the targets conv"):
        layers_of(load("sd3"), targets="conv")


def test_a_pattern_selects_layers_by_name(load: Load) -> None:
    chosen = layers_of(load("sd1"), targets="pattern", pattern="up_blocks.*.attn2.*")

    assert chosen
    assert all(name.startswith("up_blocks.") and ".attn2." in name for name in chosen)
    assert layers_of(load("sd1"), targets="pattern", pattern="unet.conv_in") == {"conv_in"}


def test_an_unmatched_pattern_suggests_similar_names(load: Load) -> None:
    with pytest.raises(BadSpecError, match=r"matches up_block.*attn2") as caught:
        layers_of(load("sd1"), targets="pattern", pattern="up_block.*.attn2.to_q")

    assert "up_blocks.*.attentions.*.transformer_blocks.*.attn2.to_q" in caught.value.hint


def test_oft_skips_layers_that_peft_does_not_support(load: Load) -> None:
    everything = layers_of(load("sd1"), targets="all", kind="oft")
    unet = load("sd1").denoiser

    convolutions = [layer for name in everything if isinstance(layer := unet.get_submodule(name), nn.Conv2d)]
    assert {layer.kernel_size for layer in convolutions} == {(1, 1)}
    with pytest.raises(BadSpecError, match="no layer that oft"):
        layers_of(load("sd1"), targets="pattern", pattern="*.conv1", kind="oft")


def test_a_block_size_is_rounded_to_the_nearest_divisor_of_the_width(load: Load) -> None:
    base = load("sd1")

    trained = attach_adapter(base, method_of(MethodKind.OFT, block_size=7, targets="attention", text_encoder=False))

    # Widths are 16 and 32; a block of 8 has 28 free angles.
    assert {parameter.shape[1] for _, parameter in trained.named_parameters()} == {28}


def test_ia3_scales_outputs_of_layers_without_bias_and_inputs_of_others(load: Load) -> None:
    base = load("sd1")

    shapes = {name: p.shape for name, p in attach_adapter(base, method_of(MethodKind.IA3)).named_parameters()}

    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert shapes[f"{block}.attn1.to_k.ia3_l"] == (16, 1)
    assert shapes[f"{block}.ff.net.2.ia3_l"] == (1, 64)


def test_the_factor_sets_the_size_of_the_small_lokr_matrix(load: Load) -> None:
    trained = attach_adapter(load("sd1"), method_of(MethodKind.LOKR, factor=2, targets="attention", rank=1))

    shapes = {name.rpartition(".")[2]: p.shape for name, p in trained.named_parameters() if "attn1.to_q" in name}
    assert shapes["lokr_w1"] == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.has_rank])
def test_dropout_is_active_in_training_mode_only(load: Load, kind: MethodKind) -> None:
    base = load("sd1")
    trained = attach_adapter(base, method_of(kind, dropout=0.5))
    train_a_little(trained)

    evaluated = [predict(base) for _ in range(2)]
    for module in trained.modules.values():
        module.train()
    dropped = [predict(base) for _ in range(2)]

    assert torch.equal(*evaluated)
    assert not torch.equal(*dropped)
