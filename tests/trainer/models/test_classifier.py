"""Pretrained classifiers: loading, the new head, named blocks, frozen layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.trainer.random_classifier import make_random_convnext, make_random_resnet, make_random_vit
from trainer.errors import CheckpointError, MissingModelError
from trainer.models.classifier import ClassifierWeights, LoadedClassifier, load_classifier, set_training
from trainer.protocol.settings import Base

NAMES = ("cat", "dog", "newt")


def load(folder: Path | str, *, seed: int = 1, dropout: float = 0.0) -> LoadedClassifier:
    return load_classifier(Base(source=str(folder)), NAMES, head_seed=seed, dropout=dropout)


def weights_of(classifier: LoadedClassifier) -> ClassifierWeights:
    return ClassifierWeights(classifier, resolution=classifier.resolution)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_resnet(tmp_path_factory.mktemp("base") / "resnet", labels=3)


@pytest.fixture(scope="module")
def resnet_of_10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of ten classes, and not of three."""
    return make_random_resnet(tmp_path_factory.mktemp("base") / "resnet")


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (make_random_resnet, ["embedder", *(f"encoder.stages.{n}" for n in range(4))]),
        (make_random_vit, ["embeddings", "layers.0", "layers.1", "layernorm"]),
        (make_random_convnext, ["embeddings", "encoder.stages.0", "encoder.stages.1", "layernorm"]),
    ],
)
def test_each_weight_belongs_to_exactly_one_block(
    make: Callable[[Path], Path], blocks: list[str], tmp_path: Path
) -> None:
    classifier = load(make(tmp_path / "base"))
    trained = weights_of(classifier)
    assert list(trained.blocks) == [*(f"backbone.{block}" for block in blocks), "head"]
    names = [name for name, _ in trained.named_parameters()]
    assert all(sum(name.startswith(f"{block}.") for block in trained.blocks) == 1 for name in names)
    assert sum(p.numel() for _, p in trained.named_parameters()) == sum(
        p.numel() for p in classifier.model.parameters()
    )
    images_BCHW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert classifier.logits(images_BCHW).shape == (2, 3)


def test_the_head_is_new_and_the_backbone_is_pretrained(resnet: Path) -> None:
    stored = load_file(resnet / "model.safetensors")
    # The pretrained head has as many classes, so it would fit.
    weights = weights_of(load(resnet)).state()
    assert not torch.equal(weights["head"]["1.weight"], stored["classifier.1.weight"])
    assert all(torch.equal(tensor, stored[f"resnet.{name}"]) for name, tensor in weights["backbone"].items())
    assert torch.equal(weights["head"]["1.weight"], weights_of(load(resnet)).state()["head"]["1.weight"])
    assert not torch.equal(weights["head"]["1.weight"], weights_of(load(resnet, seed=2)).state()["head"]["1.weight"])


def test_loading_leaves_the_random_state_unchanged(resnet_of_10: Path) -> None:
    # transformers draws a new head for another number of classes.
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(resnet_of_10)
    assert torch.equal(torch.rand(3), expected)


def test_images_are_normalized_with_the_mean_and_std_of_the_base(resnet: Path) -> None:
    classifier = load(resnet)
    images_BCHW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected_BK = classifier.model(pixel_values=(images_BCHW / 255 - mean) / std).logits
    assert torch.allclose(classifier.logits(images_BCHW), expected_BK, atol=1e-5)


def test_frozen_blocks_and_batch_norms_stay_in_eval_mode(resnet: Path) -> None:
    classifier = load(resnet)
    weights = weights_of(classifier)
    for name, parameter in weights.named_parameters():
        parameter.requires_grad_(name.startswith(("head", "backbone.encoder.stages.3")))
    statistics = {name: buffer.clone() for name, buffer in classifier.model.named_buffers()}
    set_training(classifier.model, True)

    stages = classifier.model.resnet.encoder.stages
    assert classifier.head.training
    assert stages[3].training
    assert not stages[2].training
    assert not classifier.model.resnet.embedder.training
    assert not any(m.training for m in classifier.model.modules() if isinstance(m, nn.BatchNorm2d))
    classifier.logits(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)).sum().backward()
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in classifier.model.named_buffers())
    norm = stages[3].layers[0].layer[0].normalization
    assert norm.weight.grad is not None
    set_training(classifier.model, False)
    assert not any(module.training for module in classifier.model.modules())


def test_dropout_zeroes_features_and_keeps_their_mean(resnet: Path) -> None:
    classifier = load(resnet, dropout=0.5)
    classifier.model.train()
    features: list[torch.Tensor] = []
    classifier.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].flatten(1)))
    images_BCHW = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        set_training(classifier.model, True)
        classifier.logits(images_BCHW, range(64))
        classifier.logits(images_BCHW)
    dropped, whole = features
    kept = dropped != 0
    assert 0.45 < kept[whole != 0].float().mean().item() < 0.55
    assert torch.allclose(dropped[kept], 2 * whole[kept])


def test_a_checkpoint_restores_weights_and_batch_norm_statistics(resnet: Path, tmp_path: Path) -> None:
    one, other = weights_of(load(resnet)), weights_of(load(resnet, seed=2))
    with torch.no_grad():
        for _, parameter in one.named_parameters():
            parameter.mul_(1.1)
        one.modules["backbone"].get_buffer("embedder.embedder.normalization.running_mean").add_(1)
    other.load(one.state())
    state, loaded = one.state(), other.state()
    assert all(torch.equal(tensor, loaded[m][name]) for m, tensors in state.items() for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="another classifier"):
        weights_of(load(make_random_vit(tmp_path / "vit"))).load(state)
    with pytest.raises(CheckpointError, match="another classifier"):
        one.load({"head": state["head"]})


def damaged_copy(resnet: Path, folder: Path, damage: str) -> Path:
    shutil.copytree(resnet, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "bad weights":
        weights.write_bytes(b"not weights")
    elif damage == "missing weight":
        state = load_file(weights)
        del state["resnet.embedder.embedder.convolution.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    elif damage == "text model":
        settings = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**settings, "model_type": "bert"}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("bad weights", "cannot be loaded as an image classifier"),
        ("missing weight", "1 of its weights are missing"),
        ("text model", "cannot be loaded as an image classifier"),
    ],
)
def test_a_folder_that_is_not_a_complete_classifier_is_refused(
    resnet_of_10: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    with pytest.raises(MissingModelError, match=reason):
        load(damaged_copy(resnet_of_10, tmp_path / "base", damage))


def test_a_diffusion_model_is_refused(random_base: Path) -> None:
    with pytest.raises(MissingModelError, match=r"has no config\.json"):
        load(random_base)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("microsoft/resnet-18", "Hugging Face cannot be reached"),
        ("tiny", "no image classifier at tiny"),
        ("/nowhere", "no image classifier at /nowhere"),
    ],
)
def test_a_missing_classifier_is_refused(source: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingModelError, match=reason):
        load(source)


def test_a_gated_classifier_is_reported_as_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageClassification

    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", refuse)
    with pytest.raises(MissingModelError, match="gated"):
        load("someone/secret")
