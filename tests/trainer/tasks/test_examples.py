"""Encoded examples: variants of training images, the encoding cache, and shuffled captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from tests.trainer.conftest import SharedFolder
from tests.trainer.dataset.prepared_folders import Drawn, drawn, write_dataset
from tests.trainer.random_base import make_random_sdxl
from trainer.dataset.images.decoding import open_for_bucket
from trainer.dataset.split.mixing import read_mixture
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.augmentation import Augmentation
from trainer.protocol.report import Split
from trainer.protocol.spec import make_spec
from trainer.protocol.training_settings import Precision, Training
from trainer.tasks import encoding_cache
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.examples import Examples, ImageView, tag_orders, without_separator
from trainer.tasks.variant_preview import preview_variants

TAGS = "momo, red, big, round, shiny"
SHUFFLED = Training(tag_shuffle=True)

Encode = Callable[..., dict[Split, Examples]]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write a main dataset of wide and square images, and one of class images."""
    main = [
        *(drawn(seed, size=(96, 64) if seed % 2 else (64, 64), caption=TAGS) for seed in range(1, 5)),
        drawn(5, Split.VALIDATION, caption=TAGS),
        drawn(6, Split.TEST, caption=TAGS),
    ]
    others = [drawn(11, caption="a|||b, c, d"), drawn(12, Split.VALIDATION)]
    return write_dataset(tmp_path / "main", main), write_dataset(tmp_path / "class", others)


@pytest.fixture(scope="module")
def sdxl(shared_folder: SharedFolder) -> Path:
    return shared_folder("sdxl", make_random_sdxl)


@pytest.fixture
def task(folders: tuple[Path, Path], random_base: Path) -> Callable[..., DiffusionTask]:
    def make(**settings: Any) -> DiffusionTask:
        mix = [{"dataset": str(folders[1]), "role": "regularization"}]
        spec = make_spec({"dataset": str(folders[0]), "base": {"source": str(random_base)}, "mix": mix, **settings})
        return DiffusionTask(spec, read_mixture(spec), torch.device("cpu"))

    return make


def encode(task: DiffusionTask) -> dict[Split, Examples]:
    return task.encode(task.resolution, lambda done, total: None)


AUGMENTED = {"augmentation": {"preset": "photo", "variants": 3}}


def test_only_training_images_have_variants_and_class_images_have_none(
    task: Callable[..., DiffusionTask],
) -> None:
    examples = encode(task(**AUGMENTED))

    assert examples[Split.TRAIN].variant_counts == (4, 4, 4, 4, 1, 1)
    assert examples[Split.VALIDATION].variant_counts == (1,)
    assert examples[Split.TEST].variant_counts == (1,)


def test_augmentation_leaves_the_latents_of_originals_unchanged(task: Callable[..., DiffusionTask]) -> None:
    plain, augmented = encode(task()), encode(task(**AUGMENTED))

    for split in Split:
        for index in range(len(plain[split].images)):
            view = [ImageView(index=index)]
            assert torch.equal(plain[split].inputs(view), augmented[split].inputs(view))


def test_variants_have_different_latents(task: Callable[..., DiffusionTask]) -> None:
    train = encode(task(**AUGMENTED))[Split.TRAIN]

    all_of_it = [train.inputs([ImageView(index=index, variant=number)]) for index in range(4) for number in range(4)]

    for one in range(len(all_of_it)):
        for other in range(one):
            assert all_of_it[one].shape != all_of_it[other].shape or not torch.equal(all_of_it[one], all_of_it[other])


