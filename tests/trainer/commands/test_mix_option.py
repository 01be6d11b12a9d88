"""`trainer new --mix` adds datasets to the spec, or prints one line about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import check_sentences
from tests.trainer.dataset.prepared_folders import drawn, write_dataset
from trainer.__main__ import main
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.report import Split
from trainer.protocol.settings import MixPart, MixRole


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    main_images = [drawn(1), drawn(3), drawn(4, split=Split.VALIDATION)]
    return str(write_dataset(tmp_path / "main", main_images)), str(write_dataset(tmp_path / "cats", [drawn(2)]))


def new(main_folder: str, job_dir: Path, *mix: str) -> int:
    options = [part for text in mix for part in ("--mix", text)]
    return main(["new", "--dataset", main_folder, "--out", str(job_dir), *options])


def test_parts_are_in_the_spec_with_absolute_paths(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert new(folders[0], tmp_path / "job", "cats:repeats=3:role=regularization") == 0

    assert read_spec(tmp_path / "job").mix == (MixPart(dataset=folders[1], repeats=3, role=MixRole.REGULARIZATION),)


def test_invalid_parts_are_refused_in_one_line(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = {}
    for part in (":repeats=0", ":repeat=3", ":repeats=3:weight=0.5", ":role=boss", "/no/such"):
        assert new(folders[0], tmp_path / "job", folders[1] + part) == EXIT_REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        sentences[part] = line.replace(str(tmp_path), "FOLDER")
    check_sentences(Path(__file__).parent / "golden" / "refused_mix_parts.txt", sentences)
    assert not (tmp_path / "job").exists()
