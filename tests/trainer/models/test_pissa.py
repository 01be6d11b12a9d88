"""PiSSA: a LoRA that starts from the base's own weights trains as peft's, and leaves the base as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from tests.trainer.models.random_adapters import Load, method_of, predict, train_a_little
from trainer.errors import CheckpointError
from trainer.models.base import LoadedBase
from trainer.models.methods import pissa
from trainer.models.methods.adapters import attach_adapter, merged_layers
from trainer.models.methods.applying import AdapterChange, ChangeableWeights, FileChange, WeightChange
from trainer.models.methods.loading_back import load_back
from trainer.models.methods.starting_files import read_start
from trainer.models.methods.trained import Trained
from trainer.models.quantization import quantize
from trainer.protocol.settings import LoraInit, Method, MethodKind, Quantization, Targets
from trainer.protocol.training_settings import Precision
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings, predict_memory

CPU = torch.device("cpu")
#: Ranks of their own, and a layer that has fewer directions than its rank.
SIZES: dict[str, Any] = {
    "rank": 4,
    "alpha": 3.0,
    "rank_stabilized": True,
    "conv_rank": 2,
    "block_ranks": [{"blocks": "up_blocks.0", "rank": 128, "alpha": 9.0}, {"blocks": "mid_block", "rank": 0}],
}


def pissa_of(**settings: Any) -> Method:
    return method_of(MethodKind.LORA, init="pissa", **settings)


def take_step(base: LoadedBase, parameters: list[nn.Parameter], rate: float) -> None:
    """Take one step on a loss that every layer changes; not of Adam, which makes as much of gradients that round."""
    noise = torch.randn(2, base.denoiser.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    text = base.encode_text(["a red egg", "blue"])
    optimizer = torch.optim.SGD(parameters, lr=rate)
    base.predict(noise, torch.tensor([100, 700]), text).square().mean().backward()
    optimizer.step()


FAMILIES_AND_SIZES = pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param("sd1", SIZES, id="sd1"),
        pytest.param("sdxl", {}, id="sdxl", marks=pytest.mark.slow),
        pytest.param("sd3", {}, id="sd3"),
    ],
)


@FAMILIES_AND_SIZES
def test_nothing_changes_before_it_is_trained_to_the_bit(load: Load, family: str, settings: dict[str, Any]) -> None:
    base = load(family)
    before = predict(base)
    with torch.autocast("cpu", torch.bfloat16):
        before_in_bf16 = predict(base)
    weights = {name: p.clone() for name, p in base.denoiser.named_parameters()}

    trained = attach_adapter(base, pissa_of(**settings))

    assert torch.equal(predict(base), before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(base), before_in_bf16)
    train_a_little(trained)
    assert (predict(base) - before).abs().max() > 0.005
    with trained.base_only():
        assert torch.equal(predict(base), before)
    now = {name.replace(".base_layer", ""): p for name, p in base.denoiser.named_parameters()}
    assert all(torch.equal(now[name], weight) for name, weight in weights.items())


def test_a_step_changes_the_weights_as_one_of_pefts_own_does(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    # As exact as peft's SVD also where all directions are equally strong, as those of random weights are.
    monkeypatch.setattr(pissa, "_MORE_COLUMNS", 10_000)
    method = pissa_of(targets=Targets.ATTENTION, text_encoder=False)
    ours, theirs = load("sd1"), load("sd1")
    before = {name: p.detach().clone() for name, p in ours.denoiser.named_parameters()}
    trained = attach_adapter(ours, method)
    layers = [
        name for name, each in theirs.denoiser.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    config = LoraConfig(
        r=method.rank, lora_alpha=method.effective_alpha, target_modules=layers, init_lora_weights="pissa"
    )
    inject_adapter_in_model(config, theirs.denoiser)

    take_step(ours, [p for _name, p in trained.named_parameters()], 300.0)
    take_step(theirs, [p for p in theirs.denoiser.parameters() if p.requires_grad], 300.0)

    lora = attach_adapter(load("sd1"), method.exported)
    lora.load(trained.state())
    (unet,) = lora.modules.values()
    merged = {id(parameter): weight for parameter, weight in merged_layers(unet, lambda p: p.detach())}
    learned = {
        path: merged[id(each.get_base_layer().weight)]
        for path, each in unet.named_modules()
        if isinstance(each, BaseTunerLayer)
    }
    compared = 0
    for name, layer in theirs.denoiser.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            change = layer.get_base_layer().weight - before[f"{name}.weight"]
            difference = learned[name] - before[f"{name}.weight"] - change
            assert change.abs().max() > 1e-4
            assert difference.abs().max() < 5e-3 * change.abs().max(), name
            compared += 1
    assert compared > 10
    assert torch.allclose(predict(ours), predict(theirs), atol=1e-5)


@FAMILIES_AND_SIZES
def test_files_and_checkpoints_have_its_effect_on_the_base_as_it_is(
    load: Load, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    method = pissa_of(**settings)
    base, fresh = load(family), load(family)
    trained = attach_adapter(base, method)
    learn(trained, 1e-3)
    before, after = predict(fresh), predict(base)
    effect = float((after - before).abs().max())

    files = trained.export(tmp_path, "egg", {})
    epoch = trained.export_epoch(tmp_path, "egg", 3, {})
    assert epoch is not None
    for file in (*files, epoch):
        with load_back(file, fresh):
            assert float((predict(fresh) - after).abs().max()) < 0.01 * effect, file
    weights = ChangeableWeights(fresh, CPU, torch.float32)
    # In another layout.
    before = predict(fresh)
    state = trained.state()
    changes: dict[str, WeightChange] = {
        "checkpoint": AdapterChange(method=method, weights=lambda _: state),
        "file": AdapterChange(method=method, weights=lambda each: each.weights_from(read_start(epoch.path))),
        "file alone": FileChange(path=epoch.path),
    }
    for name, change in changes.items():
        weights.apply(change, 1.0)
        assert float((predict(fresh) - after).abs().max()) < 0.01 * effect, name
    weights.apply(None, 0.0)
    assert torch.equal(predict(fresh), before)


def learn(trained: Trained, size: float) -> None:
    """Change the weights by little, as a short training does."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _name, parameter in trained.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def test_the_file_has_twice_the_rank_and_says_so(load: Load, tmp_path: Path) -> None:
    trained = attach_adapter(load("sd1"), pissa_of(rank=6, alpha=3.0, text_encoder=False))
    learn(trained, 1e-3)

    file = trained.export_epoch(tmp_path, "egg", 1, {})

    assert file is not None
    tensors = load_file(file.path)
    assert {len(t) for name, t in tensors.items() if name.endswith("lora_down.weight")} == {12}
    assert {float(t) for name, t in tensors.items() if name.endswith("alpha")} == {6.0}


