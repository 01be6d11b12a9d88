"""Decoded images are reused, and images keep their splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.dataset.edited_images import photograph
from tests.trainer.dataset.image_files import encoded, make_zip, noise, png
from trainer.dataset.dataset_folder import DECODED_NAME, IMAGES, THUMBNAILS
from trainer.dataset.images import decode_workers
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.images.perceptual_hash import NO_HASHES
from trainer.dataset.input_files import Limits
from trainer.dataset.preparing.decode_cache import DecodeCache, DecodedImages
from trainer.dataset.preparing.prepare import prepare
from trainer.dataset.split.group_split import Shares
from trainer.protocol.edits import Edits
from trainer.protocol.report import DatasetReport, FindingKind


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded, by SHA-256."""
    counter: Counter[str] = Counter()
    submit = decode_workers._submit

    def counting(pool: object, batch: list[decode_workers.DecodeTask], limits: Limits) -> object:
        counter.update(task.file_sha256 for task in batch)
        return submit(pool, batch, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_workers, "_submit", counting)
    return counter


def folder_of(path: Path, numbers: range) -> Path:
    path.mkdir(exist_ok=True)
    for number in numbers:
        (path / f"{number}.png").write_bytes(png(number))
    return path


def splits(report: DatasetReport) -> dict[str | None, str | None]:
    return {image.pixels_sha256: image.split for image in report.images}


def test_adding_five_images_decodes_five_and_moves_none(tmp_path: Path, decoded: Counter[str]) -> None:
    folder, out = folder_of(tmp_path / "images", range(20)), tmp_path / "out"
    first = prepare([folder], out)
    assert decoded.total() == 20
    decoded.clear()
    folder_of(folder, range(100, 105))
    second = prepare([folder], out)
    assert decoded.total() == 5
    assert second.counts.kept == 25
    assert splits(first).items() <= splits(second).items()
    for image in second.images:
        assert image.path is not None
        assert image.thumbnail is not None
        assert (out / image.path).read_bytes()
        assert (out / image.thumbnail).read_bytes()


def test_a_copy_of_an_image_that_is_not_decoded_again_is_found(tmp_path: Path, decoded: Counter[str]) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for seed in range(3):
        photograph(seed).save(folder / f"{seed}.png")
    prepare([folder], out)
    decoded.clear()
    photograph(1).save(folder / "copy.jpg", quality=70)

    groups = {image.source: image.group for image in prepare([folder], out).images}

    assert decoded.total() == 1
    assert groups["copy.jpg"] == groups["1.png"]


def test_measures_stay_on_the_disk_until_they_are_asked_for(tmp_path: Path) -> None:
    task = decode_workers.DecodeTask(number=1, data=png(1), root=tmp_path)
    for name in (IMAGES, THUMBNAILS):
        (tmp_path / name).mkdir()
    pixels = decode_workers.decode_one(task, Limits())
    assert isinstance(pixels, ImagePixels)
    with DecodedImages(tmp_path, Limits()) as decoded:
        kept = [decoded.add(replace(pixels, image=f"{number}.png")) for number in range(3)]
        assert {each.feature for each in kept} == {b""}
        assert {each.hashes for each in kept} == {NO_HASHES}
        assert decoded.read(kept[1]) == replace(pixels, image="1.png")
        # Written behind all others, also after a look back.
        last = decoded.add(replace(pixels, image="last.png"))
        assert [decoded.read(each).image for each in (last, kept[0])] == ["last.png", "0.png"]


def test_another_folder_can_be_reused(tmp_path: Path, decoded: Counter[str]) -> None:
    first = prepare([make_zip(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(12)})], tmp_path / "one")
    decoded.clear()
    more = make_zip(tmp_path / "b.zip", {f"x{n}.png": png(n) for n in range(5, 20)})
    second = prepare([more], tmp_path / "two", earlier=[tmp_path / "one"])
    assert decoded.total() == 8
    previous = splits(first)
    assert all(split == previous[pixels] for pixels, split in splits(second).items() if pixels in previous)


def test_a_folder_with_other_limits_other_shares_or_damage_is_not_reused(tmp_path: Path, decoded: Counter[str]) -> None:
    folder, out = folder_of(tmp_path / "images", range(12)), tmp_path / "out"
    first = prepare([folder], out)
    decoded.clear()
    prepare([folder], tmp_path / "black", limits=Limits(background=(0, 0, 0)), earlier=[out])
    assert decoded.total() == 12
    other = prepare([folder], tmp_path / "seed", shares=Shares(seed=4), earlier=[out])
    assert splits(other) != splits(first)
    decoded.clear()
    (out / DECODED_NAME).write_bytes(b"\x00garbage\n")
    prepare([folder], tmp_path / "again", earlier=[out])
    assert decoded.total() == 12


def test_a_missing_image_is_decoded_again(tmp_path: Path, decoded: Counter[str]) -> None:
    folder, out = folder_of(tmp_path / "images", range(6)), tmp_path / "out"
    report = prepare([folder], out)
    assert report.images[2].path is not None
    (out / report.images[2].path).unlink()
    decoded.clear()
    prepare([folder], out)
    assert decoded.total() == 1
    assert len(DecodeCache([out], Limits())) == 6


def test_a_decision_by_hand_decodes_nothing_and_can_be_undone(tmp_path: Path, decoded: Counter[str]) -> None:
    folder, out = folder_of(tmp_path / "images", range(8)), tmp_path / "out"
    (folder / "thin.png").write_bytes(png(50, 800, 100))
    first = prepare([folder], out)
    thin, normal = first.images[-1], first.images[0]
    assert (thin.status, normal.status) == ("dropped", "kept")
    assert thin.pixels_sha256 is not None
    assert normal.pixels_sha256 is not None
    decoded.clear()
    edits = Edits(decisions={thin.pixels_sha256: "keep", normal.pixels_sha256: "drop"})
    second = prepare([folder], out, edits=edits)
    assert (second.images[-1].status, second.images[0].status) == ("kept", "dropped")
    assert (second.images[-1].decision, second.images[0].decision) == ("keep", "drop")
    assert second.images[0].findings[-1].kind is FindingKind.BY_HAND
    assert second.images[-1].findings[0].action == "kept"
    assert second.images[-1].path is not None
    assert (out / second.images[-1].path).is_file()
    assert prepare([folder], out, edits=Edits()).images[0].status == "kept"
    assert decoded.total() == 0


def test_the_exact_copy_with_a_caption_is_kept(tmp_path: Path) -> None:
    members = {f"{n}.png": png(n) for n in range(3)}
    members |= {"a.png": png(7), "b.png": png(7), "b.txt": b"a blur", "c.bmp": encoded(noise(7), "BMP")}
    out = tmp_path / "out"
    report = prepare([make_zip(tmp_path / "a.zip", members)], out)
    kept = [image for image in report.images if image.status == "kept" and image.caption == "a blur"]
    assert [image.source for image in kept] == ["a.zip!b.png"]
    assert kept[0].path is not None
    assert (out / kept[0].path).is_file()


def test_a_dataset_that_was_too_small_is_split_once_it_has_grown(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "images", range(2)), tmp_path / "out"
    assert prepare([folder], out).counts.train == 2
    counts = prepare([folder_of(folder, range(2, 4))], out).counts
    assert (counts.train, counts.validation, counts.test) == (2, 1, 1)
