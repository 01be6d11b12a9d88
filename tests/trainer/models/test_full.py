"""Full fine-tuning: targeted parameters, running the base alone, checkpoints and exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.models.conftest import BaseFolder
from tests.trainer.models.random_adapters import Load
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import LoadedBase
from trainer.models.methods.full import FullTraining, attach_full, load_back
from trainer.models.widening import widened_layers
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Base, Method, MethodKind, Objective, Targets

LoadSd1: TypeAlias = Callable[[], LoadedBase]


@pytest.fixture
def load_sd1(load: Load) -> LoadSd1:
    return lambda: load("sd1")


def _attach(load_sd1: LoadSd1, **settings: Any) -> tuple[LoadedBase, FullTraining]:
    base = load_sd1()
    return base, attach_full(base, Method(kind=MethodKind.FULL, **settings), load_sd1)


def _train(base: LoadedBase, full: FullTraining) -> None:
    """One real step that changes every weight."""
    optimizer = torch.optim.Adam((parameter for _, parameter in full.named_parameters()), lr=3e-3)
    torch.autograd.backward(_predict(base).square().sum())
    optimizer.step()
    optimizer.zero_grad()


def _predict(base: LoadedBase) -> Tensor:
    shape = (1, base.vae.config.latent_channels, 16, 16)
    noise_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return base.predict(noise_BCHW, torch.tensor([300]), base.encode_text(["a red egg"]))


@torch.no_grad()
def _output(base: LoadedBase) -> Tensor:
    """Predict in fp32, whatever the weights are stored in, as the check of exported files does."""
    with widened_layers(torch.device("cpu"), base.denoiser, *base.clip_encoders.values()):
        return _predict(base)


@pytest.mark.parametrize(
    ("settings", "trained", "frozen"),
    [
        ({}, "unet.conv_norm_out.bias", None),
        (
            {"targets": Targets.ATTENTION},
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "conv",
        ),
        ({"targets": Targets.CONV}, "unet.up_blocks.0.resnets.0.conv1.bias", "attn"),
        (
            {"targets": Targets.PATTERN, "pattern": "up_blocks.1"},
            "unet.up_blocks.1.resnets.0.norm1.weight",
            "down_blocks",
        ),
        ({"text_encoder": True}, "text_encoder.encoder.layers.0.self_attn.q_proj.weight", None),
    ],
)
def test_only_targeted_parameters_are_trained(
    load_sd1: LoadSd1, settings: dict[str, Any], trained: str, frozen: str | None
) -> None:
    base, full = _attach(load_sd1, **settings)
    names = dict(full.named_parameters())

    assert trained in names
    assert frozen is None or not any(frozen in name for name in names)
    everything = [*base.denoiser.parameters(), *base.text_encoders["text_encoder"].parameters()]
    assert {id(p) for p in everything if p.requires_grad} == {id(p) for p in names.values()}
    assert set(full.modules) == {name.split(".")[0] for name in names}
    assert full.blocks[-1] == "unet.conv_out"


def test_an_unmatched_pattern_is_refused(load_sd1: LoadSd1) -> None:
    with pytest.raises(BadSpecError, match="No layer of the unet"):
        _attach(load_sd1, targets=Targets.PATTERN, pattern="up_block.7")


def test_running_the_base_alone_restores_the_trained_weights_exactly(load_sd1: LoadSd1) -> None:
    base, full = _attach(load_sd1, text_encoder=True)
    base.denoiser.to(memory_format=torch.channels_last)
    before = _output(base)
    _train(base, full)
    trained, weights = _output(base), full.state()

    with suppress(RuntimeError), full.base_only():
        assert torch.equal(_output(base), before)
        raise RuntimeError("stop")

    assert not torch.equal(trained, before)
    assert torch.equal(_output(base), trained)
    assert all(torch.equal(t, full.state()[m][n]) for m, tensors in weights.items() for n, t in tensors.items())
    assert base.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_holds_and_restores_the_trained_weights_only(load_sd1: LoadSd1) -> None:
    base, full = _attach(load_sd1, targets=Targets.ATTENTION)
    _train(base, full)
    trained, weights = _output(base), full.state()
    _train(base, full)
    assert not torch.equal(_output(base), trained)
    other, other_full = _attach(load_sd1, targets=Targets.ATTENTION)

    other_full.load(weights)

    assert set(weights) == {"unet"}
    assert all("attn" in name for name in weights["unet"])
    assert torch.equal(_output(other), trained)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "module"])
def test_a_checkpoint_of_another_job_is_refused(load_sd1: LoadSd1, damage: str) -> None:
    _, full = _attach(load_sd1)
    weights = {name: dict(tensors) for name, tensors in full.state().items()}
    if damage == "missing":
        weights["unet"].popitem()
    elif damage == "unknown":
        weights["unet"]["more"] = torch.zeros(1)
    elif damage == "shape":
        weights["unet"]["conv_in.bias"] = torch.zeros(3)
    else:
        weights["text_encoder"] = {"x": torch.zeros(1)}

    with pytest.raises(CheckpointError, match="do not fit this job"):
        full.load(weights)


def test_both_exports_predict_the_same_as_the_rounded_weights(load_sd1: LoadSd1, tmp_path: Path) -> None:
    base, full = _attach(load_sd1, text_encoder=True)
    untrained = _output(base)
    _train(base, full)
    trained = _output(base)

    files = full.export(tmp_path, "momo", {"ss_steps": 7})

    assert [file.format for file in files] == [ExportFormat.DIFFUSERS, ExportFormat.CHECKPOINT]
    assert torch.equal(_output(base), trained)
    with full.as_exported():
        rounded = _output(base)
    effect = (trained - untrained).abs().max()
    assert 0 < (rounded - trained).abs().max() < 0.02 * effect
    for file in files:
        assert torch.allclose(_output(load_back(file, Base(), Objective())), rounded, atol=1e-6)
    assert torch.equal(_output(base), trained)


def test_exports_are_fp16_with_names_that_older_readers_expect(load_sd1: LoadSd1, tmp_path: Path) -> None:
    _, full = _attach(load_sd1)
    folder, single = (file.path for file in full.export(tmp_path, "momo", {"ss_steps": 7}))

    encoder = load_file(folder / "text_encoder" / "model.safetensors")
    original = load_file(single)
    assert {t.dtype for t in (*encoder.values(), *original.values())} == {torch.float16}
    assert all(name.startswith("text_model.") for name in encoder)
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight" in original
    assert "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight" in original
    assert "first_stage_model.decoder.mid.attn_1.q.weight" in original
    with safe_open(single, "pt") as file:
        assert file.metadata()["ss_steps"] == "7"


@pytest.mark.parametrize(
    ("family", "formats"),
    [("sdxl", [ExportFormat.DIFFUSERS, ExportFormat.CHECKPOINT]), ("sd3", [ExportFormat.DIFFUSERS])],
)
def test_exports_of_other_families_predict_the_same_as_the_rounded_weights(
    base_folder: BaseFolder, load: Load, tmp_path: Path, family: str, formats: list[ExportFormat]
) -> None:
    source, base = Base(source=str(base_folder(family))), load(family)
    full = attach_full(base, Method(kind=MethodKind.FULL, text_encoder=True), lambda: load(family))
    for _, parameter in full.named_parameters():
        parameter.data.mul_(1.01)

    files = full.export(tmp_path / "output", "momo", {})

    assert [file.format for file in files] == formats
    with full.as_exported():
        rounded = _output(base)
    for file in files:
        assert torch.allclose(_output(load_back(file, source, Objective())), rounded, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_weights_are_as_stored_until_they_are_placed(load_sd1: LoadSd1, dtype: torch.dtype) -> None:
    base = load_sd1()
    for part in (base.denoiser, *base.clip_encoders.values()):
        part.half()
    full = attach_full(base, Method(kind=MethodKind.FULL, text_encoder=True), lambda: base, dtype=dtype)
    assert {parameter.dtype for _name, parameter in full.named_parameters()} == {torch.float16}

    full.widen()

    found = {(name.partition(".")[0], parameter.dtype) for name, parameter in full.named_parameters()}
    assert found == {("unet", dtype), ("text_encoder", torch.float32)}


def test_weights_of_an_earlier_training_are_not_rounded_to_what_is_stored(load_sd1: LoadSd1) -> None:
    earlier, later = _attach(load_sd1)[1], load_sd1()
    with torch.no_grad():
        for _name, parameter in earlier.named_parameters():
            parameter.add_(1e-6)
    later.denoiser.half()
    full = attach_full(later, Method(kind=MethodKind.FULL), load_sd1)

    full.load(earlier.state())

    expected = dict(earlier.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in full.named_parameters())
