"""`trainer new --mix` writes further datasets into the spec, or says in one line why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.dataset.drawn import drawn, write_dataset
from trainer.__main__ import main
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.mix import MixPart, MixRole
from trainer.protocol.spec import read_spec


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    return str(write_dataset(tmp_path / "main", [drawn(1)])), str(write_dataset(tmp_path / "cats", [drawn(2)]))


def new(main_folder: str, job_dir: Path, *mix: str) -> int:
    options = [part for text in mix for part in ("--mix", text)]
    return main(["new", "--dataset", main_folder, "--out", str(job_dir), *options])


def test_parts_stand_in_the_spec_with_their_whole_paths(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert new(folders[0], tmp_path / "job", "cats:repeats=3:role=regularization") == 0

    assert read_spec(tmp_path / "job").mix == (MixPart(dataset=folders[1], repeats=3, role=MixRole.REGULARIZATION),)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (":repeats=0", "mix.0.repeats 0 is outside 1 – 1000."),
        (":repeat=3", "mix.0.repeat is not a setting; did you mean mix.0.repeats?"),
        (":repeats=3:weight=0.5", "repeats and weight both say how often its pictures are seen"),
        (":role=boss", "mix.0.role 'boss' is not one of 'train' or 'regularization'."),
        ("/no/such", "/no/such is not a prepared dataset."),
    ],
)
def test_a_part_that_cannot_be_is_refused_in_one_line(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, words: str
) -> None:
    assert new(folders[0], tmp_path / "job", folders[1] + part) == EXIT_REFUSED

    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "job").exists()
