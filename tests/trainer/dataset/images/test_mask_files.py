"""Masks are found by name or in the transparency, are not taken for images, and are transformed like their image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tests.golden import check_sentences
from tests.trainer.dataset.image_files import encoded, make_zip, noise, png
from trainer.dataset.buckets import fit_to_bucket
from trainer.dataset.images import decode_workers
from trainer.dataset.images import mask_files as masks_module
from trainer.dataset.images.mask_files import fit_mask, open_mask
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing.prepare import prepare
from trainer.errors import DatasetError
from trainer.protocol import report as protocol
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import DatasetReport, FindingKind

SIZE = 160, 120
ORIENTATION = 0x0112


def a_mask(box: tuple[int, int, int, int] = (0, 0, 80, 120), size: Size = SIZE) -> Image.Image:
    """White in a box, black elsewhere."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def cut_out(seed: int, alpha: Image.Image) -> Image.Image:
    image = noise(seed, *alpha.size).convert("RGBA")
    image.putalpha(alpha)
    return image


def prepared(tmp_path: Path, members: Mapping[str, bytes], limits: Limits = Limits()) -> DatasetReport:  # noqa: B008
    source = make_zip(tmp_path / "a.zip", dict(members))
    return prepare([source], tmp_path / "out", resolutions=(64,), limits=limits)


def image_of(report: DatasetReport, name: str) -> protocol.Image:
    (image,) = [image for image in report.images if image.source.endswith(f"!{name}")]
    return image


def stored(tmp_path: Path, report: DatasetReport, name: str) -> NDArray[np.uint8]:
    path = image_of(report, name).mask
    assert path is not None
    with Image.open(tmp_path / "out" / path) as opened:
        assert (opened.mode, opened.format) == ("L", "PNG")
        return np.asarray(opened)


def problems(report: DatasetReport, name: str) -> list[str]:
    found = [finding for finding in image_of(report, name).findings if finding.kind is FindingKind.MASK]
    assert all(finding.action == "kept" for finding in found)
    return [finding.message for finding in found]


# -- prepared --------------------------------------------------------------------------------------------------------