def test_latents_of_a_variant_are_those_of_its_augmented_image(
    task: Callable[..., DiffusionTask], folders: tuple[Path, Path]
) -> None:
    """Each view refers to the latents of its own image and variant."""
    made = task(**AUGMENTED)
    train = encode(made)[Split.TRAIN]
    encoder = encoding_cache.Encoder(base=made.base, device=made.device, fingerprint="")

    for index, image in enumerate(train.images[:4]):
        original = open_for_bucket(folders[0], image.path or "", train.sizes[index])
        variants = encoding_cache.variants_of(original, image, train.sizes[index], made.spec.augmentation, 0)
        for number, variant in enumerate(variants, start=1):
            stored = train.inputs([ImageView(index=index, variant=number)])[0]
            assert torch.equal(stored, encoder._encode(variant))


def image_progress(progress: list[int]) -> list[int]:
    """Return the progress of the images; the captions follow and count from 0 again."""
    starts = [index for index, done in enumerate(progress) if done == 0]
    return progress[: starts[1]] if len(starts) > 1 else progress


@pytest.mark.slow
def test_variants_are_encoded_again_only_for_another_setting_or_seed(
    task: Callable[..., DiffusionTask], folders: tuple[Path, Path]
) -> None:
    def encoded(**settings: Any) -> int:
        progress: list[int] = []
        made = task(**settings)
        made.encode(made.resolution, lambda done, total: progress.append(done))
        of_images = image_progress(progress)
        assert of_images == list(range(len(of_images)))
        return len(of_images)

    assert encoded(**AUGMENTED) == 8 + 4 * 3
    assert encoded(**AUGMENTED) == 0
    assert encoded() == 0
    assert encoded(augmentation={"preset": "light", "variants": 3}) == 4 * 3
    assert encoded(**AUGMENTED, training={"seed": 1}) == 4 * 3
    assert {path.name.partition("-")[0] for path in (folders[1] / "cache").iterdir()} == {"latents"}


@pytest.mark.slow
def test_a_caption_that_becomes_orientation_sensitive_has_new_variants(
    task: Callable[..., DiffusionTask], folders: tuple[Path, Path]
) -> None:
    encode(task(**AUGMENTED))
    report = folders[0] / "report.json"
    report.write_text(report.read_text(encoding="utf-8").replace("big", "seen from the left"), encoding="utf-8")

    progress: list[int] = []
    made = task(**AUGMENTED)
    made.encode(made.resolution, lambda done, total: progress.append(done))

    assert len(image_progress(progress)) == 4 * 3


def test_only_training_captions_are_shuffled(task: Callable[..., DiffusionTask]) -> None:
    shuffling = task(training={"tag_shuffle": True, "keep_tags": 2, "trigger": "zork"})
    examples = encode(shuffling)
    train = examples[Split.TRAIN]

    for orders in train.caption_orders[:4]:
        assert orders[0] == f"zork, {TAGS}"
        assert len(orders) == len(set(orders)) > 4
        assert all(order.startswith("zork, momo, ") for order in orders)
        assert all(sorted(order.split(", ")) == sorted(orders[0].split(", ")) for order in orders)
    assert train.caption_orders[4][0] == "a, b, c, d"
    assert examples[Split.VALIDATION].caption_orders == ((f"zork, {TAGS}",),)
    assert examples[Split.TEST].caption_orders == ((f"zork, {TAGS}",),)


