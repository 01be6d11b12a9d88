"""The classifier task: training, metrics, samples, exports, and refused datasets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tests.trainer.drawn_classes import write_classes
from tests.trainer.random_classifier import SIDE, make_random_resnet, make_random_vit
from trainer.dataset.buckets import fit_to_bucket
from trainer.dataset.split.mixing import read_mixture
from trainer.errors import BadSpecError, DatasetError, ExportError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.tasks.classification import ClassificationTask, class_names, loss_weights
from trainer.tasks.examples import Examples, ImageView

TRAIN, VALIDATION, TEST = Split.TRAIN, Split.VALIDATION, Split.TEST
COUNTS = {TRAIN: {"circle": 24, "square": 24}, VALIDATION: {"circle": 12, "square": 12}, TEST: {"circle": 2}}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_resnet(tmp_path_factory.mktemp("base") / "resnet")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("shapes") / "prepared", COUNTS)


def make_task(dataset: Path, base: Path, **changes: Any) -> ClassificationTask:
    quiet: dict[str, Any] = {"augmentation": {"preset": "none", "variants": 4}}
    spec = spec_from_preset("classifier", dataset=str(dataset), base=str(base), changes={**quiet, **changes})
    return ClassificationTask(spec, read_mixture(spec), torch.device("cpu"))


def encode(task: ClassificationTask) -> dict[Split, Examples]:
    return task.encode(task.resolution, lambda done, total: None)


def learn(
    task: ClassificationTask, examples: Examples, *, epochs: int, names: str = "head", rate: float = 1e-2
) -> None:
    """Train with a plain full-batch loop, which calls the task as the recipe does."""
    chosen = [(name, parameter) for name, parameter in task.trained.named_parameters() if name.startswith(names)]
    for _, parameter in task.trained.named_parameters():
        parameter.requires_grad_(False)
    for _, parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([parameter for _, parameter in chosen], lr=rate)
    views = [ImageView(index=index) for index in range(len(examples.members))]
    for epoch in range(epochs):
        task.train_mode(True)
        loss_B = task.train_loss(examples, views, [epoch * len(views) + index for index in range(len(views))])
        loss_B.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    task.train_mode(False)


@pytest.mark.slow
def test_a_head_on_a_frozen_backbone_learns_and_its_export_predicts_the_same(
    shapes: Path, resnet: Path, tmp_path: Path
) -> None:
    task = make_task(shapes, resnet)
    splits = encode(task)
    before = task.trained.state()["backbone"]
    learn(task, splits[TRAIN], epochs=30, rate=3e-2)

    metrics = task.metrics(splits[VALIDATION], lambda: None)
    assert metrics["accuracy"] > 0.9
    after = task.trained.state()["backbone"]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    (file,) = task.trained.export(tmp_path, "shapes", {})
    (verified,) = task.verify([file], splits[VALIDATION], lambda _done, _total: None)
    assert verified.max_difference < 1e-4
    # As users load it: with plain transformers, from images of the original size.
    model = AutoModelForImageClassification.from_pretrained(file.path)
    processor = AutoImageProcessor.from_pretrained(file.path, backend="pil")
    images = splits[VALIDATION].images
    correct = 0
    for image in images:
        with PILImage.open(shapes / str(image.path)) as opened, torch.no_grad():
            logits_1K = model(**processor(images=opened.convert("RGB"), return_tensors="pt")).logits
        correct += model.config.id2label[int(logits_1K.argmax())] == image.class_name
    assert correct / len(images) > 0.9
    assert json.loads((file.path / "labels.json").read_text(encoding="utf-8")) == ["circle", "square"]


def test_the_untrained_head_has_a_loss_of_ln_k(shapes: Path, resnet: Path) -> None:
    task = make_task(shapes, resnet)
    examples = encode(task)[VALIDATION]
    losses = task.frozen_losses(examples, range(24), [0] * 24, [0] * 24)
    assert sum(loss.plain for loss in losses) / 24 == pytest.approx(math.log(2), rel=0.1)


def test_the_plain_loss_is_cross_entropy_and_the_training_loss_is_smoothed_and_weighted(
    tmp_path: Path, resnet: Path
) -> None:
    counts = {TRAIN: {"circle": 6, "square": 2}, VALIDATION: {"circle": 2, "square": 2}}
    dataset = write_classes(tmp_path / "prepared", counts)
    task = make_task(dataset, resnet, classifier={"label_smoothing": 0.1, "class_weights": "balanced"})
    examples = encode(task)[VALIDATION]
    indices = range(4)
    losses = task.frozen_losses(examples, indices, [0] * 4, [0] * 4)

    with torch.no_grad():
        logits_BK = task.classifier.logits(examples.inputs([ImageView(index=index) for index in indices]))
    logs_BK = logits_BK - logits_BK.logsumexp(1, keepdim=True)
    for index, loss in enumerate(losses):
        own = ("circle", "square").index(examples.images[index].class_name)
        assert loss.plain == pytest.approx(-float(logs_BK[index, own]), rel=1e-5)
        smoothed = 0.9 * -float(logs_BK[index, own]) + 0.1 * -float(logs_BK[index].mean())
        # 8 images of 2 classes, 6 and 2 of each: 8 / (2 * 6) and 8 / (2 * 2).
        assert loss.training == pytest.approx(smoothed * (2 / 3, 2.0)[own], rel=1e-5)
    assert cross_entropy(logits_BK[:1], torch.tensor([0])).item() == pytest.approx(losses[0].plain, rel=1e-5)


def test_balanced_class_weights_have_a_mean_of_1(tmp_path: Path) -> None:
    dataset = write_classes(tmp_path / "prepared", {TRAIN: {"a": 6, "b": 3, "c": 1}, VALIDATION: {"a": 1}})
    spec = spec_from_preset("classifier", dataset=str(dataset), changes={"classifier": {"class_weights": "balanced"}})
    mixture = read_mixture(spec)
    weights = loss_weights(mixture, spec.classifier.class_weights, 1.0)[:10]
    assert weights == pytest.approx([10 / 18] * 6 + [10 / 9] * 3 + [10 / 3])
    assert sum(weights) / 10 == pytest.approx(1.0)


def test_dropout_depends_on_the_seed_of_each_image_and_not_on_its_batch(shapes: Path, resnet: Path) -> None:
    task = make_task(shapes, resnet, classifier={"dropout": 0.5})
    examples = encode(task)[TRAIN]
    views = [ImageView(index=index) for index in range(4)]
    learn(task, examples, epochs=5)
    task.train_mode(True)
    together_B = task.train_loss(examples, views, [7, 8, 9, 10])
    apart_B = torch.cat(
        [task.train_loss(examples, [view], [seed]) for view, seed in zip(views, (7, 8, 9, 10), strict=True)]
    )
    assert torch.allclose(together_B, apart_B, atol=1e-5)
    assert not torch.allclose(together_B, task.train_loss(examples, views, [1, 2, 3, 4]), atol=1e-3)
    task.train_mode(False)
    evaluated_B = task.train_loss(examples, views, [7, 8, 9, 10])
    assert torch.equal(evaluated_B, task.train_loss(examples, views, [1, 2, 3, 4]))


def test_running_the_base_alone_restores_the_untrained_head(shapes: Path, resnet: Path) -> None:
    task = make_task(shapes, resnet)
    examples = encode(task)[VALIDATION]

    def losses() -> list[float]:
        return [loss.plain for loss in task.frozen_losses(examples, range(6), [0] * 6, [0] * 6)]

    untrained = losses()
    learn(task, encode(task)[TRAIN], epochs=5, names="", rate=1e-3)
    trained = losses()
    with task.base_only():
        assert losses() == untrained
    assert losses() == trained != untrained


def test_metrics_of_a_constant_guess_follow_the_formulas(tmp_path: Path, resnet: Path) -> None:
    counts = {TRAIN: {"circle": 3, "square": 3}, VALIDATION: {"circle": 3, "square": 1}}
    task = make_task(write_classes(tmp_path / "prepared", counts), resnet)
    examples = encode(task)[VALIDATION]
    with torch.no_grad():
        task.classifier.head[1].bias.copy_(torch.tensor([100.0, -100.0]))  # type: ignore[index]
    # All predictions are circle: recall 1 and 0; F1 of circle 2 * 0.75 / 1.75, of square 0.
    assert task.metrics(examples, lambda: None) == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": 0.5, "f1": (2 * 0.75 / 1.75) / 2}
    )
    sentence = task.draw_chart(examples, tmp_path / "confusion.png", lambda: None)
    assert sentence is not None
    assert sentence.startswith("3 of 4 images are classified correctly (75 %).")
    assert "square is taken for circle (1)" in sentence
    with PILImage.open(tmp_path / "confusion.png") as chart:
        assert chart.width > 300


def test_an_empty_split_has_no_metrics_and_no_chart(tmp_path: Path, resnet: Path) -> None:
    counts = {TRAIN: {"circle": 3, "square": 3}, VALIDATION: {"circle": 1, "square": 1}}
    task = make_task(write_classes(tmp_path / "prepared", counts), resnet)
    examples = encode(task)[TEST]
    assert task.metrics(examples, lambda: None) == {}
    assert task.draw_chart(examples, tmp_path / "confusion.png", lambda: None) is None


def test_samples_cover_all_classes_and_are_sharded_over_ranks(shapes: Path, resnet: Path, tmp_path: Path) -> None:
    task = make_task(shapes, resnet)
    examples = encode(task)[VALIDATION]
    shown = task.draw(examples, tmp_path, shard=slice(1, None, 2), progress=lambda done, total: None)
    assert [each.prompt for each in shown] == ["circle", "square"] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "3.png", "5.png", "7.png"]


def test_images_are_center_cropped_and_only_training_images_have_variants(tmp_path: Path, resnet: Path) -> None:
    counts = {TRAIN: {"circle": 2, "square": 2}, VALIDATION: {"circle": 1, "square": 1}}
    dataset = write_classes(tmp_path / "prepared", counts)
    task = make_task(dataset, resnet, augmentation={"preset": "light", "variants": 2})
    progress: list[tuple[int, int]] = []
    splits = task.encode(SIDE, lambda done, total: progress.append((done, total)))
    assert splits[TRAIN].variant_counts == (3, 3, 3, 3)
    assert splits[VALIDATION].variant_counts == (1, 1)
    assert progress[-1] == (13, 14)
    (pixels_CHW,) = splits[TRAIN].inputs([ImageView(index=0)])
    with PILImage.open(dataset / str(splits[TRAIN].images[0].path)) as opened:
        expected = fit_to_bucket(opened.convert("RGB"), (SIDE, SIDE))
    assert pixels_CHW.permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
    variant_CHW = splits[TRAIN].inputs([ImageView(index=0, variant=1)])[0]
    assert not torch.equal(variant_CHW, pixels_CHW)
    # The second time everything is in the cache.
    progress.clear()
    task.encode(SIDE, lambda done, total: progress.append((done, total)))
    assert progress == []


def test_a_vision_transformer_refuses_another_resolution(shapes: Path, tmp_path: Path) -> None:
    vit = make_random_vit(tmp_path / "vit")
    with pytest.raises(BadSpecError, match="reads images of 64 px only"):
        make_task(shapes, vit, training={"resolution": 128})
    assert make_task(shapes, vit, stages=[], training={"epochs": 2}).resolution == 64


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({TRAIN: {"": 4}, VALIDATION: {"": 2}}, "No image has a class."),
        ({TRAIN: {"a": 3, "": 1}, VALIDATION: {"b": 1, "": 1}}, "2 of 6 images have no class: prepared/4.png and "),
        ({TRAIN: {"a": 3}, VALIDATION: {"a": 1}}, "All 4 images are of one class, a."),
        ({TRAIN: {"a": 3, "b": 1}, VALIDATION: {"c": 1}}, "No training images of: c."),
        ({TRAIN: {"a": 3}, VALIDATION: {"a": 1}, TEST: {"b": 1}}, "No training images of: b."),
    ],
)
def test_datasets_with_unusable_classes_are_refused(
    counts: Mapping[Split, Mapping[str, int]], sentence: str, tmp_path: Path
) -> None:
    dataset = write_classes(tmp_path / "prepared", counts)
    mixture = read_mixture(spec_from_preset("classifier", dataset=str(dataset)))
    with pytest.raises(DatasetError, match=sentence):
        class_names(mixture.members)


def test_verification_detects_a_damaged_export(shapes: Path, resnet: Path, tmp_path: Path) -> None:
    task = make_task(shapes, resnet)
    examples = encode(task)[VALIDATION]
    (file,) = task.trained.export(tmp_path, "shapes", {})
    weights = load_file(file.path / "model.safetensors")
    weights["classifier.1.bias"][0] += 1
    save_file(weights, file.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="differs from the trained classifier"):
        task.verify([file], examples, lambda _done, _total: None)
    config = json.loads((file.path / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "square", "1": "circle"}
    (file.path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ExportError, match="has other classes"):
        task.verify([file], examples, lambda _done, _total: None)


def test_class_names_come_from_the_report(shapes: Path, resnet: Path) -> None:
    task = make_task(shapes, resnet)
    assert task.class_names == ("circle", "square")
    assert {image.class_name for image in read_report(shapes).images} == set(task.class_names)
    assert task.describe() == {"classes": ["circle", "square"]}