def test_a_checkpoint_is_restored_with_its_start_also_as_an_ordinary_lora(load: Load) -> None:
    method = pissa_of(**SIZES)
    first, second, plain = load("sd1"), load("sd1"), load("sd1")
    trained = attach_adapter(first, method)
    train_a_little(trained)
    state = trained.state()

    # Another SVD may give other signs.
    torch.manual_seed(99)
    other = attach_adapter(second, method)
    other.load(state)
    lora = attach_adapter(plain, method.exported)
    lora.load(state)

    assert torch.equal(predict(second), predict(first))
    restored = other.state()
    assert all(torch.equal(t, restored[module][name]) for module, own in state.items() for name, t in own.items())
    assert torch.allclose(predict(plain), predict(first), atol=1e-4)


def test_it_starts_from_no_file(load: Load, tmp_path: Path) -> None:
    trained = attach_adapter(load("sd1"), pissa_of())
    with pytest.raises(CheckpointError, match="the base's own weights"):
        trained.weights_from({})


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (16, 8, 3, 3)])
@pytest.mark.parametrize("rank", [1, 4, 60])
def test_the_start_is_the_best_approximation_of_a_weight_by_its_rank(shape: tuple[int, ...], rank: int) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    # As in trained layers, few directions are strong.
    weight *= torch.logspace(0, -2, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    best = u[:, :rank] * s[:rank] @ v[:rank]

    a, b = pissa.principal_factors(weight.half(), rank=rank, scale=0.5)

    assert (a.shape[0], b.shape[1]) == (rank, rank)
    assert torch.allclose(0.5 * b @ a, best, atol=2e-3)
    # Both factors have the same share of it.
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), atol=1e-4)


def test_a_quantized_base_leaves_its_factors_as_they_are(load: Load) -> None:
    method = pissa_of(text_encoder=False, targets=Targets.ATTENTION)
    first, second = load("sd1"), load("sd1")
    trained, lora = attach_adapter(first, method), attach_adapter(second, method.exported)
    train_a_little(trained)
    lora.load(trained.state())
    for base, each in ((first, trained), (second, lora)):
        quantize(base.denoiser, Quantization.INT8, trained={id(p) for _name, p in each.named_parameters()}, device=CPU)
    assert torch.allclose(predict(first), predict(second), atol=1e-4)


def test_its_memory_is_that_of_a_lora_and_of_what_it_started_from(load: Load) -> None:
    needs: dict[LoraInit, MemoryNeed] = {}
    settings = StepSettings(precision=Precision.FP32, resolution=16, state_bytes=8.0)
    # What the step and the encoding take is of no matter here, and takes seconds to predict.
    known = MemoryNeed(weights=0, optimizer=0, step=1)
    for init in LoraInit:
        base = load("sd1")
        trained = dict(
            attach_adapter(base, method_of(MethodKind.LORA, init=init, text_encoder=False)).named_parameters()
        )
        needs[init] = predict_memory(base, trained, settings, known)
    count = sum(parameter.numel() for parameter in trained.values())
    assert needs[LoraInit.PISSA].weights - needs[LoraInit.GAUSSIAN].weights == 4 * count
    assert needs[LoraInit.PISSA].optimizer == needs[LoraInit.GAUSSIAN].optimizer == 8 * count
