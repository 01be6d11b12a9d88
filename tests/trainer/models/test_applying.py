"""Trained models applied to a base at a strength, from checkpoints and from every exported file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.models.random_adapters import FAMILIES_AND_KINDS, Exports, Load, method_of, predict, train_a_little
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import LoadedBase
from trainer.models.methods import applying
from trainer.models.methods.adapter_files import PEFT_PREFIX
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.applying import (
    AdapterChange,
    Change,
    ChangeableWeights,
    FileChange,
    ModelChange,
    WordChange,
)
from trainer.models.methods.inversion import attach_inversion
from trainer.models.methods.starting_files import read_start
from trainer.models.methods.trained import Trained, Weights
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Method, MethodKind

#: Relative to the largest change of a prediction: files of kohya's kind hold fp16.
TOLERANCE = 0.02
CPU = torch.device("cpu")


def changeable(base: LoadedBase) -> ChangeableWeights:
    return ChangeableWeights(base, CPU, torch.float32)


def weights_of_file(path: Path, trained: Trained) -> Weights:
    return trained.weights_from(read_start(path))


def applied(weights: ChangeableWeights, base: LoadedBase, change: Change, strength: float) -> Tensor:
    assert not isinstance(change, WordChange)
    weights.apply(change, strength)
    return predict(base)


def trained_adapter(load: Load, family: str, method: Method) -> tuple[LoadedBase, Trained]:
    base = load(family)
    trained = attach_adapter(base, method, lambda: load(family))
    train_a_little(trained)
    for module in trained.modules.values():
        module.eval()
    return base, trained


def assert_close(found: Tensor, expected: Tensor, untrained: Tensor, name: str) -> None:
    effect = float((expected - untrained).abs().max())
    assert effect > 1e-4
    assert float((found - expected).abs().max()) <= TOLERANCE * effect + 1e-5, name


@pytest.mark.parametrize(("family", "kind"), FAMILIES_AND_KINDS)
def test_every_file_and_the_checkpoint_of_an_adapter_have_its_effect_and_leave_no_trace(
    load: Load, exported: Exports, family: str, kind: MethodKind
) -> None:
    adapter, fresh = exported(family, kind), load(family)
    weights = changeable(fresh)
    untrained = predict(fresh)
    checkpoint = AdapterChange(method=adapter.method, weights=lambda _: adapter.state)
    found: dict[str, Tensor] = {"checkpoint": applied(weights, fresh, checkpoint, 1.0)}
    # What a job reads of each is in test_starting_files.py.
    *_, path = (file.path for file in adapter.files if file.format is not ExportFormat.DIFFERENCE)
    own = AdapterChange(method=adapter.method, weights=partial(weights_of_file, path))
    found[f"{path.name} of a job"] = applied(weights, fresh, own, 1.0)
    for file in adapter.files:
        if file.path.is_file():
            found[f"{file.path.name} alone"] = applied(weights, fresh, FileChange(path=file.path), 1.0)
    weights.apply(None, 0.0)

    for name, prediction in found.items():
        assert_close(prediction, adapter.after, untrained, name)
    assert torch.equal(predict(fresh), untrained)
    assert not any("lora" in name or "hada" in name for name, _module in fresh.denoiser.named_modules())


def test_strengths_scale_what_an_adapter_adds_to_each_weight(load: Load) -> None:
    method = method_of(MethodKind.LORA)
    base, trained = trained_adapter(load, "sd1", method)
    state = trained.state()
    fresh = load("sd1")
    weights = changeable(fresh)
    change = AdapterChange(method=method, weights=lambda _: state)
    halved = {
        name: {own: tensor / 2 if "lora_B" in own else tensor for own, tensor in tensors.items()}
        for name, tensors in state.items()
    }
    untrained = predict(fresh)

    assert torch.equal(applied(weights, fresh, change, 0.0), untrained)
    half = applied(weights, fresh, change, 0.5)
    full = applied(weights, fresh, change, 1.0)
    more = applied(weights, fresh, change, 1.5)

    trained.load(halved)
    assert torch.allclose(half, predict(base), atol=1e-5)
    distances = [float((each - untrained).abs().mean()) for each in (half, full, more)]
    assert distances == sorted(distances)


@pytest.mark.parametrize(("most_bytes", "attached"), [(applying._MOST_KEPT_BYTES, 1), (0, 3)])
def test_an_adapter_is_attached_once_for_all_strengths_unless_it_is_large(
    load: Load, monkeypatch: pytest.MonkeyPatch, most_bytes: int, attached: int
) -> None:
    monkeypatch.setattr(applying, "_MOST_KEPT_BYTES", most_bytes)
    method, strengths = Method(kind=MethodKind.LORA, rank=2), (0.5, 0, 0.8, 1)
    _base, trained = trained_adapter(load, "sd1", method)
    state, asked = trained.state(), list[Trained]()

    def weights_for(attached: Trained) -> Weights:
        asked.append(attached)
        return state

    def change() -> AdapterChange:
        return AdapterChange(method=method, weights=weights_for)

    fresh = load("sd1")
    weights, one = changeable(fresh), change()
    alone = [applied(weights, fresh, change(), strength) for strength in strengths]
    asked.clear()
    assert all(torch.equal(applied(weights, fresh, one, s), alone[i]) for i, s in enumerate(strengths))
    assert len(asked) == attached
    weights.apply(None, 0)
    weights.apply(one, 0.5)
    assert len(asked) == attached + 1, "nothing is kept for another job"


@pytest.mark.parametrize("kind", [MethodKind.DORA, MethodKind.IA3, MethodKind.OFT])
def test_half_of_a_change_lies_between_the_weights_for_other_kinds_too(
    load: Load, exported: Exports, kind: MethodKind
) -> None:
    adapter, fresh = exported("sd1", kind), load("sd1")
    weights = changeable(fresh)
    change = AdapterChange(method=adapter.method, weights=lambda _: adapter.state)
    before = {name: tensor.clone() for name, tensor in fresh.denoiser.named_parameters()}
    weights.apply(change, 1.0)
    full = {name: tensor.clone() for name, tensor in fresh.denoiser.named_parameters()}

    weights.apply(change, 0.5)

    changed = [name for name in before if not torch.equal(before[name], full[name])]
    assert changed
    for name, tensor in fresh.denoiser.named_parameters():
        assert torch.allclose(tensor, (before[name] + full[name]) / 2, atol=1e-6), name


def test_a_whole_model_is_interpolated_and_the_base_comes_back(load: Load) -> None:
    other, fresh = load("sd1"), load("sd1")
    with torch.no_grad():
        for parameter in other.denoiser.parameters():
            parameter.mul_(1.05)
    theirs = {"unet": {name: parameter.data for name, parameter in other.denoiser.named_parameters()}}
    weights, untrained = changeable(fresh), predict(fresh)
    change = ModelChange(weights=lambda: theirs)

    # In another memory layout.
    assert torch.allclose(applied(weights, fresh, change, 1.0), predict(other), atol=1e-5)
    assert not torch.equal(applied(weights, fresh, change, 0.5), untrained)
    assert torch.equal(applied(weights, fresh, change, 0.0), untrained)


def test_a_word_is_known_for_a_while(load: Load) -> None:
    method = Method(kind=MethodKind.TEXTUAL_INVERSION, vectors=2)
    taught = load("sdxl")
    inversion = attach_inversion(taught, method, "momo")
    train_a_little(inversion)
    state = inversion.state()
    fresh = load("sdxl")
    before = fresh.encode_text(["a photo of momo"])["caption_BTD"]

    for _again in range(2):
        with WordChange(method=method, trigger="momo", weights=lambda _: state).known(fresh):
            known = fresh.encode_text(["a photo of momo"])["caption_BTD"]
        assert torch.equal(known, taught.encode_text(["a photo of momo"])["caption_BTD"])
        assert torch.equal(fresh.encode_text(["a photo of momo"])["caption_BTD"], before)
    assert not torch.equal(known, before)


@pytest.fixture
def lora_file(exported: Exports) -> Path:
    """The file of a LoRA on SD 1 by kohya's names."""
    _diffusers, file = exported("sd1", MethodKind.LORA).files
    return file.path


