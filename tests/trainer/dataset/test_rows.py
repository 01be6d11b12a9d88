"""Hugging Face datasets, saved, exported or from the hub, give their pictures byte for byte, captioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.trainer.dataset.making import encoded, noise, png
from tests.trainer.dataset.serving import as_json, serving
from tests.trainer.dataset.test_sources import captions, taken
from trainer.dataset.archives import RefusedError
from trainer.dataset.limits import Limits
from trainer.dataset.sources import hub
from trainer.dataset.sources.dataset_rows import splits_of
from trainer.dataset.sources.hub import HubName, is_hub_name, open_hub, parse_name
from trainer.dataset.sources.source_readers import Sources
from trainer.errors import DatasetError
from trainer.protocol.report import RefusalKind

PICTURES = [encoded(noise(seed), "JPEG") for seed in range(6)]
FEATURES = datasets.Features(
    {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
)


def dataset(first: int = 0, count: int = 3) -> Any:
    """Rows with a picture, a caption and a class."""
    places = range(first, first + count)
    columns = {
        "image": [{"bytes": PICTURES[place], "path": f"{place}.jpg"} for place in places],
        "text": [f"caption {place}" for place in places],
        "label": [place % 2 for place in places],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def read_all(*sources: Path | str, limits: Limits | None = None) -> list[bytes]:
    with Sources(sources, limits or Limits()) as opened:
        return [entry.read() for entry in opened.entries]


@pytest.mark.parametrize("form", ["saved", "saved with splits", "parquet"])
def test_pictures_come_out_byte_for_byte_with_captions_and_classes(tmp_path: Path, form: str) -> None:
    root = tmp_path / "export"
    if form == "saved":
        dataset(count=6).save_to_disk(root)
    elif form == "saved with splits":
        datasets.DatasetDict({"test": dataset(0, 3), "train": dataset(3, 3)}).save_to_disk(root)
    else:
        root.mkdir()
        dataset(count=6).to_parquet(root / "train-00000-of-00001.parquet", batch_size=4)
    assert read_all(root) == PICTURES
    found, refused = taken(tmp_path, root)
    assert list(captions(found).values()) == [f"caption {place}" for place in range(6)]
    assert [one.class_name for one in found] == ["cat", "dog"] * 3
    assert refused == []


def test_rows_are_named_so_that_people_find_them(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset()}).save_to_disk(tmp_path / "pets")
    (tmp_path / "other").mkdir()
    dataset().to_parquet(tmp_path / "other" / "data.parquet")
    with Sources([tmp_path / "pets", tmp_path / "other"], Limits()) as opened:
        assert [entry.source for entry in opened.entries] == [
            "data.parquet!1",
            "data.parquet!2",
            "data.parquet!3",
            "pets!train/1",
            "pets!train/2",
            "pets!train/3",
        ]


def test_a_parquet_row_group_is_inflated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(dataset(count=6).with_format("arrow")[:], tmp_path / "a.parquet", row_group_size=2)
    read: list[int] = []
    real = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self: Any, place: int, columns: list[str]) -> Any:
        read.extend([place] * (columns == ["image"]))
        return real(self, place, columns=columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    assert read_all(tmp_path) == PICTURES
    assert read == [0, 1, 2]


def test_parquet_of_other_makers_is_read_by_its_column_names(tmp_path: Path) -> None:
    columns = {"jpg": PICTURES[:2], "blip_caption": [["a cat", "one more"], None], "style": ["ink", "oil"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found, _ = taken(tmp_path, tmp_path)
    assert list(captions(found).values()) == ["a cat", ""]
    assert [one.class_name for one in found] == ["ink", "oil"]


def test_pictures_beside_a_parquet_file_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    dataset().to_parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.png").write_bytes(png(9))
    assert read_all(tmp_path / "in") == [*PICTURES[:3], png(9)]


def test_a_row_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    root, secret = tmp_path / "export", tmp_path / "secret.jpg"
    secret.write_bytes(PICTURES[0])
    root.mkdir()
    (root / "inside.jpg").write_bytes(PICTURES[1])
    names = [str(secret), "../secret.jpg", "inside.jpg", None]
    cells = [{"bytes": None, "path": name} for name in names]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), root / "a.parquet")
    with Sources([root], Limits()) as opened:
        rows = [entry for entry in opened.entries if "!" in entry.source]
        kinds: list[object] = []
        for entry in rows:
            try:
                kinds.append(entry.read())
            except RefusedError as refusal:
                kinds.append(refusal.kind)
    assert kinds == [RefusalKind.UNSAFE_PATH, RefusalKind.UNSAFE_PATH, PICTURES[1], RefusalKind.DAMAGED]


def test_limits_hold_for_rows(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "export")
    with pytest.raises(RefusedError, match="larger"):
        read_all(tmp_path / "export", limits=Limits(max_entry_bytes=100))
    (tmp_path / "in").mkdir()
    dataset(count=6).to_parquet(tmp_path / "in" / "a.parquet")
    with Sources([tmp_path / "in"], Limits(max_entries=4)) as opened:
        assert len(opened.entries) == 4
        assert opened.refused[0].reason == "it holds more than 4 rows; the rest was not opened"


def test_damaged_exports_and_those_without_pictures_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "broken.parquet").write_bytes(b"PAR1 and no more")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(root / "words.parquet")
    saved = tmp_path / "saved"
    dataset().save_to_disk(saved)
    next(saved.glob("*.arrow")).write_bytes(b"no arrow")
    with Sources([root, saved], Limits()) as opened:
        assert opened.entries == []
        reasons = {one.source: one.reason for one in opened.refused}
    assert reasons["broken.parquet"].startswith("it is damaged")
    assert reasons["words.parquet"] == "none of its columns holds pictures (text)"
    assert reasons["saved"].startswith("it is damaged")


def test_the_digest_of_an_export_covers_its_files(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "export")
    digests = []
    for change in (b"", b"", b"x"):
        with next((tmp_path / "export").glob("*.arrow")).open("ab") as file:
            file.write(change)
        with Sources([tmp_path / "export"], Limits()) as opened:
            digests.append(opened.digest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://lambda/pets", HubName(repository="lambda/pets")),
        (Path("hf://lambda/pets@main"), HubName(repository="lambda/pets", revision="main")),
        (
            "hf://lambda/pets/small@refs/pr/1",
            HubName(repository="lambda/pets", configuration="small", revision="refs/pr/1"),
        ),
    ],
)
def test_names_of_datasets_are_read(text: str | Path, name: HubName) -> None:
    assert is_hub_name(text)
    assert parse_name(text) == name
    assert parse_name(str(name)) == name


@pytest.mark.parametrize("text", ["hf://pets", "hf://a/b/c/d", "hf://a b/c", "hf://"])
def test_other_names_are_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(DatasetError, match="hf://owner/name"):
        parse_name(text)
    assert not is_hub_name(Path("hf"))


def failure(limits: Limits = Limits(), revision: str | None = None, **answer: Any) -> str:  # noqa: B008  frozen
    """What is said where the hub answers so."""
    path = "/api/datasets/lambda/pets" + (f"/revision/{revision}" if revision else "")
    name = HubName(repository="lambda/pets", revision=revision)
    with serving({path: as_json(answer.pop("value", {}), **answer)}) as (address, asked):
        with pytest.raises(DatasetError) as caught:
            open_hub(name, limits, endpoint=address)
        assert asked
    return str(caught.value)


def test_what_the_hub_will_not_give_is_said_plainly() -> None:
    assert "There is no dataset lambda/pets" in failure(status=404, X_Error_Code="RepoNotFound")
    assert "There is no dataset lambda/pets" in failure(status=401)
    assert "is gated" in failure(status=403, X_Error_Code="GatedRepo")
    assert "has no revision v9" in failure(revision="v9", status=404, X_Error_Code="RevisionNotFound")
    assert "the Hugging Face hub answers 418" in failure(status=418)


def test_a_dataset_that_is_too_large_is_not_downloaded() -> None:
    info = {"id": "lambda/pets", "sha": "c0ffee", "siblings": [{"rfilename": "a.parquet", "size": 9 * 2**30}]}
    assert "takes 9.0 GiB; at most 8.0 are downloaded" in failure(value=info)


def test_without_the_hub_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    name = HubName(repository="lambda/pets")
    with pytest.raises(DatasetError, match="cannot be reached"):
        open_hub(name, Limits(), endpoint="http://127.0.0.1:1")
    with pytest.raises(DatasetError, match="switched off"):
        open_hub(name, Limits(allow_downloads=False))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE"):
        open_hub(name, Limits())


def test_a_dataset_from_the_hub_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(repository: str, configuration: str | None, revision: str) -> Any:
        asked.append((repository, configuration, revision))
        return datasets.DatasetDict({"train": dataset()})

    commits = iter(["c0ffee", "c0ffee", "decaf"])
    monkeypatch.setattr(hub, "_look_up", lambda *_: (next(commits), 1000))
    monkeypatch.setattr(datasets, "load_dataset", load)
    digests = []
    for _ in range(3):
        with Sources([Path("hf://lambda/pets/small@main")], Limits()) as opened:
            digests.append(opened.digest())
            assert opened.entries[0].source == "hf://lambda/pets/small@main!train/1"
            assert opened.entries[0].read() == PICTURES[0]
    assert asked[0] == ("lambda/pets", "small", "c0ffee")
    assert digests[0] == digests[1] != digests[2]


def test_a_local_hub_dataset_goes_through_the_real_loader(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    dataset(count=6).to_parquet(tmp_path / "repo" / "train.parquet")
    loaded = datasets.load_dataset(str(tmp_path / "repo"), cache_dir=str(tmp_path / "cache"))
    rows = splits_of(loaded)["train"]
    assert [cell["bytes"] for cell in map(rows.cell, range(6)) if isinstance(cell, dict)] == PICTURES