def test_captions_of_any_length_are_embedded_in_advance(
    task: Callable[..., DiffusionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = "a red egg", " ".join(["red", "egg"] * 50)
    made = task()
    expected = {caption: made.base.encode_text([caption])["caption_BTD"] for caption in (short, long)}
    made.captions.add([short, long])
    monkeypatch.setattr(type(made.base), "encode_text", None)

    alone = {caption: made.captions.embed([caption])["caption_BTD"] for caption in (short, long)}
    together = made.captions.embed([short, long])["caption_BTD"]

    assert all(torch.allclose(alone[caption], expected[caption], atol=1e-5) for caption in expected)
    assert [len(each[0]) for each in alone.values()] == [77, 154]
    assert torch.equal(together, torch.cat([alone[short].repeat(1, 2, 1), alone[long]]))


def test_shuffled_captions_are_embedded_in_advance(
    task: Callable[..., DiffusionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffling = task(training={"tag_shuffle": True})
    train = encode(shuffling)[Split.TRAIN]
    monkeypatch.setattr(type(shuffling.base), "encode_text", None)

    embedded = [
        shuffling.captions.embed([caption])["caption_BTD"] for orders in train.caption_orders for caption in orders
    ]

    assert len({tuple(one.flatten()[:100].tolist()) for one in embedded}) > 4


def test_a_training_image_is_seen_with_all_its_captions(
    task: Callable[..., DiffusionTask], folders: tuple[Path, Path]
) -> None:
    path = folders[0] / "report.json"
    report = read_report(folders[0])
    images = [replace(image, other_captions=("a shape", "left of it")) for image in report.images]
    path.write_text(report.model_copy(update={"images": tuple(images)}).model_dump_json(), encoding="utf-8")

    made = task()
    examples = encode(made)

    train = examples[Split.TRAIN]
    assert [orders[1:] for orders in train.caption_orders[:4]] == [("a shape", "left of it")] * 4
    assert all(len(orders) == 1 for orders in examples[Split.VALIDATION].caption_orders)
    embedded = [made.captions.embed([caption])["caption_BTD"] for caption in train.caption_orders[0]]
    assert not torch.equal(embedded[0], embedded[1])


@pytest.mark.parametrize("images", [20, 1000])
def test_a_share_of_the_tags_is_left_out_but_never_those_in_front(images: int) -> None:
    """As kohya's `caption_tag_dropout_rate`, whatever the number of versions."""
    tags = [f"tag{number}" for number in range(20)]
    captions = [[", ".join([f"momo {image}", *tags])] for image in range(images)]

    versions = tag_orders(captions, Training(tag_dropout=0.25, keep_tags=1))

    kept = [len(version.split(", ")) - 1 for of_image in versions for version in of_image]
    assert 1 - sum(kept) / len(kept) / len(tags) == pytest.approx(0.25, abs=0.02)
    for image, of_image in enumerate(versions):
        assert all(version.startswith(f"momo {image}, ") for version in of_image)
        assert all(version.split(", ")[1:] == sorted(version.split(", ")[1:], key=tags.index) for version in of_image)


def test_tag_orders_are_deterministic_and_fewer_for_many_captions() -> None:
    captions = [[f"{number}, {TAGS}"] for number in range(1000)]

    few, many = tag_orders(captions[:3], SHUFFLED), tag_orders(captions, SHUFFLED)

    assert few == tag_orders(captions[:3], SHUFFLED)
    assert few != tag_orders(captions[:3], SHUFFLED.model_copy(update={"seed": 1}))
    assert max(map(len, few)) == 8
    assert {len(orders) for orders in many} <= {1, 2}
    assert all(few[index][:2] == many[index] for index in range(3))


def test_a_sentence_has_one_order_and_kohyas_separator_is_removed() -> None:
    sentence = "A cat sits on a mat, and it is red."
    assert tag_orders([[sentence]], SHUFFLED) == [(sentence,)]
    assert without_separator("a, b ||| c, d") == "a, b, c, d"
    assert without_separator("a||b") == "a||b"


def test_the_loss_of_class_images_is_weighted(task: Callable[..., DiffusionTask]) -> None:
    def losses(weight: float) -> tuple[Examples, list[float]]:
        made = task(training={"regularization_weight": weight})
        train = encode(made)[Split.TRAIN]
        made.place(Precision.FP32)
        made.train_mode(False)
        views = [ImageView(index=index) for index in (1, 3, 4, 5)]
        assert len({train.sizes[view.index] for view in views}) == 1
        with torch.no_grad():
            return train, made.train_loss(train, views, seeds=[1, 2, 3, 4]).tolist()

    _, plain = losses(1.0)
    train, weighted = losses(0.25)

    assert train.loss_weights == (1.0, 1.0, 1.0, 1.0, 0.25, 0.25)
    assert weighted == pytest.approx([plain[0], plain[1], plain[2] / 4, plain[3] / 4])


@pytest.mark.parametrize("told", ["original", "target"])
def test_sdxl_is_told_the_size_of_an_image_and_what_was_cropped(
    tmp_path: Path, sdxl: Path, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in validation; `compute_time_ids` of diffusers' train_text_to_image_lora_sdxl.py is the same."""
    # All have one bucket: the wide one is cropped at its sides, the tall one at the top, the small one enlarged.
    sizes = [(200, 160), (160, 200), (48, 48), (128, 128)]
    images = [drawn(seed, size=size, caption=TAGS) for seed, size in enumerate(sizes)]
    folder = write_dataset(tmp_path / "main", [*images, drawn(9, Split.VALIDATION, size=(200, 160), caption=TAGS)])
    spec = make_spec({"dataset": str(folder), "base": {"source": str(sdxl)}, "objective": {"size_conditioning": told}})
    made = DiffusionTask(spec, read_mixture(spec), torch.device("cpu"))
    seen: list[list[list[float]]] = []
    real = type(made.base.denoiser).forward

    def forward(self: Any, *arguments: Any, added_cond_kwargs: dict[str, torch.Tensor], **options: Any) -> Any:
        seen.append(added_cond_kwargs["time_ids"].tolist())
        return real(self, *arguments, added_cond_kwargs=added_cond_kwargs, **options)

    examples = encode(made)
    made.place(Precision.FP32)
    monkeypatch.setattr(type(made.base.denoiser), "forward", forward)
    for split in (Split.TRAIN, Split.VALIDATION):
        for index, (width, height) in enumerate(examples[split].sizes):
            original = sizes[index if split is Split.TRAIN else 0]
            scale = max(width / original[0], height / original[1])
            crop = [round((original[side] * scale - (width, height)[side]) / 2) for side in (1, 0)]
            expected = [original[1], original[0], *crop] if told == "original" else [height, width, 0, 0]
            if split is Split.TRAIN:
                made.train_loss(examples[split], [ImageView(index=index)], seeds=[1])
            else:
                made.frozen_losses(examples[split], [index], [500], [3])
            assert seen.pop() == [[*expected, height, width]]
    assert set(examples[Split.TRAIN].sizes) == {(64, 64)}


def test_a_preview_of_the_variants_is_drawn(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = preview_variants(folders[0], Augmentation.model_validate(AUGMENTED["augmentation"]), 0, tmp_path / "p.png")

    with PILImage.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 600


def test_a_preview_without_augmentation_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing to draw"):
        preview_variants(folders[0], Augmentation(), 0, tmp_path / "p.png")


def test_a_missing_image_is_named_in_the_error(task: Callable[..., DiffusionTask], folders: tuple[Path, Path]) -> None:
    (folders[0] / "images" / "0002.png").unlink()

    with pytest.raises(DatasetError, match=r"images/0002\.png of the dataset cannot be read"):
        encode(task())


def test_the_same_image_in_two_datasets_is_encoded_in_both_caches(tmp_path: Path, random_base: Path) -> None:
    """The rows of different caches must not be confused."""
    main = write_dataset(tmp_path / "main", [drawn(1), drawn(2), drawn(3, Split.VALIDATION)])
    other = write_dataset(tmp_path / "other", [drawn(4), drawn(2), Drawn(image=drawn(5).image)])
    spec = make_spec(
        {"dataset": str(main), "base": {"source": str(random_base)}, "mix": [{"dataset": str(other)}]},
    )
    train = encode(DiffusionTask(spec, read_mixture(spec), torch.device("cpu")))[Split.TRAIN]

    found = [train.inputs([ImageView(index=index)]) for index in range(5)]

    same = [(a, b) for a in range(5) for b in range(a) if torch.equal(found[a], found[b])]
    assert same == [(3, 1)]