def test_a_file_without_alphas_and_one_of_peft_are_read(load: Load, lora_file: Path, tmp_path: Path) -> None:
    tensors = load_file(lora_file)
    scaled = {
        name: tensor * 0.5 if name.endswith("lora_up.weight") else tensor
        for name, tensor in tensors.items()
        if not name.endswith(".alpha")
    }
    save_file(scaled, tmp_path / "no-alphas.safetensors")
    peft = {
        f"{PEFT_PREFIX}{name.removeprefix('unet.')}": tensor
        for name, tensor in load_file(lora_file.parent / "diffusers/pytorch_lora_weights.safetensors").items()
        if name.startswith("unet.")
    }
    save_file(peft, tmp_path / "peft.safetensors")
    fresh = load("sd1")
    weights = changeable(fresh)
    expected = applied(weights, fresh, FileChange(path=lora_file), 1.0)

    # alpha is half of the rank.
    without = applied(weights, fresh, FileChange(path=tmp_path / "no-alphas.safetensors"), 1.0)
    assert torch.allclose(without, expected, atol=1e-5)
    weights.apply(FileChange(path=tmp_path / "peft.safetensors"), 1.0)
    assert not weights.changes_text()
    weights.apply(FileChange(path=lora_file), 1.0)
    assert weights.changes_text()


def test_a_file_for_another_model_is_refused_and_the_base_stays(load: Load, exported: Exports) -> None:
    _diffusers, file = exported("sdxl", MethodKind.LORA).files
    fresh = load("sd1")
    weights, untrained = changeable(fresh), predict(fresh)

    with pytest.raises(BadSpecError, match=r"which this base does not have.*Choose the base"):
        weights.apply(FileChange(path=file.path), 1.0)
    assert torch.equal(predict(fresh), untrained)


@pytest.mark.parametrize("broken", ["shape", "kind"])
def test_a_file_with_layers_of_another_shape_or_kind_is_refused(
    load: Load, lora_file: Path, tmp_path: Path, broken: str
) -> None:
    tensors, path = load_file(lora_file), tmp_path / "broken.safetensors"
    last = [name for name in tensors if name.endswith("lora_down.weight")][-1]
    if broken == "shape":
        tensors[last] = torch.zeros(4, 5)
    else:
        tensors[last.replace("lora_down.weight", "oft_blocks")] = torch.zeros(4, 4)
    save_file(tensors, path)
    fresh = load("sd1")
    weights, untrained = changeable(fresh), predict(fresh)

    with pytest.raises(BadSpecError, match="does not"):
        weights.apply(FileChange(path=path), 1.0)
    assert torch.equal(predict(fresh), untrained)


def test_a_job_whose_weights_do_not_fit_leaves_the_base_as_it_was(load: Load) -> None:
    method = method_of(MethodKind.LORA)
    fresh = load("sd1")
    weights, untrained = changeable(fresh), predict(fresh)

    with pytest.raises(CheckpointError):
        weights.apply(AdapterChange(method=method, weights=lambda _: {"unet": {}}), 1.0)

    assert torch.equal(predict(fresh), untrained)
    assert not hasattr(fresh.denoiser, "peft_config")
