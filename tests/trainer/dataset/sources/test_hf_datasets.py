"""Hugging Face datasets (saved, exported, on the hub) give their images byte for byte, with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.golden import check_sentences
from tests.trainer.dataset.image_files import encoded, noise, png
from tests.trainer.dataset.local_server import as_json, serving
from tests.trainer.dataset.read_sources import captions_of, read_sources
from trainer.dataset.input_files import Limits, RefusedError
from trainer.dataset.sources import hf_datasets
from trainer.dataset.sources.hf_datasets import HubName, is_hub_name, open_hub, parse_name, splits_of
from trainer.dataset.sources.source_readers import Sources
from trainer.errors import DatasetError
from trainer.protocol.report import RefusalKind

IMAGES = [encoded(noise(seed), "JPEG") for seed in range(6)]
FEATURES = datasets.Features(
    {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])}
)


def dataset(first: int = 0, count: int = 3) -> Any:
    """Rows with an image, a caption and a class."""
    indices = range(first, first + count)
    columns = {
        "image": [{"bytes": IMAGES[index], "path": f"{index}.jpg"} for index in indices],
        "text": [f"caption {index}" for index in indices],
        "label": [index % 2 for index in indices],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def read_all(*sources: Path | str, limits: Limits | None = None) -> list[bytes]:
    with Sources(sources, limits or Limits()) as opened:
        return [entry.read() for entry in opened.entries]


@pytest.mark.parametrize("form", ["saved", "saved with splits", "parquet"])
def test_images_are_read_byte_for_byte_with_captions_and_classes(tmp_path: Path, form: str) -> None:
    root = tmp_path / "export"
    if form == "saved":
        dataset(count=6).save_to_disk(root)
    elif form == "saved with splits":
        datasets.DatasetDict({"test": dataset(0, 3), "train": dataset(3, 3)}).save_to_disk(root)
    else:
        root.mkdir()
        dataset(count=6).to_parquet(root / "train-00000-of-00001.parquet", batch_size=4)
    assert read_all(root) == IMAGES
    found, refused = read_sources(tmp_path, root)
    assert list(captions_of(found).values()) == [f"caption {index}" for index in range(6)]
    assert [one.labels.class_name for one in found] == ["cat", "dog"] * 3
    assert refused == []


def with_texts(**texts: list[str]) -> Any:
    """Rows with an image and columns of text."""
    columns = {"image": [{"bytes": IMAGES[index], "path": None} for index in range(3)], **texts}
    types = {name: datasets.Value("string") for name in texts}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **types}))


SENTENCES = ["a red cat sits here", "a dog runs on grass", "an owl in the night"]


@pytest.mark.parametrize("form", ["saved", "parquet"])
@pytest.mark.parametrize(
    ("texts", "chosen", "captions", "told"),
    [
        ({"text": ["x", "y", "z"], "long": SENTENCES}, "long", SENTENCES, ""),
        ({"beschreibung": SENTENCES, "split": ["train"] * 3}, "", SENTENCES, "beschreibung"),
        ({"short": ["one red cat", "one big dog", "one old owl"], "long": SENTENCES}, "", ["", "", ""], "short, long"),
        ({"text": SENTENCES}, "prompt", ["", "", ""], "no column prompt"),
    ],
    ids=["chosen", "by content", "ambiguous", "missing"],
)
def test_the_column_of_the_captions_is_chosen_by_name_or_content(
    tmp_path: Path, form: str, texts: dict[str, list[str]], chosen: str, captions: list[str], told: str
) -> None:
    root = tmp_path / "export"
    if form == "saved":
        with_texts(**texts).save_to_disk(root)
    else:
        root.mkdir()
        with_texts(**texts).to_parquet(root / "a.parquet")

    with Sources([root], Limits(), caption_column=chosen) as opened:
        labels = [entry.row_labels for entry in opened.entries]
        said = [*(column.column for column in opened.caption_columns), *(each.reason for each in opened.refused)]

    assert ["".join(each.captions) for each in labels if each] == captions
    assert [told in each for each in said] == [True] * bool(told)


def test_a_parquet_table_beside_images_has_their_captions(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (root / name).write_bytes(IMAGES[int(name[0])])
    columns = {"file_name": ["1.jpg", "2.jpg", "3.jpg"], "text": SENTENCES, "width": [64, 64, 64]}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "metadata.parquet")

    found, refused = read_sources(tmp_path, root)

    assert captions_of(found) == {"1.jpg": SENTENCES[0], "2.jpg": SENTENCES[1]}
    assert [one.source for one in refused] == ["metadata.parquet:3"]
    with Sources([root], Limits(max_table_bytes=50)) as opened, pytest.raises(RefusedError, match="larger"):
        next(entry for entry in opened.entries if entry.source == "metadata.parquet").read()


def test_rows_are_named_by_their_file_split_and_number(tmp_path: Path) -> None:
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


def test_a_parquet_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(dataset(count=6).with_format("arrow")[:], tmp_path / "a.parquet", row_group_size=2)
    read: list[int] = []
    real = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self: Any, index: int, columns: list[str]) -> Any:
        read.extend([index] * (columns == ["image"]))
        return real(self, index, columns=columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    assert read_all(tmp_path) == IMAGES
    assert read == [0, 1, 2]


def test_parquet_without_hf_features_is_read_by_its_column_names(tmp_path: Path) -> None:
    columns = {"jpg": IMAGES[:2], "blip_caption": [["a cat", "one more"], None], "style": ["ink", "oil"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found, _refused = read_sources(tmp_path, tmp_path)
    assert list(captions_of(found).values()) == ["a cat", ""]
    assert [one.labels.class_name for one in found] == ["ink", "oil"]


def test_images_beside_a_parquet_file_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    dataset().to_parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.png").write_bytes(png(9))
    assert read_all(tmp_path / "in") == [*IMAGES[:3], png(9)]


def test_a_row_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    root, secret = tmp_path / "export", tmp_path / "secret.jpg"
    secret.write_bytes(IMAGES[0])
    root.mkdir()
    (root / "inside.jpg").write_bytes(IMAGES[1])
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
    assert kinds == [RefusalKind.UNSAFE_PATH, RefusalKind.UNSAFE_PATH, IMAGES[1], RefusalKind.DAMAGED]


def test_limits_hold_for_rows(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "export")
    with pytest.raises(RefusedError, match="larger"):
        read_all(tmp_path / "export", limits=Limits(max_entry_bytes=100))
    (tmp_path / "in").mkdir()
    dataset(count=6).to_parquet(tmp_path / "in" / "a.parquet")
    with Sources([tmp_path / "in"], Limits(max_entries=4)) as opened:
        assert len(opened.entries) == 4
        assert opened.refused[0].kind is RefusalKind.TOO_MANY


def test_damaged_exports_and_those_without_images_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "broken.parquet").write_bytes(b"PAR1 and no more")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(root / "words.parquet")
    saved = tmp_path / "saved"
    dataset().save_to_disk(saved)
    next(saved.glob("*.arrow")).write_bytes(b"no arrow")
    found, refused = read_sources(tmp_path, root, saved)
    assert found == []
    sources = ("broken.parquet", "saved", "words.parquet")
    assert {one.source: one.kind for one in refused} == dict.fromkeys(sources, RefusalKind.DAMAGED)
    assert not any("Parquet" in one.reason or "Arrow" in one.reason for one in refused)


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
def test_hub_names_are_parsed(text: str | Path, name: HubName) -> None:
    assert is_hub_name(text)
    assert parse_name(text) == name
    assert parse_name(str(name)) == name


@pytest.mark.parametrize("text", ["hf://pets", "hf://a/b/c/d", "hf://a b/c", "hf://"])
def test_other_names_are_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(DatasetError, match="hf://owner/name"):
        parse_name(text)
    assert not is_hub_name(Path("hf"))


def hub_error(revision: str | None = None, value: object = None, **answer: Any) -> DatasetError:
    """The error for an answer of the hub."""
    path = "/api/datasets/lambda/pets" + (f"/revision/{revision}" if revision else "")
    name = HubName(repository="lambda/pets", revision=revision)
    with serving({path: as_json(value or {}, **answer)}) as (address, requests):
        with pytest.raises(DatasetError) as caught:
            open_hub(name, Limits(), endpoint=address)
        assert requests
    return caught.value


def test_each_problem_with_the_hub_has_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"id": "lambda/pets", "sha": "c0ffee", "siblings": [{"rfilename": "a.parquet", "size": 9 * 2**30}]}
    name = HubName(repository="lambda/pets")
    errors = {
        "no dataset": hub_error(status=404, X_Error_Code="RepoNotFound"),
        "private": hub_error(status=401),
        "gated": hub_error(status=403, X_Error_Code="GatedRepo"),
        "no revision": hub_error(revision="v9", status=404, X_Error_Code="RevisionNotFound"),
        "another status": hub_error(status=418),
        "too large": hub_error(value=info),
    }
    with pytest.raises(DatasetError) as unreachable:
        open_hub(name, Limits(), endpoint="http://127.0.0.1:1")
    with pytest.raises(DatasetError) as switched_off:
        open_hub(name, Limits(allow_downloads=False))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError) as offline:
        open_hub(name, Limits())
    errors |= {"unreachable": unreachable.value, "switched off": switched_off.value, "offline": offline.value}
    check_sentences(Path(__file__).parent / "golden" / "hub_errors.txt", errors)


def test_a_dataset_from_the_hub_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[Any, ...]] = []

    def load(repository: str, configuration: str | None, revision: str) -> Any:
        loads.append((repository, configuration, revision))
        return datasets.DatasetDict({"train": dataset()})

    commits = iter(["c0ffee", "c0ffee", "decaf"])
    monkeypatch.setattr(hf_datasets, "_look_up", lambda *args: (next(commits), 1000))
    monkeypatch.setattr(datasets, "load_dataset", load)
    digests = []
    for _attempt in range(3):
        with Sources([Path("hf://lambda/pets/small@main")], Limits()) as opened:
            digests.append(opened.digest())
            assert opened.entries[0].source == "hf://lambda/pets/small@main!train/1"
            assert opened.entries[0].read() == IMAGES[0]
    assert loads[0] == ("lambda/pets", "small", "c0ffee")
    assert digests[0] == digests[1] != digests[2]


def test_a_local_hub_dataset_goes_through_the_real_loader(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    dataset(count=6).to_parquet(tmp_path / "repo" / "train.parquet")
    loaded = datasets.load_dataset(str(tmp_path / "repo"), cache_dir=str(tmp_path / "cache"))
    rows = splits_of(loaded)["train"]
    assert [cell["bytes"] for cell in map(rows.cell, range(6)) if isinstance(cell, dict)] == IMAGES
