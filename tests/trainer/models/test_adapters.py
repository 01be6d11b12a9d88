"""Adapters of every kind: where they are put, that they do nothing at first, and that they come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.random_base import make_random_base, make_random_sd3, make_random_sdxl
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import BaseModel, load_base
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.blocks import matches
from trainer.models.methods.trained import Trained
from trainer.protocol.settings import Base, Method, MethodKind, Targets

KINDS = [kind for kind in MethodKind if kind.is_adapter]
Load = Callable[[str], BaseModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    root = tmp_path_factory.mktemp("families")
    folders = {
        "sd1": make_random_base(root / "sd1"),
        "sdxl": make_random_sdxl(root / "sdxl"),
        "sd3": make_random_sd3(root / "sd3"),
    }
    return lambda family: load_base(Base(source=str(folders[family])))


def method_of(kind: MethodKind, **settings: object) -> Method:
    given = {"rank": 4, "alpha": 2.0, "targets": Targets.ALL, "text_encoder": True, "block_size": 8, **settings}
    return Method.model_validate({"kind": kind, **given})


@torch.no_grad()
def predict(base: BaseModel) -> Tensor:
    noise = torch.randn(2, base.denoiser.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    return base.predict(noise, torch.tensor([100, 700]), base.encode_text(["a red egg", "blue"]))


@torch.no_grad()
def train_a_little(trained: Trained, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in trained.named_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_an_untrained_adapter_changes_nothing_and_a_trained_one_does(load: Load, family: str, kind: MethodKind) -> None:
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


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back(load: Load, kind: MethodKind) -> None:
    first, second = load("sd1"), load("sd1")
    trained, other = attach_adapter(first, method_of(kind)), attach_adapter(second, method_of(kind))
    train_a_little(trained)

    other.load(trained.state())

    assert torch.equal(predict(second), predict(first))
    assert {name: set(tensors) for name, tensors in other.state().items()} == {
        name: set(tensors) for name, tensors in trained.state().items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", ["size", "layers", "modules"])
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_alone_learns_in_fp32_and_by_readable_names(load: Load, kind: MethodKind) -> None:
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


def test_blocks_start_with_the_text_encoders(load: Load) -> None:
    blocks = attach_adapter(load("sdxl"), method_of(MethodKind.LORA)).blocks

    modules = [block.partition(".")[0] for block in blocks]
    assert list(dict.fromkeys(modules)) == ["text_encoder", "text_encoder_2", "unet"]


def test_the_base_alone_leaves_frozen_what_a_stage_froze(load: Load) -> None:
    trained = attach_adapter(load("sd1"), method_of(MethodKind.LOKR))
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(matches(name, "up_blocks"))
    before = {name: parameter.requires_grad for name, parameter in trained.named_parameters()}

    with pytest.raises(KeyError), trained.base_only():
        raise KeyError("an error inside")

    assert {name: parameter.requires_grad for name, parameter in trained.named_parameters()} == before


def layers_of(base: BaseModel, **settings: object) -> set[str]:
    """Names of the denoiser's layers that an adapter was put on."""
    kind = MethodKind(str(settings.pop("kind", "lora")))
    trained = attach_adapter(base, method_of(kind, text_encoder=False, **settings))
    return {name.partition(".")[2].rpartition(".")[0] for name, _ in trained.named_parameters()}


def test_targets_choose_layers_of_a_unet(load: Load) -> None:
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


def test_no_targets_means_attention(load: Load) -> None:
    assert layers_of(load("sd1"), targets=None) == layers_of(load("sd1"), targets="attention")


def test_targets_choose_layers_of_the_transformer_of_sd3(load: Load) -> None:
    attention = layers_of(load("sd3"), targets="attention")
    linear = layers_of(load("sd3"), targets="linear")
    everything = layers_of(load("sd3"), targets="all")

    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj"} <= attention
    assert {"transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.0.proj"} <= linear - attention
    assert "transformer_blocks.0.norm1.linear" in everything - linear
    assert not everything & {"proj_out", "context_embedder"}
    with pytest.raises(BadSpecError, match="no layer that lora with the targets conv"):
        layers_of(load("sd3"), targets="conv")


def test_a_pattern_chooses_layers_by_name(load: Load) -> None:
    chosen = layers_of(load("sd1"), targets="pattern", pattern="up_blocks.*.attn2.*")

    assert chosen
    assert all(name.startswith("up_blocks.") and ".attn2." in name for name in chosen)
    assert layers_of(load("sd1"), targets="pattern", pattern="unet.conv_in") == {"conv_in"}


def test_a_pattern_that_means_nothing_is_answered_with_the_nearest_names(load: Load) -> None:
    with pytest.raises(BadSpecError, match=r"has a name like up_block.*attn2") as caught:
        layers_of(load("sd1"), targets="pattern", pattern="up_block.*.attn2.to_q")

    assert "up_blocks.*.attentions.*.transformer_blocks.*.attn2.to_q" in caught.value.hint


def test_oft_leaves_out_what_peft_cannot_rotate(load: Load) -> None:
    everything = layers_of(load("sd1"), targets="all", kind="oft")
    unet = load("sd1").denoiser

    convolutions = [layer for name in everything if isinstance(layer := unet.get_submodule(name), nn.Conv2d)]
    assert {layer.kernel_size for layer in convolutions} == {(1, 1)}
    with pytest.raises(BadSpecError, match="no layer that oft"):
        layers_of(load("sd1"), targets="pattern", pattern="*.conv1", kind="oft")


def test_a_block_size_that_does_not_divide_becomes_the_nearest_that_does(load: Load) -> None:
    base = load("sd1")

    trained = attach_adapter(base, method_of(MethodKind.OFT, block_size=7, targets="attention", text_encoder=False))

    # Widths are 16 and 32: blocks of 8 have 28 free angles each.
    assert {parameter.shape[1] for _, parameter in trained.named_parameters()} == {28}


def test_ia3_scales_outputs_of_layers_without_a_bias_and_inputs_of_the_others(load: Load) -> None:
    base = load("sd1")

    shapes = {name: p.shape for name, p in attach_adapter(base, method_of(MethodKind.IA3)).named_parameters()}

    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert shapes[f"{block}.attn1.to_k.ia3_l"] == (16, 1)
    assert shapes[f"{block}.ff.net.2.ia3_l"] == (1, 64)


def test_a_factor_sets_the_size_of_lokrs_small_matrix(load: Load) -> None:
    trained = attach_adapter(load("sd1"), method_of(MethodKind.LOKR, factor=2, targets="attention", rank=1))

    shapes = {name.rpartition(".")[2]: p.shape for name, p in trained.named_parameters() if "attn1.to_q" in name}
    assert shapes["lokr_w1"] == (2, 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.has_rank])
def test_dropout_is_on_in_training_and_off_in_evaluation(load: Load, kind: MethodKind) -> None:
    base = load("sd1")
    trained = attach_adapter(base, method_of(kind, dropout=0.5))
    train_a_little(trained)

    quiet = [predict(base) for _ in range(2)]
    for module in trained.modules.values():
        module.train()
    noisy = [predict(base) for _ in range(2)]

    assert torch.equal(*quiet)
    assert not torch.equal(*noisy)
