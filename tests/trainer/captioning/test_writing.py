"""Pictures without a caption get one, which stays marked as automatic, and no caption by a person is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.captioning.random_captioners import make_blip, make_tagger
from tests.trainer.dataset.making import noise
from trainer.captioning.writing import run
from trainer.errors import DatasetError
from trainer.protocol.edits import Edits, EditsError, read_edits
from trainer.protocol.report import CAPTION_BY_RULE, Counts, DatasetReport, Image, Split


@pytest.fixture
def tagger(tmp_path: Path) -> str:
    return str(make_tagger(tmp_path / "tagger"))


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    """Five kept pictures, the second with a caption, the third with a trigger by rule only, and a dropped one."""
    folder = tmp_path / "dataset"
    (folder / "pictures").mkdir(parents=True)
    kept = [_kept(folder, number) for number in range(1, 6)]
    kept[1] = kept[1].model_copy(update={"caption": "a tree", "caption_source": "2.txt"})
    kept[2] = kept[2].model_copy(update={"caption": "sks", "caption_source": CAPTION_BY_RULE})
    dropped = Image(source="6.png", status="dropped", pixels_sha256="hash6")
    counts = Counts(images=6, kept=5, dropped=1, refused=0, train=5, validation=0, test=0, captioned=1)
    report = DatasetReport(digest="d", counts=counts, summary="", images=(*kept, dropped), resolution=64)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def _kept(folder: Path, number: int) -> Image:
    path = f"pictures/{number}.png"
    noise(number).save(folder / path)
    return Image(source=path, status="kept", group=number, split=Split.TRAIN, pixels_sha256=f"hash{number}", path=path)


def test_kept_pictures_without_a_caption_get_one(dataset_dir: Path, tagger: str) -> None:
    said = []
    out = dataset_dir / "edits.json"

    run(dataset_dir, tagger, out, batch_size=3, progress=lambda phase, done, total: said.append((done, total)))

    assert read_edits(out).automatic == dict.fromkeys(["hash1", "hash3", "hash4", "hash5"], "long hair, cat")
    assert said == [(0, 4), (3, 4), (4, 4)]


def test_all_pictures_get_one_where_that_is_wanted(dataset_dir: Path, tagger: str) -> None:
    assert run(dataset_dir, tagger, dataset_dir / "edits.json", only_missing=False) == 5


def test_batches_do_not_change_what_is_written(dataset_dir: Path, tmp_path: Path) -> None:
    blip = str(make_blip(tmp_path / "blip"))

    for size in (1, 4):
        run(dataset_dir, blip, tmp_path / f"{size}.json", batch_size=size)

    assert read_edits(tmp_path / "1.json") == read_edits(tmp_path / "4.json")


def test_captions_go_into_the_edits_and_leave_the_rest_of_them_alone(
    dataset_dir: Path, tagger: str, tmp_path: Path
) -> None:
    out = tmp_path / "edits.json"
    Edits(decisions={"hash1": "keep"}, captions={"hash4": "by hand", "hash2": "mine"}).write(out)

    assert run(dataset_dir, tagger, out) == 3

    edits = read_edits(out)
    assert edits.decisions == {"hash1": "keep"}
    assert edits.captions == {"hash4": "by hand", "hash2": "mine"}
    assert edits.automatic == dict.fromkeys(["hash1", "hash3", "hash5"], "long hair, cat")
    assert edits.captioner == "tagger"


def test_a_second_run_writes_only_what_is_new(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    Edits(automatic={"hash1": "a boat"}, reviewed=("hash1",)).write(out)

    assert run(dataset_dir, tagger, out) == 3
    assert run(dataset_dir, tagger, out) == 0

    assert read_edits(out).automatic["hash1"] == "a boat"
    assert read_edits(out).reviewed == ("hash1",)


def test_a_caption_that_is_written_anew_must_be_looked_at_again(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    Edits(automatic={"hash1": "a boat"}, reviewed=("hash1", "other")).write(out)

    assert run(dataset_dir, tagger, out, only_missing=False) == 5

    assert read_edits(out).automatic["hash1"] == "long hair, cat"
    assert read_edits(out).reviewed == ("other",)


def test_what_was_written_before_a_failure_is_kept(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    out = tmp_path / "edits.json"
    (dataset_dir / "pictures" / "5.png").write_bytes(b"no picture")

    with pytest.raises(DatasetError, match="damaged or gone"):
        run(dataset_dir, tagger, out, batch_size=1)

    assert list(read_edits(out).automatic) == ["hash1", "hash3", "hash4"]


def test_what_is_no_dataset_or_no_edits_is_refused(dataset_dir: Path, tagger: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text("[]", encoding="utf-8")

    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        run(tmp_path, tagger, tmp_path / "edits.json")
    with pytest.raises(EditsError):
        run(dataset_dir, tagger, tmp_path / "wrong.json")
