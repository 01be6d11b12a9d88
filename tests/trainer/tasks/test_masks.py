"""Masks follow the crop and the variants of their images; an image without a mask counts in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw
from torch import Tensor

from tests.trainer.dataset.prepared_folders import Drawn, drawn, write_dataset
from trainer.dataset.split.mixing import MixSource, Mixture, mix
from trainer.errors import BadSpecError, DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.augmentation import Augmentation, Augmenter, AugmenterName
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import MixRole
from trainer.protocol.spec import Spec
from trainer.tasks.encoding_cache import variants_of
from trainer.tasks.pixels import encode_masks, load_mask, mask_variants

SIZE: Size = (64, 64)
CELLS: Size = (8, 8)
GEOMETRIC = [
    Augmenter(name=AugmenterName.FLIP_HORIZONTAL),
    Augmenter(name=AugmenterName.FLIP_VERTICAL),
    Augmenter(name=AugmenterName.ROTATE, low=12, high=20),
    Augmenter(name=AugmenterName.SCALE, low=1.2, high=1.4),
    Augmenter(name=AugmenterName.CROP, low=0.2, high=0.3),
    Augmenter(name=AugmenterName.TRANSLATE, low=0.1, high=0.15),
    Augmenter(name=AugmenterName.SHEAR, low=8, high=12),
    Augmenter(name=AugmenterName.PERSPECTIVE, low=0.05, high=0.1),
]


def shape(size: Size = (150, 96)) -> PILImage.Image:
    """Return a white shape on black without any symmetry."""
    mask = PILImage.new("L", size, 0)
    draw = ImageDraw.Draw(mask)
    draw.rectangle((50, 20, 66, 80), fill=255)
    draw.rectangle((66, 20, 100, 34), fill=255)
    return mask


def dataset(folder: Path, originals: list[Drawn], masks: dict[int, PILImage.Image]) -> Path:
    """Write a prepared dataset; `masks` are by index of the image."""
    write_dataset(folder, originals)
    report = read_report(folder)
    images = list(report.images)
    (folder / "masks").mkdir()
    for index, mask in masks.items():
        mask.save(folder / "masks" / f"{index}.png")
        images[index] = replace(images[index], mask=f"masks/{index}.png")
    report = report.model_copy(update={"images": tuple(images)})
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def one(tmp_path: Path, mask: PILImage.Image) -> tuple[Path, Image]:
    """Write a dataset of one image, which is white where its mask is."""
    folder = dataset(tmp_path / "one", [Drawn(image=mask.convert("RGB"))], {0: mask})
    return folder, read_report(folder).images[0]


def mixture(*sources: MixSource) -> Mixture:
    return mix(list(sources), needs_validation=False)


def source(folder: Path, role: MixRole = MixRole.TRAIN) -> MixSource:
    return MixSource(folder=folder, report=read_report(folder), role=role)


def masked(folder: Path, augmentation: Augmentation | None = None) -> Spec:
    changes: dict[str, object] = {"objective": {"masked": True}}
    if augmentation is not None:
        changes["augmentation"] = augmentation.model_dump(mode="json")
    return spec_from_preset("lora", dataset=str(folder), base="tiny", changes=changes)


def augment_with(*augmenters: Augmenter, variants: int = 3) -> Augmentation:
    return Augmentation.model_validate(
        {"preset": "custom", "custom": list(augmenters), "variants": variants, "flip": "on"}
    )


def brightness(variant: PILImage.Image) -> Tensor:
    """Return the mean brightness of each latent pixel, [1, H, W] from 0 to 1."""
    pixels = np.asarray(variant.convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(pixels.reshape(8, 8, 8, 8).mean((1, 3)))[None]


# -- one image -----------------------------------------------------------------------------------------------------


def test_a_mask_is_averaged_over_each_latent_pixel(tmp_path: Path) -> None:
    folder, image = one(tmp_path, shape((96, 96)))

    mask = load_mask(folder, image, SIZE, CELLS)

    assert mask.shape == (1, 8, 8)
    assert mask.dtype == torch.float32
    # A latent pixel is 12 x 12 px of the image's 96.
    pixels = np.asarray(shape((96, 96)), dtype=float) / 255
    for row in range(8):
        for column in range(8):
            block = pixels[12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            assert mask[0, row, column].item() == pytest.approx(block.mean(), abs=1 / 255)


def test_width_and_height_are_not_swapped(tmp_path: Path) -> None:
    folder, image = one(tmp_path, shape())

    assert load_mask(folder, image, (96, 64), (12, 8)).shape == (1, 8, 12)
    assert load_mask(folder, replace(image, mask=None), (96, 64), (12, 8)).tolist() == [[[1] * 12] * 8]


@pytest.mark.parametrize("augmenter", GEOMETRIC, ids=lambda augmenter: str(augmenter.name))
def test_the_mask_of_a_variant_is_transformed_like_its_image(tmp_path: Path, augmenter: Augmenter) -> None:
    folder, image = one(tmp_path, shape())
    augmentation = augment_with(augmenter)
    expected = [brightness(each) for each in variants_of(shape().convert("RGB"), image, SIZE, augmentation, 7)]

    found = list(mask_variants(folder, image, SIZE, CELLS, augmentation, 7))

    assert len(found) == len(expected) == 3
    original = load_mask(folder, image, SIZE, CELLS)
    for variant, transformed in zip(found, expected, strict=True):
        assert (variant - transformed).abs().mean() < 0.02
        assert (original - transformed).abs().mean() > 0.03


def test_masks_follow_combined_augmenters(tmp_path: Path) -> None:
    folder, image = one(tmp_path, shape())
    colors = [Augmenter(name=AugmenterName.GAUSSIAN_NOISE, low=1, high=5)]
    augmentation = augment_with(*colors, *GEOMETRIC)
    expected = [brightness(each) for each in variants_of(shape().convert("RGB"), image, SIZE, augmentation, 7)]

    found = list(mask_variants(folder, image, SIZE, CELLS, augmentation, 7))

    assert all((mask - moved).abs().mean() < 0.03 for mask, moved in zip(found, expected, strict=True))


def test_color_augmenters_do_not_change_masks(tmp_path: Path) -> None:
    folder, image = one(tmp_path, shape())
    bright = augment_with(Augmenter(name=AugmenterName.BRIGHTNESS, low=0.5, high=0.6))

    for mask in mask_variants(folder, image, SIZE, CELLS, bright, 7):
        # Variants are resampled from an enlarged copy, the mask itself is not.
        assert (mask - load_mask(folder, image, SIZE, CELLS)).abs().mean() < 0.02


def test_a_mask_is_mirrored_only_if_its_image_is(tmp_path: Path) -> None:
    folder, image = one(tmp_path, shape())
    flips = Augmentation.model_validate({"preset": "custom", "custom": [GEOMETRIC[0]], "variants": 1, "flip": "auto"})

    (mirrored,) = mask_variants(folder, image, SIZE, CELLS, flips, 7)
    captioned = replace(image, caption="a scar on her left cheek")
    (kept,) = mask_variants(folder, captioned, SIZE, CELLS, flips, 7)

    assert (mirrored - kept).abs().mean() > 0.05
    assert (kept - load_mask(folder, image, SIZE, CELLS)).abs().mean() < 0.02


# -- a job -----------------------------------------------------------------------------------------------------------


def a_job(tmp_path: Path) -> tuple[Path, Mixture]:
    """Return two training images, the second without a mask, and a validation image."""
    images = [drawn(1), drawn(2), drawn(3, Split.VALIDATION)]
    folder = dataset(tmp_path / "data", images, {0: shape((96, 96)), 2: shape((96, 96))})
    return folder, mixture(source(folder))


def test_each_masked_image_has_one_mask_per_variant(tmp_path: Path) -> None:
    folder, job = a_job(tmp_path)
    augmentation = augment_with(*GEOMETRIC[:3])

    ticks: list[int] = []
    found = encode_masks(
        masked(folder, augmentation), job, [SIZE] * 3, [True, True, False], vae_scale=8, tick=lambda: ticks.append(1)
    )

    assert len(ticks) == 2
    assert found[1] is None
    first, last = found[0], found[2]
    assert first is not None
    assert last is not None
    assert (len(first), len(last)) == (4, 1)
    assert torch.equal(first[0], load_mask(folder, job.members[0].image, SIZE, CELLS))
    variants = mask_variants(folder, job.members[0].image, SIZE, CELLS, augmentation, masked(folder).training.seed)
    assert all(torch.equal(one, other) for one, other in zip(first[1:], variants, strict=True))


def test_masks_of_one_size_are_read_from_the_cache(tmp_path: Path) -> None:
    folder, job = a_job(tmp_path)
    spec = masked(folder)
    first = encode_masks(spec, job, [SIZE] * 3, [False] * 3, vae_scale=8)
    for path in (folder / "masks").iterdir():
        path.unlink()

    again = encode_masks(spec, job, [SIZE] * 3, [False] * 3, vae_scale=8)

    assert first[0] is not None
    assert again[0] is not None
    assert torch.equal(first[0][0], again[0][0])
    with pytest.raises(DatasetError, match="cannot be read"):
        encode_masks(spec, job, [(96, 64)] * 3, [False] * 3, vae_scale=8)


def test_the_vae_scale_sets_the_size_of_a_mask(tmp_path: Path) -> None:
    folder, job = a_job(tmp_path)

    found = encode_masks(masked(folder), job, [(64, 32)] * 3, [False] * 3, vae_scale=4)

    assert found[0] is not None
    assert found[0][0].shape == (1, 8, 16)


def test_masks_are_read_from_their_own_dataset(tmp_path: Path) -> None:
    left = PILImage.new("L", (96, 96), 0)
    left.paste(255, (0, 0, 48, 96))
    main = dataset(tmp_path / "main", [drawn(1)], {})
    other = dataset(tmp_path / "other", [drawn(2), drawn(3)], {1: left})
    job = mixture(source(main), source(other))

    found = encode_masks(masked(main), job, [SIZE] * 3, [False] * 3, vae_scale=8)

    assert found[:2] == [None, None]
    assert found[2] is not None
    assert found[2][0][0].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 8


@pytest.mark.parametrize("masks", [{}, {1: shape((96, 96))}], ids=["none", "validation only"])
def test_a_masked_loss_without_training_masks_is_refused(tmp_path: Path, masks: dict[int, PILImage.Image]) -> None:
    folder = dataset(tmp_path / "data", [drawn(1), drawn(2, Split.VALIDATION)], masks)

    with pytest.raises(BadSpecError, match="no training image has a mask") as caught:
        encode_masks(masked(folder), mixture(source(folder)), [SIZE] * 2, [False] * 2, vae_scale=8)
    assert "cat.mask.png" in caught.value.hint
