"""Preparations of the folders that people have: what is no subject is not trained as one, and the report says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.trainer.dataset.image_files import encoded, make_zip, noise, png
from trainer.dataset.preparing.prepare import prepare
from trainer.errors import DatasetError
from trainer.protocol.edits import CaptionRules, Edits, Layout
from trainer.protocol.report import DatasetReport, FileRole, FindingKind, Split


def blob(seed: int) -> bytes:
    """A black-and-white mask."""
    mask = Image.new("L", (160, 120), 0)
    ImageDraw.Draw(mask).ellipse((10 + 3 * seed, 10, 100 + 5 * seed, 100), fill=255)
    return encoded(mask)


def prepared(tmp_path: Path, members: dict[str, bytes], edits: Edits = Edits()) -> DatasetReport:  # noqa: B008
    return prepare([make_zip(tmp_path / "a.zip", members)], tmp_path / "out", resolutions=(64,), edits=edits)


def kept(report: DatasetReport) -> list[str]:
    return [image.source.partition("!")[2] for image in report.images if image.status == "kept"]


def recognized(report: DatasetReport) -> dict[tuple[FileRole, str], int]:
    return {(each.role, each.folder.partition("!")[2]): each.files for each in report.recognized}


def kohya_project() -> dict[str, bytes]:
    subject = {f"my/img/10_zkz girl/{n}.png": png(n) for n in range(8)}
    latents = {f"my/img/10_zkz girl/{n}.npz": b"PK\x03\x04latents" for n in range(8)}
    classes = {f"my/reg/1_girl/{n}.png": png(20 + n) for n in range(8)}
    drawn = {f"my/model/sample/{n}.png": png(40 + n) for n in range(3)}
    return {
        **subject,
        **latents,
        **classes,
        **drawn,
        "my/model/zkz.safetensors": b"x",
        "my/log/events.out.tfevents.1": b"x",
    }


def test_of_a_kohya_project_the_class_images_are_never_measured_and_samples_are_left_out(tmp_path: Path) -> None:
    report = prepared(tmp_path, kohya_project(), Edits(rules=CaptionRules(trigger="zkz")))

    assert len(kept(report)) == 16
    assert report.refused == ()
    regularization = [image for image in report.images if image.is_regularization]
    assert {image.source.rpartition("/")[0] for image in regularization} == {"a.zip!my/reg/1_girl"}
    assert {(image.split, image.class_name, image.caption) for image in regularization} == {
        (Split.TRAIN, "girl", "girl")
    }
    assert {image.split for image in report.images if not image.is_regularization} == set(Split)
    assert all("zkz" in image.caption for image in report.images if not image.is_regularization)
    assert recognized(report) == {
        (FileRole.REGULARIZATION, "my/reg/"): 8,
        (FileRole.SAMPLE, "my/model/sample/"): 3,
        (FileRole.CACHE, ""): 8,
        (FileRole.TRAINER, ""): 2,
    }


def test_the_plain_layout_overrules_what_was_recognized(tmp_path: Path) -> None:
    report = prepared(tmp_path, kohya_project(), Edits(layout=Layout.PLAIN))

    assert len(kept(report)) == 19
    assert not any(image.is_regularization for image in report.images)
    assert report.recognized == ()


@pytest.mark.parametrize("folder", ["mask-img", "train_mask", "conditioning", "img_masks", "mask"])
def test_masks_in_any_folder_are_masks(tmp_path: Path, folder: str) -> None:
    images = {f"set/img/1_zkz/{n}.png": png(n) for n in range(4)}
    masks = {f"set/{folder}/1_zkz/{n}.png": blob(n) for n in range(4)}

    report = prepared(tmp_path, images | masks)

    assert kept(report) == list(images)
    assert all(image.mask for image in report.images)
    assert recognized(report) == {(FileRole.MASK, f"set/{folder}/1_zkz/"): 4}


def test_a_class_of_carnival_masks_with_numbered_names_holds_images(tmp_path: Path) -> None:
    members = {f"{folder}/{n}.png": png(n + 10 * len(folder)) for folder in ("masks", "shoe") for n in range(4)}

    report = prepared(tmp_path, members)

    assert kept(report) == list(members)
    assert {image.class_name for image in report.images} == {"masks", "shoe"}
    assert report.recognized == ()


def test_photographs_named_like_masks_are_images(tmp_path: Path) -> None:
    members = {"gas.png": png(1), "gas_mask.png": png(2), "mask_gas.png": png(3), "x.png": png(4)}

    assert kept(prepared(tmp_path, members)) == sorted(members)


def test_colored_pictures_of_a_conditioning_folder_are_not_trained(tmp_path: Path) -> None:
    members = {f"img/{n}.png": png(n) for n in range(3)} | {f"conditioning/{n}.png": png(50 + n) for n in range(3)}

    report = prepared(tmp_path, members)

    assert kept(report) == [f"img/{n}.png" for n in range(3)]
    assert not any(image.mask for image in report.images)
    assert recognized(report) == {(FileRole.CONTROL, "conditioning/"): 3}


def test_black_and_white_pictures_under_the_names_of_images_are_dropped_unless_kept_by_hand(tmp_path: Path) -> None:
    members = {f"img/{n}.png": png(n) for n in range(4)} | {f"shapes/{n}.png": blob(n) for n in range(4)}

    report = prepared(tmp_path, members)

    assert kept(report) == [f"img/{n}.png" for n in range(4)]
    dropped = [image for image in report.images if image.status == "dropped"]
    assert [[(f.kind, f.other) for f in image.findings] for image in dropped] == [
        [(FindingKind.MASK, f"a.zip!img/{n}.png")] for n in range(4)
    ]
    decision = {str(dropped[0].pixels_sha256): "keep"}
    again = prepared(tmp_path, members, Edits.model_validate({"decisions": decision}))
    assert "shapes/0.png" in kept(again)


def test_gray_photographs_and_drawings_under_equal_names_are_kept(tmp_path: Path) -> None:
    members = {f"color/{n}.png": png(n) for n in range(3)}
    members |= {f"gray/{n}.png": encoded(noise(30 + n).convert("L")) for n in range(3)}

    assert len(kept(prepared(tmp_path, members))) == 6


def test_preparing_into_a_folder_of_the_source_twice_gives_the_same_dataset(tmp_path: Path) -> None:
    source = tmp_path / "pics"
    source.mkdir()
    for n in range(6):
        (source / f"{n}.png").write_bytes(png(n))

    first = prepare([source], source / "dataset", resolutions=(64,))
    second = prepare([source], source / "dataset", resolutions=(64,))

    assert second == first
    other = prepare([source], tmp_path / "other", resolutions=(64,))
    assert kept(other) == kept(first)
    assert {each.role for each in other.recognized} == {FileRole.OWN_OUTPUT}


def test_a_dataset_folder_is_not_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    prepare([make_zip(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(3)})], out, resolutions=(64,))

    for source in (out, out / "images"):
        with pytest.raises(DatasetError):
            prepare([source], out, resolutions=(64,))
    assert len(list((out / "images").iterdir())) == 3


def test_of_a_prepared_dataset_only_its_images_are_taken(tmp_path: Path) -> None:
    first = prepared(tmp_path, {f"{n}.png": png(n) for n in range(4)})

    second = prepare([tmp_path / "out"], tmp_path / "second", resolutions=(64,))

    assert [image.pixels_sha256 for image in second.images] == [image.pixels_sha256 for image in first.images]


def test_clutter_is_counted_and_not_refused(tmp_path: Path) -> None:
    clutter = [
        "__MACOSX/._1.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/old.png",
        ".dropbox",
        ".stfolder/x",
        ".git/objects/ab/cd",
        "Icon\r",
        "1.xmp",
        "Previews.lrdata/1.png",
    ]
    members = {"1.png": png(1), "2.png": png(2), "3.png": png(3)}

    report = prepared(tmp_path, dict.fromkeys(clutter, b"x") | members)

    assert (kept(report), report.refused) == (list(members), ())
    assert recognized(report) == {(FileRole.CLUTTER, ""): len(clutter)}


def test_masks_in_two_folders_of_any_name_are_dropped(tmp_path: Path) -> None:
    images = {f"img/{n}.png": png(n) for n in range(3)}
    masks = {f"{folder}/{n}.png": blob(n + seed) for seed, folder in enumerate(("matte", "hair")) for n in range(3)}

    assert kept(prepared(tmp_path, images | masks)) == list(images)
