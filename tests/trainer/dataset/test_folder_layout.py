"""Folders are read by the conventions of trainers, and what is a class by the same name stays one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trainer.dataset.folder_layout import class_folders, recognize
from trainer.protocol.edits import Layout
from trainer.protocol.report import FileRole

R = FileRole


def roles(*paths: str, root: str = "", layout: Layout = Layout.AUTO) -> dict[str, FileRole]:
    """The files that are no plain images."""
    return {path: each.role for path, each in recognize(paths, root, layout).items() if each.role is not R.IMAGE}


KOHYA = ("p/img/10_zkz girl/1.png", "p/img/10_zkz girl/1.txt")


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("p/reg/1_girl/1.png", R.REGULARIZATION),
        ("p/reg/1_girl/1.txt", R.REGULARIZATION),
        ("p/reg/1.png", R.REGULARIZATION),
        ("p/regularization/1_girl/1.png", R.REGULARIZATION),
        ("p/model/zkz.safetensors", R.TRAINER),
        ("p/model/sample/zkz_e000001_00_20240101120000_42.png", R.SAMPLE),
        ("p/model/sample/1.png", R.SAMPLE),
        ("p/log/events.out.tfevents.1", R.TRAINER),
        ("p/img/10_zkz girl/1.npz", R.CACHE),
        ("p/img/10_zkz girl/1_1024x1024_sdxl.npz", R.CACHE),
        ("p/img/0_unsure/1.png", R.SKIPPED),
        ("p/dataset.toml", R.TRAINER),
        ("p/run.sh", R.TRAINER),
    ],
)
def test_a_kohya_project_is_recognized(path: str, role: FileRole) -> None:
    assert roles(*KOHYA, path) == {path: role}
    assert roles(*(each.removeprefix("p/") for each in (*KOHYA, path)), root="p") == {path.removeprefix("p/"): role}


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        # ai-toolkit
        (("1.png", "1.txt", "_latent_cache/1_abc.safetensors"), {"_latent_cache/1_abc.safetensors": R.CACHE}),
        (("out/1700000000000__000000500_0.jpg", "in/1.png"), {"out/1700000000000__000000500_0.jpg": R.SAMPLE}),
        (("a/1.png", "control/1.jpg"), {"control/1.jpg": R.CONTROL}),
        # OneTrainer
        (("1.png", "1-condlabel.png"), {"1-condlabel.png": R.CONTROL}),
        (("1.png", "workspace-cache/1.pt"), {"workspace-cache/1.pt": R.CACHE}),
        # SimpleTuner
        (("d/1.png", "multidatabackend.json"), {"multidatabackend.json": R.TRAINER}),
        (("d/1.png", "d/aspect_ratio_bucket_indices_x.json"), {"d/aspect_ratio_bucket_indices_x.json": R.TRAINER}),
        (("d/1.png", "vae_cache/1.pt"), {"vae_cache/1.pt": R.CACHE}),
        # diffusers
        (("instance_images/1.png", "class_images/1.png"), {"class_images/1.png": R.REGULARIZATION}),
        (("1.png", "regularization_images/1.png"), {"regularization_images/1.png": R.REGULARIZATION}),
        (("train_images/1.png", "reg_images/1.png"), {"reg_images/1.png": R.REGULARIZATION}),
        # ControlNet, and datasets for segmentation: VOC, ADE20K
        (("target/1.png", "source/1.png"), {"source/1.png": R.CONTROL}),
        (("end/1.png", "end/1.txt", "Start/1.jpg"), {"Start/1.jpg": R.CONTROL}),
        (
            ("1_R.png", "1_T.png", "1_T.txt", "2_R.png", "2_T.png", "3_R.png", "3_T.png"),
            dict.fromkeys(("1_R.png", "2_R.png", "3_R.png"), R.CONTROL),
        ),
        (
            tuple(f"{n}_{end}.png" for n in "abc" for end in ("start", "end")),
            dict.fromkeys(("a_start.png", "b_start.png", "c_start.png"), R.CONTROL),
        ),
        (("img/1.png", "canny/1.png"), {"canny/1.png": R.CONTROL}),
        (("img/1.png", "depth_maps/1.png"), {"depth_maps/1.png": R.CONTROL}),
        (("JPEGImages/1.jpg", "SegmentationClass/1.png"), {"SegmentationClass/1.png": R.CONTROL}),
        (("images/val/1.jpg", "annotations/val/1.png"), {"annotations/val/1.png": R.CONTROL}),
        (("images/1.png", "images_control/1.png"), {"images_control/1.png": R.CONTROL}),
        (("images/1.png", "depth/1_depth.png"), {"depth/1_depth.png": R.CONTROL}),
        (("images/1.png", "lineart/1.png"), {"lineart/1.png": R.CONTROL}),
        (("1.png", "scribble/1.png"), {"scribble/1.png": R.CONTROL}),
        (
            ("1.png", "2.png", "3.png", "1_depth.png", "2_depth.png", "3_depth.png"),
            dict.fromkeys(("1_depth.png", "2_depth.png", "3_depth.png"), R.CONTROL),
        ),
        (
            ("1.png", "2.png", "3.png", "canny_1.png", "canny_2.png", "canny_3.png"),
            dict.fromkeys(("canny_1.png", "canny_2.png", "canny_3.png"), R.CONTROL),
        ),
        # of other datasets: super-resolution, optical flow, pets, materials
        (("hr/1.png", "lr/1.png"), {"lr/1.png": R.CONTROL}),
        (("frames/1.png", "flow/1.png"), {"flow/1.png": R.CONTROL}),
        (("images/1.jpg", "annotations/trimaps/1.png"), {"annotations/trimaps/1.png": R.CONTROL}),
        (
            tuple(f"{n}_{kind}.png" for n in "abc" for kind in ("albedo", "roughness")),
            dict.fromkeys(("a_roughness.png", "b_roughness.png", "c_roughness.png"), R.CONTROL),
        ),
        # of web UIs
        (("1.png", "x/a.preview.png", "x/a.ckpt"), {"x/a.preview.png": R.SAMPLE, "x/a.ckpt": R.TRAINER}),
        (("1.png", "x/a.png", "x/a.safetensors"), {"x/a.png": R.SAMPLE, "x/a.safetensors": R.TRAINER}),
        # samples whose weights are elsewhere
        (("1.png", "1.txt", "samples/a.png"), {"samples/a.png": R.SAMPLE}),
        (("img/1.png", "img/1.txt", "samples/a.png"), {"samples/a.png": R.SAMPLE}),
        (("a/1.png", "wandb/run/media/2.png"), {"wandb/run/media/2.png": R.SAMPLE}),
        (
            ("a/1.png", "out/checkpoint-500/x.safetensors", "out/image_0.png"),
            {"out/checkpoint-500/x.safetensors": R.TRAINER, "out/image_0.png": R.SAMPLE},
        ),
        (("output/a.png", "temp/ComfyUI_temp_x_1.png"), {"temp/ComfyUI_temp_x_1.png": R.SAMPLE}),
        # put aside by people
        (("1.png", "debug/1_boxes.png"), {"debug/1_boxes.png": R.SKIPPED}),
        (("1.png", "trash/2.png", "trash/2.txt"), {"trash/2.png": R.SKIPPED, "trash/2.txt": R.SKIPPED}),
        (("photos/1.png", "_deleted/2.png"), {"_deleted/2.png": R.SKIPPED}),
        (("cats/1.png", "cats_backup/1.png"), {"cats_backup/1.png": R.SKIPPED}),
        # thumbnails of galleries
        (("photos/1.png", "previews/1.png"), {"previews/1.png": R.CACHE}),
        (("photos/1.png", "thumbs/1.png"), {"thumbs/1.png": R.CACHE}),
        (("photos/1.png", "photos/thumbnails/1.png"), {"photos/thumbnails/1.png": R.CACHE}),
        # AUTOMATIC1111
        (("1.png", "outputs/txt2img-images/2024/00001-1.png"), {"outputs/txt2img-images/2024/00001-1.png": R.SAMPLE}),
        (("1.png", "log/images/x-500.png"), {"log/images/x-500.png": R.SAMPLE}),
        (
            ("in/1.png", "textual_inversion/2023-01-01/cat/images/cat-500.png"),
            {"textual_inversion/2023-01-01/cat/images/cat-500.png": R.SAMPLE},
        ),
        # any of them
        (
            ("data/1.png", "run/cat.safetensors", "run/samples/1.png"),
            {"run/cat.safetensors": R.TRAINER, "run/samples/1.png": R.SAMPLE},
        ),
        # the hub's cache
        (("x/snapshots/a/1.png", "x/blobs/abc"), {"x/blobs/abc": R.CACHE}),
        # ours
        (
            ("1.png", "set/report.json", "set/thumbnails/0001.jpg", "set/images/0001.png"),
            dict.fromkeys(("set/report.json", "set/thumbnails/0001.jpg", "set/images/0001.png"), R.OWN_OUTPUT),
        ),
        (
            ("1.png", "job/spec.json", "job/events.jsonl", "job/samples/1.png"),
            dict.fromkeys(("job/spec.json", "job/events.jsonl", "job/samples/1.png"), R.OWN_OUTPUT),
        ),
    ],
)  # fmt: skip
def test_what_other_programs_write_is_recognized(paths: tuple[str, ...], found: dict[str, FileRole]) -> None:
    assert roles(*paths) == found


@pytest.mark.parametrize(
    "paths",
    [
        ("img/1.png", "reg/1.png", "log/1.png", "model/1.png"),
        ("dress/1.png", "model/1.png", "model/2.png"),
        ("model/1_dress/1.png", "model/2_shoes/1.png"),
        ("wood/1.png", "log/1.png", "log/images.png"),
        ("samples/1.png", "blanks/1.png"),
        ("class/1.png", "school/1.png"),
        ("control/1.png", "panel/2.png"),
        ("depth/1.png", "width/2.png"),
        ("lineart/1.png", "painting/1.png"),
        ("sketches/1.png", "oils/1.png"),
        ("thumbs/1.png", "fingers/2.png"),
        ("1.png", "2.preview.png"),
        ("ocean.png", "ocean_depth.png", "cat.png", "dog.png"),
        ("1.png", "2.png", "3.png", *(f"{n}.png" for n in "abcdefg"), "1_depth.png", "2_depth.png", "3_depth.png"),
        ("source/1.png", "delta/1.png"),
        ("start/1.png", "end/2.png"),
        ("low/1.png", "high/2.png"),
        ("image_1.png", "image_2.png", "samples.txt"),
        ("cat/debug/1.png", "dog/1.png"),
        ("a_r.png", "a_t.png", "b_r.png", "b_t.png", *(f"{n}.png" for n in range(20))),
        ("cardboard/1.png", "glass/2.png", "trash/3.png"),
        ("1.png", "1.txt", "samples/a.png", "samples/a.txt"),
        ("outputs/1.png", "inputs/1.png"),
        ("0_cat/1.png", "1_dog/1.png", "2_fox/1.png"),
        ("report.json", "1.png", "images/2.png"),
        ("blobs/1.png", "clouds/1.png"),
        ("00012-123456.png", "00013-123457.png", "1.txt"),
        ("cache/1.png", "memory/1.png"),
    ],
)
def test_classes_with_such_names_are_classes(paths: tuple[str, ...]) -> None:
    assert roles(*paths) == {}


@pytest.mark.parametrize(
    ("paths", "left_out"),
    [
        (("outputs/txt2img-images/1.png", "outputs/txt2img-images/1.txt"), {}),
        (("model/sample/1.png", "model/x.safetensors"), {"model/x.safetensors": R.TRAINER}),
        (("0_x/1.png", "0_x/1.txt"), {}),
        (
            ("report.json", "thumbnails/0001.jpg", "images/0001.png"),
            {"report.json": R.OWN_OUTPUT, "thumbnails/0001.jpg": R.OWN_OUTPUT},
        ),
    ],
)
def test_samples_alone_are_what_is_trained_on(paths: tuple[str, ...], left_out: dict[str, FileRole]) -> None:
    assert roles(*paths) == left_out


def test_the_plain_layout_takes_every_image_and_reads_repeats() -> None:
    paths = [*KOHYA, "p/reg/1_girl/1.png", "p/model/sample/1.png", "p/img/0_unsure/1.png"]
    assert roles(*paths, layout=Layout.PLAIN) == {}
    assert recognize(paths, layout=Layout.PLAIN)[KOHYA[0]].kohya.repeats == 10


@pytest.mark.parametrize(
    ("path", "repeats", "trigger"),
    [
        ("10_zkz girl/1.png", 10, "zkz girl"),
        ("1000_zkz girl/1.png", 1000, "zkz girl"),
        ("2023_holiday/1.png", 1, ""),
        ("20230415_holiday/1.png", 1, ""),
        ("10_zkz/a/b/1.png", 10, "zkz"),
        ("5_/1.png", 1, ""),
        ("10_20_x/1.png", 10, "20_x"),
    ],
)
def test_repeats_and_trigger_are_read_from_the_folder(path: str, repeats: int, trigger: str) -> None:
    found = recognize([path])[path].kohya
    assert (found.repeats, found.trigger) == (repeats, trigger)


@pytest.mark.parametrize("numbers", ["012", ("01", "02", "03"), ("00", "01", "02")])
def test_numbered_classes_are_no_repeats(numbers: Sequence[str]) -> None:
    paths = [f"{n}_{name}/1.png" for n, name in zip(numbers, ("cat", "dog", "fox"), strict=True)]
    found = [each.kohya for each in recognize(paths).values()]
    assert [(each.repeats, each.trigger) for each in found] == [(1, "cat"), (1, "dog"), (1, "fox")]


def test_repeats_of_one_to_three_are_repeats() -> None:
    found = recognize(["1_cat/1.png", "2_dog/1.png", "3_fox/1.png"])
    assert [each.kohya.repeats for each in found.values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["a/cat/1.png", "a/dog/x/2.png", "a/3.png"], ["cat", "dog", ""]),
        (["train/cat/1.png", "test/dog/2.png", "validation/cat/3.png"], ["cat", "dog", "cat"]),
        (["train/1.png", "test/2.png"], ["", ""]),
        (["train/1.png", "bus/2.png"], ["train", "bus"]),
    ],
)
def test_classes_are_folders_below_an_imagefolders_splits(paths: list[str], classes: list[str]) -> None:
    assert list(class_folders(paths).values()) == classes