def test_masks_are_stored_beside_the_images(tmp_path: Path) -> None:
    left, top = a_mask(), a_mask((0, 0, 160, 40))
    report = prepared(
        tmp_path,
        {
            "a.png": png(1),
            "a.mask.png": encoded(left),
            "b.jpg": encoded(noise(2), "JPEG"),
            "b-masklabel.png": encoded(top),
            "c.png": png(3),
            "masks/c.png": encoded(left.convert("RGB")),
            "d.png": encoded(cut_out(4, top)),
            "e.png": png(5),
            "f.png": encoded(noise(6).convert("RGBA")),
            "lost.mask.png": encoded(left),
        },
    )

    names = ("a.png", "b.jpg", "c.png", "d.png", "e.png", "f.png")
    assert [image.source for image in report.images] == [f"a.zip!{name}" for name in names]
    assert report.counts.kept == 6
    for name, mask in (("a.png", left), ("b.jpg", top), ("c.png", left), ("d.png", top)):
        assert np.array_equal(stored(tmp_path, report, name), np.asarray(mask)), name
        assert problems(report, name) == []
    assert image_of(report, "e.png").mask is image_of(report, "f.png").mask is None
    assert [refused.source for refused in report.refused] == ["a.zip!lost.mask.png"]
    # Equal masks share a file.
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def rotated(image: Image.Image, file_format: str) -> bytes:
    """Stored sideways, with the orientation tag that makes it upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), file_format, exif=exif)


@pytest.mark.parametrize(
    "members",
    [
        {"a.jpg": encoded(cut_out(1, a_mask((0, 0, 9, 9))), "PNG"), "a.mask.png": encoded(a_mask())},
        {"a.jpg": encoded(noise(1), "JPEG"), "masks/a.png": encoded(cut_out(2, a_mask()))},
        {"a.jpg": encoded(noise(1), "JPEG"), "a.mask.png": encoded(a_mask().point(lambda value: value // 255))},
        {"a.jpg": rotated(noise(1), "JPEG"), "a.mask.png": encoded(a_mask())},
        {"a.jpg": rotated(noise(1), "JPEG"), "a.mask.png": rotated(a_mask(), "PNG")},
        {"a.jpg": encoded(noise(1), "JPEG"), "a.mask.png": rotated(a_mask(), "PNG")},
        {"a.jpg": rotated(cut_out(1, a_mask()), "PNG")},
    ],
    ids=[
        "a mask file is preferred to the transparency",
        "the transparency of a mask file is its mask",
        "a mask of 0 and 1 is scaled",
        "a rotated image is made upright",
        "image and mask are made upright",
        "a rotated mask is made upright",
        "rotated transparency is made upright",
    ],
)
def test_a_mask_is_stored_upright_in_black_and_white(tmp_path: Path, members: dict[str, bytes]) -> None:
    report = prepared(tmp_path, members)

    assert (image_of(report, "a.jpg").width, image_of(report, "a.jpg").height) == SIZE
    assert np.array_equal(stored(tmp_path, report, "a.jpg"), np.asarray(a_mask()))
    assert problems(report, "a.jpg") == []


def test_a_mask_of_another_size_is_scaled_and_another_shape_is_a_finding(tmp_path: Path) -> None:
    report = prepared(
        tmp_path,
        {
            "small.png": png(1),
            "small.mask.png": encoded(a_mask((0, 0, 40, 60), (80, 60))),
            "wide.png": png(2),
            "wide.mask.png": encoded(a_mask((0, 0, 60, 40), (120, 40))),
        },
    )

    for name in ("small.png", "wide.png"):
        mask = stored(tmp_path, report, name)
        assert mask.shape == (120, 160)
        # White on the left half, but for what scaling makes of the edge.
        assert mask[:, :76].min() == 255
        assert mask[:, 84:].max() == 0
    assert problems(report, "small.png") == []
    (problem,) = problems(report, "wide.png")
    assert "120x40" in problem


def test_the_mask_of_a_large_image_has_the_stored_size(tmp_path: Path) -> None:
    limits = Limits(max_stored_pixels=80 * 60)
    report = prepared(tmp_path, {"a.png": png(1), "a.mask.png": encoded(a_mask())}, limits)

    assert stored(tmp_path, report, "a.png").shape == (60, 80)


def test_an_unusable_mask_does_not_drop_the_image(tmp_path: Path) -> None:
    masks = {
        "black": encoded(Image.new("L", SIZE, 0)),
        "damaged": encoded(a_mask())[:60],
        "empty": b"",
        "large": encoded(Image.new("L", (400, 300))),
    }
    images = {f"{name}.png": png(seed) for seed, name in enumerate(masks)}
    images["transparent.png"] = encoded(cut_out(9, Image.new("L", SIZE, 0)))
    members = images | {f"{name}.mask.png": mask for name, mask in masks.items()}

    report = prepared(tmp_path, members, Limits(max_pixels=160 * 120))

    assert all((image.status, image.mask) == ("kept", None) for image in report.images)
    sentences = {name: "; ".join(problems(report, name)) for name in images}
    check_sentences(Path(__file__).parent / "golden" / "mask_findings.txt", sentences)


def test_masks_are_decoded_only_in_the_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened_here(*_: object) -> None:
        raise AssertionError("this process must not open an untrusted mask")

    monkeypatch.setattr(masks_module, "decode_mask", opened_here)
    monkeypatch.setattr(decode_workers, "make_mask", opened_here)

    report = prepared(tmp_path, {"a.png": png(1), "a.mask.png": encoded(a_mask())})

    assert image_of(report, "a.png").mask is not None


def test_a_loose_image_has_the_mask_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.mask.png").write_bytes(encoded(a_mask()))

    report = prepare([tmp_path / "a.png"], tmp_path / "out", resolutions=(64,))

    assert [(image.source, image.mask is not None) for image in report.images] == [("a.png", True)]


def test_identical_images_with_different_masks_are_decoded_separately(tmp_path: Path) -> None:
    report = prepared(tmp_path, {"a.png": png(1), "b.png": png(1), "b.mask.png": encoded(a_mask())})

    kinds = [[finding.kind for finding in image.findings] for image in report.images]
    assert FindingKind.EXACT_DUPLICATE in kinds[0] + kinds[1]
    assert report.counts.kept == 1


# -- prepared again --------------------------------------------------------------------------------------------------


def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the images that were sent to a decoder."""
    numbers: list[int] = []
    submit = decode_workers._submit

    def counting(pool: object, batch: list[decode_workers.DecodeTask], limits: Limits) -> object:
        numbers.extend(task.number for task in batch)
        return submit(pool, batch, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_workers, "_submit", counting)
    return numbers


