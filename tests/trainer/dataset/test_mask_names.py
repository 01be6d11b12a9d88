"""Masks are recognized by their names, and belong to the image of the same name in the same archive."""

from __future__ import annotations

import pytest

from trainer.dataset.input_files import SourceEntry
from trainer.dataset.mask_names import MaskIndex


def entry(path: str, scope: int = 1) -> SourceEntry:
    return SourceEntry(source=f"{scope}!{path}", path=path, scope=scope, read=bytes)


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ("cat.mask.png", "cat.png"),
        ("cat.MASK.PNG", "cat.jpg"),
        ("cat.jpg.mask.png", "cat.jpg"),
        ("cat-masklabel.png", "cat.webp"),
        ("a/b/cat.mask.webp", "a/b/cat.png"),
        ("masks/cat.png", "cat.jpg"),
        ("Masks/cat.jpg.png", "cat.jpg"),
        ("a/masks/cat.png", "a/cat.png"),
        ("masks/a/cat.png", "a/cat.png"),
        ("mask/cat.png", "images/cat.png"),
        ("set/masks/10_cat/cat.png", "set/img/10_cat/cat.png"),
        ("set/mask-img/1_zkz person/0.png", "set/img/1_zkz person/0.png"),
        ("mask_set/mask/0.png", "mask_set/img/0.png"),
        ("train_mask/0.png", "train/0.jpg"),
        ("train_masks/a/0.png", "train/a/0.jpg"),
        ("mask_train/0.png", "train/0.png"),
        ("conditioning/0.png", "0.png"),
        ("conditioning/0.png", "10_zkz/0.png"),
        ("masks/1.png", "hats/1.png"),
        ("masks/0.png", "img/10_zkz girl/0.png"),
        ("a/cat_mask.png", "a/cat.jpg"),
        ("cat-mask.png", "cat.png"),
        ("mask_cat.png", "cat.png"),
        ("cat mask.png", "cat.png"),
        ("catMask.png", "cat.png"),
        ("cat_matte.png", "cat.png"),
        ("alpha/cat.png", "images/cat.png"),
        ("mattes/cat.png", "cat.png"),
        ("masks/cat_mask.png", "images/cat.png"),
        ("masks/mask_cat.png", "cat.png"),
        ("masks/cat_mask.png", "masks/cat.png"),
        ("cat_mask_0.png", "cat.png"),
    ],
)
def test_a_mask_is_recognized_by_its_name(mask: str, image: str) -> None:
    found = MaskIndex([entry(mask), entry(image), entry("other.png")])

    assert {source: mask.path for source, mask in found.by_image.items()} == {f"1!{image}": mask}
    assert found.sources == {f"1!{mask}"}
    assert found.unused == {}


@pytest.mark.parametrize(
    ("path", "beside"),
    [
        ("masks/1.png", "masks/2.png"),
        ("masks/1.png", "hats/2.png"),
        ("damask/1.png", "hats/1.png"),
        ("gas_mask.png", "cat.png"),
        ("mask_off.png", "cat.png"),
        ("unmask.png", "un.png"),
        ("damask.png", "da.png"),
        ("alphabet/1.png", "hats/1.png"),
        ("mask.png", "cat.png"),
        (".mask.png", "cat.png"),
        ("cat.mask.txt", "cat.png"),
    ],
)
def test_a_file_that_only_looks_like_a_mask_is_not_one(path: str, beside: str) -> None:
    assert MaskIndex([entry(path), entry(beside)]).sources == set()


def test_a_folder_of_masks_that_could_be_those_of_several_classes_holds_images() -> None:
    paths = ("masks/1.png", "hats/1.png", "shoes/1.png")
    assert MaskIndex([entry(path) for path in paths]).sources == set()


def test_rejected_masks_are_images_which_may_have_masks() -> None:
    paths = ("masks/1.png", "masks/1-masklabel.png", "hats/1.png")
    found = MaskIndex([entry(path) for path in paths], rejected={(1, "masks")})
    assert {source: mask.path for source, mask in found.by_image.items()} == {"1!masks/1.png": "masks/1-masklabel.png"}


def test_a_mask_belongs_to_an_image_in_the_same_archive() -> None:
    found = MaskIndex([entry("cat.mask.png", 1), entry("cat.png", 2)])

    assert found.by_image == {}
    assert found.unused.keys() == {"1!cat.mask.png"}


def test_a_folder_of_masks_with_one_partner_holds_only_masks() -> None:
    found = MaskIndex([entry("masks/1.png"), entry("masks/2.png"), entry("1.png")])

    assert found.sources == {"1!masks/1.png", "1!masks/2.png"}
    assert list(found.unused) == ["1!masks/2.png"]


def test_one_of_several_masks_is_used_and_the_others_are_refused() -> None:
    paths = ("masks/cat.png", "cat-masklabel.png", "cat.mask.png", "cat.png")
    found = MaskIndex([entry(path) for path in paths])

    assert found.by_image["1!cat.png"].path == "cat.mask.png"
    assert found.unused.keys() == {"1!masks/cat.png", "1!cat-masklabel.png"}
