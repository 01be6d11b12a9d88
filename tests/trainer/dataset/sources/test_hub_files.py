"""A dataset of the hub as files: real `huggingface_hub`, a hub of our own over HTTP, a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCardData

from tests.golden import check_sentences
from tests.trainer.dataset.image_files import encoded, noise, png
from tests.trainer.dataset.local_hub import COMMIT, hub_answers, local_hub
from tests.trainer.dataset.local_server import Answer, serving
from tests.trainer.dataset.read_sources import captions_of, read_sources
from trainer.dataset.input_files import Limits
from trainer.dataset.sources.hf_datasets import parse_name
from trainer.dataset.sources.hub_files import _named, extract_rows
from trainer.errors import DatasetError
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.hub import HubDatasetFacts

IMAGES = [encoded(noise(seed), "JPEG") for seed in range(6)]
FILES = {
    "README.md": b"# Pets",
    "train.py": b"raise SystemExit",
    "cats/1.jpg": IMAGES[0],
    "cats/1.txt": b"a cat",
    "cats/card.md": b"# Cats",
    "dogs/2.jpg": IMAGES[1],
    ".hidden/3.jpg": IMAGES[2],
}


def trainer(address: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", **env}
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def parquet(count: int = 3) -> bytes:
    """A table with images, captions and classes."""
    rows = {
        "image": [{"bytes": IMAGES[index], "path": None} for index in range(count)],
        "text": [f"a photo, number {index}" for index in range(count)],
        "label": [index % 2 for index in range(count)],
    }
    label = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string"), "label": label})
    file = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file.getvalue()


def test_the_facts_are_told_and_then_exactly_these_files_arrive_without_a_token(tmp_path: Path) -> None:
    out, told = tmp_path / "pets", tmp_path / "facts.json"
    tokens: list[str | None] = []

    def noting(answer: Answer) -> Answer:
        def send(request: BaseHTTPRequestHandler) -> None:
            tokens.append(request.headers.get("Authorization"))
            answer(request)

        return send

    configurations = [{"config_name": "furry", "data_files": ["cats/*", "dogs/*"]}]
    answers = hub_answers("lambda/pets", FILES, cardData={"license": "cc-by-4.0", "configs": configurations})
    with serving({path: noting(answer) for path, answer in answers.items()}) as (address, asked):
        looked_up = trainer(address, "fetch-dataset", "hf://lambda/pets/furry", "--facts", told)
        assert looked_up.returncode == 0, looked_up.stderr
        facts = HubDatasetFacts.model_validate_json(told.read_bytes())
        assert not [path for path in asked if "/resolve/" in path]
        fetched = trainer(address, "fetch-dataset", facts.source, "--out", out)
    assert fetched.returncode == 0, fetched.stderr
    assert len(tokens) > 5
    assert set(tokens) == {None}
    taken = {
        name: data for name, data in FILES.items() if name.startswith(("cats", "dogs")) and not name.endswith(".md")
    }
    assert facts == HubDatasetFacts(
        name="lambda/pets/furry", commit=COMMIT, files=3, bytes=sum(map(len, taken.values())), license="cc-by-4.0"
    )
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == taken


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("hf://lambda/pets", ["a/1.jpg", "a/deep/2.jpg", "b/3.jpg", "c/4.jpg"]),
        ("hf://lambda/pets/small", ["a/1.jpg"]),
        ("hf://lambda/pets/splits", ["a/1.jpg", "a/deep/2.jpg", "b/3.jpg"]),
        ("hf://lambda/pets/below", ["b/3.jpg"]),
        ("hf://lambda/pets/c", ["c/4.jpg"]),
        ("hf://lambda/pets/odd", ["a/1.jpg", "a/deep/2.jpg", "b/3.jpg", "c/4.jpg"]),
    ],
)
def test_a_name_means_a_configuration_of_the_card_or_else_a_folder(name: str, taken: list[str]) -> None:
    configurations = [
        {"config_name": "small", "data_files": "a/*.jpg"},
        {
            "config_name": "splits",
            "data_files": [{"split": "train", "path": ["a/**"]}, {"split": "test", "path": "b/*"}],
        },
        {"config_name": "below", "data_dir": "b", "data_files": {"train": "*.jpg"}},
        # Not as the hub would have it: the whole dataset.
        {"config_name": "odd", "data_files": "a**b"},
        "no configuration",
    ]
    files = dict.fromkeys(("a/1.jpg", "a/deep/2.jpg", "b/3.jpg", "c/4.jpg"), IMAGES[0])
    card = DatasetCardData(configs=configurations)
    assert _named(list(files), parse_name(name), card) == taken


@pytest.mark.slow
def test_each_dataset_that_is_not_taken_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sentences: dict[str, object] = {}

    def refused(case: str, files: dict[str, bytes], *more: str, name: str = "hf://lambda/pets", **info: Any) -> None:
        with local_hub("lambda/pets", files, **info) as (address, asked):
            found = trainer(address, "fetch-dataset", name, "--out", tmp_path / "out", *more)
        assert found.returncode == EXIT_REFUSED, found.stderr
        assert not [path for path in asked if "/resolve/" in path]
        sentences[case] = found.stderr.strip().splitlines()[-1]

    refused("not found", FILES, name="hf://lambda/cats")
    refused("no name", FILES, name="hf://pets")
    refused("gated", FILES, gated="manual")
    refused("too large", FILES, "--limit", "max_archive_bytes=1000")
    refused("too many files", FILES, "--limit", "max_entries=2")
    refused("no images", {"data.csv": b"a,b", "README.md": b""})
    refused("no such folder", FILES, name="hf://lambda/pets/birds")
    found = trainer("http://127.0.0.1:1", "fetch-dataset", "hf://lambda/pets", "--out", tmp_path, HF_HUB_OFFLINE="1")
    sentences["offline"] = found.stderr.strip()
    assert not (tmp_path / "out").exists()
    check_sentences(Path(__file__).parent / "golden" / "hub_files.txt", sentences)


def test_images_in_tables_become_files_with_their_captions_and_classes(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    (root / "data").mkdir(parents=True)
    (root / "data" / "train-00000-of-00001.parquet").write_bytes(parquet())
    (root / "beside.png").write_bytes(png(9))
    before, _refused = read_sources(tmp_path, root)

    assert extract_rows(root, Limits()) == 3

    assert list(root.rglob("*.parquet")) == []
    found, refused = read_sources(tmp_path, root)
    assert refused == []
    assert sorted(captions_of(found).values()) == sorted(captions_of(before).values())
    assert sorted(one.labels.class_name for one in found) == sorted(one.labels.class_name for one in before)
    rows = [path.read_bytes() for path in sorted(root.glob("row-*.jpg"))]
    assert rows == IMAGES[:3]


@pytest.mark.parametrize("limits", [Limits(max_archive_bytes=len(IMAGES[0])), Limits(max_entries=2)])
def test_more_rows_than_the_limits_say_are_refused(tmp_path: Path, limits: Limits) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet())
    with pytest.raises(DatasetError, match="too large"):
        extract_rows(tmp_path, limits)


def test_a_table_of_captions_stays_and_a_damaged_table_is_left_to_the_report(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    (root / "1.jpg").write_bytes(IMAGES[0])
    captions = pyarrow.table({"file_name": ["1.jpg"], "text": ["a red cat sits here"]})
    pyarrow.parquet.write_table(captions, root / "metadata.parquet")
    (root / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert extract_rows(root, Limits()) == 0
    assert {path.name for path in root.iterdir()} == {"1.jpg", "metadata.jsonl", "broken.parquet"}
    found, refused = read_sources(tmp_path, root, limits=Limits(allow_arrow=False))
    assert captions_of(found) == {"1.jpg": "a red cat sits here"}
    assert [one.source for one in refused] == ["broken.parquet"]


def test_a_row_without_an_image_is_reported_by_the_preparation(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(IMAGES[2])
    cells = [{"bytes": IMAGES[0], "path": None}, {"bytes": None, "path": str(tmp_path / "secret.jpg")}]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), root / "a.parquet")
    assert extract_rows(root, Limits()) == 2
    found, _refused = read_sources(tmp_path, root)
    assert [(one.source, one.pixels is not None) for one in found] == [
        ("row-000001.jpg", True),
        ("row-000002.jpg", False),
    ]