def test_masks_of_an_earlier_preparation_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a.png": png(1), "a.mask.png": encoded(a_mask()), "b.png": encoded(cut_out(2, a_mask()))}
    first = prepared(tmp_path, members)
    numbers = sent(monkeypatch)

    second = prepared(tmp_path, {**members, "c.png": png(3)})

    assert numbers == [3]
    for name in ("a.png", "b.png"):
        assert image_of(second, name).mask == image_of(first, name).mask
        assert np.array_equal(stored(tmp_path, second, name), np.asarray(a_mask()))


def test_another_mask_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a.png": png(1), "a.mask.png": encoded(a_mask()), "b.png": png(2)}
    first = prepared(tmp_path, members)
    numbers = sent(monkeypatch)

    second = prepared(tmp_path, {**members, "a.mask.png": encoded(a_mask((0, 0, 9, 9)))})

    assert numbers == [1]
    assert first.digest != second.digest
    assert np.array_equal(stored(tmp_path, second, "a.png"), np.asarray(a_mask((0, 0, 9, 9))))


def test_a_folder_with_a_missing_mask_is_prepared_again(tmp_path: Path) -> None:
    members = {"a.png": png(1), "a.mask.png": encoded(a_mask())}
    path = image_of(prepared(tmp_path, members), "a.png").mask
    assert path is not None
    (tmp_path / "out" / path).unlink()

    assert np.array_equal(stored(tmp_path, prepared(tmp_path, members), "a.png"), np.asarray(a_mask()))


def test_opening_a_missing_mask_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"masks/x\.png"):
        open_mask(tmp_path, "masks/x.png")


# -- in a bucket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [(64, 64), (96, 48), (48, 96), (160, 120)])
def test_a_fitted_mask_is_the_masked_share_of_each_latent_pixel(bucket: Size) -> None:
    cells = bucket[0] // 8, bucket[1] // 8
    mask = a_mask((50, 30, 93, 71))
    scale = max(bucket[0] / SIZE[0], bucket[1] / SIZE[1])
    left, top = (SIZE[0] - bucket[0] / scale) / 2, (SIZE[1] - bucket[1] / scale) / 2
    side = 8 / scale

    found = np.asarray(fit_mask(mask, bucket, cells), dtype=float) / 255

    for row in range(cells[1]):
        for column in range(cells[0]):
            x, y = left + column * side, top + row * side
            width = max(0.0, min(x + side, 93) - max(x, 50))
            height = max(0.0, min(y + side, 71) - max(y, 30))
            assert found[row, column] == pytest.approx(width * height / side**2, abs=0.08)


@pytest.mark.parametrize("bucket", [(64, 64), (96, 48), (48, 96)])
def test_a_mask_is_cropped_like_its_image(bucket: Size) -> None:
    image = noise(1, 150, 90).convert("L").filter(ImageFilter.GaussianBlur(3))
    by_image = fit_to_bucket(image.convert("RGB"), bucket).convert("L").reduce(8)

    by_mask = fit_mask(image, bucket, (bucket[0] // 8, bucket[1] // 8))

    gap = np.abs(np.asarray(by_image, dtype=int) - np.asarray(by_mask, dtype=int))
    assert gap.max() <= 8
    assert gap.mean() < 2
