"""The trainer's command line: arguments, exit statuses, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import check_sentences
from tests.trainer.conftest import MakeJob, draw_images
from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import curve_of, events_of
from trainer.__main__ import main
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_REFUSED,
    KeepAlive,
    PhaseProgress,
    StepDone,
)
from trainer.reporter import Reporter
from trainer.training.checkpoints import load_start


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is refused; return its one line on stderr."""
    assert main(arguments) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_prepare_new_and_run_make_a_lora_and_a_fork_trains_the_same(
    tmp_path: Path, random_base: Path, fork_server: ForkServer
) -> None:
    """Run two commands in processes of their own, as a user does. Other tests run forks (fork_server.py)."""
    draw_images(tmp_path / "images")
    trainer = [sys.executable, "-m", "trainer"]
    settings = [
        "training.epochs=1",
        "training.repeats=1",
        "method.targets=attention",
        "validation.timesteps=2",
        "validation.draws=1",
        "samples.steps=1",
        'samples.prompts=["a red egg"]',
        "samples.unrelated_prompts=[]",
    ]
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

    def run_fresh(*command: str) -> str:
        done = subprocess.run([*trainer, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == EXIT_FINISHED, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    run_fresh("prepare", "images", "--out", "dataset")
    made = fork_server.run(*new, *(part for setting in settings for part in ("--set", setting)), cwd=tmp_path)
    assert made.returncode == EXIT_FINISHED, made.stderr
    log = run_fresh("run", "job")

    assert read_report(tmp_path / "dataset").counts.kept == 12
    assert read_spec(tmp_path / "job").samples.prompts == ("a red egg",)
    assert (tmp_path / "job/output/egg.safetensors").exists()
    assert (tmp_path / "job/output/diffusers/pytorch_lora_weights.safetensors").exists()
    assert "finished" in log

    (tmp_path / "forked").mkdir()
    shutil.copy(tmp_path / "job/spec.json", tmp_path / "forked")
    assert fork_server.run("run", "forked", cwd=tmp_path).returncode == EXIT_FINISHED
    fresh, forked = tmp_path / "job", tmp_path / "forked"
    assert curve_of(forked) == curve_of(fresh)
    # Progress events and keep-alives depend on the clock.
    by_the_clock = StepDone | PhaseProgress | KeepAlive
    assert [event.type for event in events_of(forked) if not isinstance(event, by_the_clock)] == [
        event.type for event in events_of(fresh) if not isinstance(event, by_the_clock)
    ]


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


def test_new_tells_which_settings_have_no_effect(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    new = ["new", "--dataset", str(dataset), "--out", str(tmp_path / "job"), "--preset", "ia3"]
    assert main([*new, "--set", "rank=4"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'job' / 'spec.json'}\n"
    assert captured.err == "method.rank and method.alpha have no effect for ia3.\n"


def test_a_training_by_steps_gets_the_epochs_that_they_take(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    """As with kohya's `max_train_steps`."""
    images = read_report(dataset).counts.train

    def new(*settings: str) -> list[str]:
        given = ("training.repeats=1", "training.batch_size=1", *settings)
        options = (part for setting in given for part in ("--set", setting))
        return ["new", "--dataset", str(dataset), "--out", str(tmp_path / "job"), *options]

    def epochs(*settings: str) -> int:
        assert main(new(*settings)) == 0
        return read_spec(tmp_path / "job").training.epochs

    assert epochs("training.max_steps=100") == ceil(100 / images)
    assert epochs("training.max_steps=101", "training.repeats=2") == ceil(101 / (2 * images))
    assert epochs("training.max_steps=100", "training.epochs=5") == 5
    capsys.readouterr()
    line = refused(capsys, *new(f"training.max_steps={2500 * images}"))
    assert "2500 epochs" in line
    assert "set training.repeats to 3" in line


def test_a_new_job_takes_the_rank_of_the_file_that_it_starts_from(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    """As kohya's `network_weights` with `dim_from_weights`."""
    path = tmp_path / "egg.safetensors"
    weights = {"lora_unet_a.lora_down.weight": torch.ones(5, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 5)}
    save_file(weights, path)

    def new(*settings: str) -> list[str]:
        options = (part for setting in (f"method.start_from={path}", *settings) for part in ("--set", setting))
        return ["new", "--dataset", str(dataset), "--out", str(tmp_path / "job"), *options]

    assert main(new()) == 0
    method = read_spec(tmp_path / "job").method
    assert (method.rank, method.start_from) == (5, str(path))
    assert load_start(tmp_path / "job", method.start_sha256 or "").keys() == weights.keys()
    capsys.readouterr()
    assert "set method.rank to 5" in refused(capsys, *new("method.rank=8"))
    assert "set method.kind to lora" in refused(capsys, *new("method.kind=loha"))
    path.write_bytes(b"torn")
    assert "cannot be read" in refused(capsys, *new())


def test_bad_arguments_are_refused_in_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], dataset: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    (make_job("started") / "events.jsonl").touch()
    (tmp_path / "notes.zip").write_text("not a zip", encoding="utf-8")
    (tmp_path / "quota.zip").write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>", encoding="utf-8")
    out = tmp_path / "out"
    new = ("new", "--dataset", str(dataset), "--out", str(out))
    two_images = tmp_path / "two"
    assert main(["prepare", str(draw_images(tmp_path / "few", 2)), "--out", str(two_images), "--resolution", "64"]) == 0
    capsys.readouterr()
    cases: dict[str, tuple[str, ...]] = {
        "value out of range": (*new, "--set", "training.epochs=0"),
        "unknown setting": (*new, "--set", "training.epoch=1"),
        "no value": (*new, "--set", "epochs"),
        "unknown preset": (*new, "--preset", "lorra"),
        "invalid name": (*new, "--name", "My LoRA"),
        "unprepared dataset": ("new", "--dataset", str(tmp_path), "--out", str(out)),
        "job that has started": ("new", "--dataset", str(dataset), "--out", str(tmp_path / "started")),
        "web page": ("prepare", str(tmp_path / "quota.zip"), "--out", str(out)),
        "damaged archive": ("prepare", str(tmp_path / "notes.zip"), "--out", str(out)),
        "missing job folder": ("run", str(out)),
        "two images": ("new", "--dataset", str(two_images), "--out", str(out)),
        "nothing to train on": ("new", "--out", str(out)),
    }
    sentences = {
        case: refused(capsys, *arguments).replace(str(tmp_path), "FOLDER") for case, arguments in cases.items()
    }
    check_sentences(Path(__file__).parent / "golden" / "refused_arguments.txt", sentences)
    assert not out.exists()


def test_a_warm_up_that_is_longer_than_the_training_is_refused_by_new(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    line = refused(capsys, "new", "--dataset", str(dataset), "--out", out, "--set", "training.warmup_steps=5000")
    assert "warm-up of 5000 steps does not fit" in line
    assert not Path(out).exists()


def test_new_reads_settings_from_a_file_and_the_command_line_counts_more(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "settings.toml", tmp_path / "out"
    file.write_text('preset = "style"\nname = "ink"\nlr = 3e-5\nrank = 8\n[training]\nepochs = 3\n')
    arguments = ["new", "--dataset", str(dataset), "--out", str(out), "--settings", str(file)]
    assert main([*arguments, "--set", "rank=4"]) == 0
    spec = read_spec(out)
    assert (spec.preset, spec.name, spec.method.rank) == ("style", "ink", 4)
    assert (spec.training.learning_rate, spec.training.epochs) == (3e-5, 3)

    file.write_text("lr = = 3")
    capsys.readouterr()
    assert "is not a .toml file that can be read" in refused(capsys, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_a_precision_that_this_machine_lacks_is_refused_by_new(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    line = refused(capsys, "new", "--dataset", str(dataset), "--out", out, "--set", "training.precision=fp16")
    assert "fp16 needs a GPU" in line
    assert not Path(out).exists()


def test_run_emits_a_failed_event_about_an_invalid_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"dataset": "/d", "training": {"epochs": -1}}), encoding="utf-8")

    assert main(["run", str(tmp_path)]) == EXIT_FAILED
    last = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["type"], last["kind"]) == ("failed", "bad_spec")
    assert "training.epochs" in last["message"]


def test_a_folder_that_another_trainer_holds_is_not_changed(
    capsys: pytest.CaptureFixture[str], make_job: MakeJob
) -> None:
    job_dir = make_job()
    with Reporter(job_dir):
        assert main(["run", str(job_dir)]) == EXIT_BUSY

    assert capsys.readouterr().err
    assert (job_dir / "events.jsonl").read_bytes() == b""


def test_invalid_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["run"])

    assert refusal.value.code == EXIT_REFUSED
    assert "JOB_DIR" in capsys.readouterr().err
