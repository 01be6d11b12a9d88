"""The trainer's commands are a contract: their forms, their exit statuses, one sentence for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob, draw_pictures
from trainer.__main__ import main
from trainer.protocol.events import EXIT_BUSY, EXIT_FINISHED, EXIT_REFUSED
from trainer.protocol.report import read_report
from trainer.protocol.spec import read_spec
from trainer.reporter import Reporter


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which a command is refused."""
    assert main(arguments) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_prepare_new_and_run_make_a_lora(tmp_path: Path, random_base: Path) -> None:
    """The three commands as a person types them, in processes of their own."""
    draw_pictures(tmp_path / "pictures")
    trainer = [sys.executable, "-m", "trainer"]
    settings = ["training.epochs=1", "samples.steps=2", "validation.draws=1", 'samples.prompts=["a red egg"]']
    new = [
        "new",
        "--dataset",
        "dataset",
        "--base",
        str(random_base),
        "--preset",
        "lora",
        "--name",
        "egg",
        "--out",
        "job",
    ]

    for command in (
        ["prepare", "pictures", "--out", "dataset"],
        [*new, *(part for setting in settings for part in ("--set", setting))],
        ["run", "job"],
    ):
        done = subprocess.run([*trainer, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == EXIT_FINISHED, done.stderr
        assert "Traceback" not in done.stderr

    assert read_report(tmp_path / "dataset").counts.kept == 12
    assert read_spec(tmp_path / "job").samples.prompts == ("a red egg",)
    assert (tmp_path / "job/output/egg.safetensors").exists()
    assert (tmp_path / "job/output/diffusers/pytorch_lora_weights.safetensors").exists()
    assert "finished" in done.stderr


def test_settings_are_numbers_lists_or_bare_words(dataset: Path, tmp_path: Path) -> None:
    settings = [
        "training.epochs=7",
        "training.schedule=linear",
        "early_stopping.enabled=false",
        'samples.prompts=["a|b"]',
    ]
    arguments = ["new", "--dataset", str(dataset), "--out", str(tmp_path / "job")]

    assert main([*arguments, *(part for setting in settings for part in ("--set", setting))]) == 0

    spec = read_spec(tmp_path / "job")
    assert (spec.training.epochs, spec.training.schedule, spec.early_stopping.enabled) == (7, "linear", False)
    assert spec.samples.prompts == ("a|b",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.epochs=0"], "training.epochs 0 is outside 1 – 1000."),
        (["--set", "training.epoch=1"], "did you mean training.epochs?"),
        (["--set", "epochs"], "--set epochs is not GROUP.NAME=VALUE"),
        (["--preset", "lorra"], "There is no preset 'lorra'. Did you mean lora?"),
        (["--name", "My LoRA"], "name 'My LoRA' must be"),
    ],
)
def test_a_bad_setting_is_refused_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    line = refused(capsys, "new", "--dataset", str(dataset), "--out", str(tmp_path / "job"), *arguments)

    assert words in line
    assert not (tmp_path / "job").exists()


def test_new_wants_a_prepared_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is not a prepared dataset" in refused(
        capsys, "new", "--dataset", str(tmp_path), "--out", str(tmp_path / "j")
    )


def test_new_does_not_overwrite_a_job_that_was_started(
    capsys: pytest.CaptureFixture[str], dataset: Path, make_job: MakeJob
) -> None:
    job_dir = make_job()
    (job_dir / "events.jsonl").touch()

    assert "started already" in refused(capsys, "new", "--dataset", str(dataset), "--out", str(job_dir))


def test_prepare_says_in_one_line_why_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.zip").write_text("not a zip", encoding="utf-8")

    line = refused(capsys, "prepare", str(tmp_path / "notes.zip"), "--out", str(tmp_path / "dataset"))

    assert "notes.zip" in line
    assert not (tmp_path / "dataset").exists()


def test_run_wants_a_job_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "There is no job folder" in refused(capsys, "run", str(tmp_path / "nothing"))


def test_run_fails_in_words_on_a_spec_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"dataset": "/d", "training": {"epochs": -1}}), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "trainer", "run", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 4
    last = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["type"], last["kind"]) == ("failed", "bad_spec")
    assert "training.epochs -1 is outside 1 – 1000." in last["message"]


def test_a_folder_that_another_trainer_holds_is_left_alone(
    capsys: pytest.CaptureFixture[str], make_job: MakeJob
) -> None:
    job_dir = make_job()
    with Reporter(job_dir):
        assert main(["run", str(job_dir)]) == EXIT_BUSY

    assert "Another trainer is running" in capsys.readouterr().err
    assert (job_dir / "events.jsonl").read_bytes() == b""


def test_a_call_that_cannot_be_understood_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["run"])

    assert refusal.value.code == EXIT_REFUSED
    assert "JOB_DIR" in capsys.readouterr().err
