"""Images without a caption get an automatic one, and captions by hand are never changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.captioning.random_captioners import make_blip, make_tagger
from tests.trainer.dataset.image_files import noise
from trainer.captioning.auto_captions import caption_dataset
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_edits, write_edits
from trainer.protocol.edits import Edits, EditsError
from trainer.protocol.report import CAPTION_BY_RULE, Counts, DatasetReport, Image, Split


@pytest.fixture
def tagger(tmp_path: Path) -> str:
    return str(make_tagger(tmp_path / "tagger"))


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    """Five kept images (the second has a caption, the third only the trigger by rule) and a dropped one."""
    folder = tmp_path / "dataset"
    (folder / "images").mkdir(parents=True)
    kept = [_kept(folder, number) for number in range(1, 6)]
    kept[1] = replace(kept[1], caption="a tree", caption_source="2.txt")
    kept[2] = replace(kept[2], caption="sks", caption_source=CAPTION_BY_RULE)
    dropped = Image(source="6.png", status="dropped", pixels_sha256="hash6")
    counts = Counts(images=6, kept=5, dropped=1, refused=0, train=5, validation=0, test=0, captioned=1)
    report = DatasetReport(digest="d", counts=counts, summary="", images=(*kept, dropped))
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def _kept(folder: Path, number: int) -> Image:
    path = f"images/{number}.png"
    noise(number).save(folder / path)
    return Image(source=path, status="kept", group=number, split=Split.TRAIN, pixels_sha256=f"hash{number}", path=path)


def test_kept_images_without_a_caption_get_one(dataset_dir: Path, tagger: str) -> None:
    reported = []
    out = dataset_dir / "edits.json"

    caption_dataset(
        dataset_dir, tagger, out, batch_size=3, progress=lambda phase, done, total: reported.append((done, total))
    )

    assert read_edits(out).automatic == dict.fromkeys(["hash1", "hash3", "hash4", "hash5"], "long hair, cat")
    assert reported == [(0, 4), (3, 4), (4, 4)]


def test_all_images_get_one_if_requested(dataset_dir: Path, tagger: str) -> None:
    assert caption_dataset(dataset_dir, tagger, dataset_dir / "edits.json", only_missing=False) == 5


def test_the_batch_size_does_not_change_the_captions(dataset_dir: Path, tmp_path: Path) -> None:
    blip = str(make_blip(tmp_path / "blip"))

    for size in (1, 4):
        caption_dataset(dataset_dir, blip, tmp_path / f"{size}.json", batch_size=size)

    assert read_edits(tmp_path / "1.json") == read_edits(tmp_path / "4.json")


def test_captions_are_added_to_the_edits_and_the_rest_is_unchanged(
    dataset_dir: Path, tagger: str, tmp_path: Path
) -> None:
    out = tmp_path / "edits.json"
    write_edits(out, Edits(decisions={"hash1": "keep"}, captions={"hash4": "by hand", "hash2": "mine"}))

    assert caption_dataset(dataset_dir, tagger, out) == 3

    edits = read_edits(out)
    assert edits.decisions == {"hash1": "keep"}
    assert edits.captions == {"hash4": "by hand", "hash2": "mine"}
    assert edits.automatic == dict.fromkeys(["hash1", "hash3", "hash5"], "long hair, cat")
    assert edits.captioner == "tagger"


def test_a_second_run_captions_only_new_images(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    write_edits(out, Edits(automatic={"hash1": "a boat"}, reviewed=("hash1",)))

    assert caption_dataset(dataset_dir, tagger, out) == 3
    assert caption_dataset(dataset_dir, tagger, out) == 0

    assert read_edits(out).automatic["hash1"] == "a boat"
    assert read_edits(out).reviewed == ("hash1",)


def test_a_caption_that_is_generated_again_must_be_reviewed_again(
    dataset_dir: Path, tagger: str, tmp_path: Path
) -> None:
    out = tmp_path / "edits.json"
    write_edits(out, Edits(automatic={"hash1": "a boat"}, reviewed=("hash1", "other")))

    assert caption_dataset(dataset_dir, tagger, out, only_missing=False) == 5

    assert read_edits(out).automatic["hash1"] == "long hair, cat"
    assert read_edits(out).reviewed == ("other",)


def test_captions_before_a_failure_are_saved(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    (dataset_dir / "images" / "5.png").write_bytes(b"not an image")

    with pytest.raises(DatasetError, match="is damaged or missing"):
        caption_dataset(dataset_dir, tagger, out, batch_size=1)

    assert list(read_edits(out).automatic) == ["hash1", "hash3", "hash4"]


def test_other_folders_and_files_are_refused(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text("[]", encoding="utf-8")

    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        caption_dataset(tmp_path, tagger, tmp_path / "edits.json")
    with pytest.raises(EditsError):
        caption_dataset(dataset_dir, tagger, tmp_path / "wrong.json")
