"""`sample` on the command line makes the job that it draws, and `adapter` checks a file."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import events_of
from tests.trainer.models.test_adapter_header import lora, write
from trainer.__main__ import main
from trainer.commands import sampling_commands
from trainer.exchange.job_dir import LOG_FILE, read_sampling, read_spec, write_spec
from trainer.exchange.process import is_released
from trainer.protocol import events
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_REFUSED,
    SamplingFinished,
    SamplingStarted,
    ValidationLoss,
)
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Counts, DatasetReport
from trainer.protocol.run_options import READY, TAKEN, JobKind, RunOptions
from trainer.protocol.sampling import make_sampling_spec
from trainer.reporter import Reporter

#: Runs a command in a new process, which fails if it imported torch.
WITHOUT_TORCH = (
    sys.executable,
    "-c",
    "import sys; from trainer.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)",
)
Staying: TypeAlias = tuple["subprocess.Popen[bytes]", socket.socket]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """Draw nothing; the jobs that would be drawn."""
    jobs: list[RunOptions] = []

    def draw(options: RunOptions) -> int:
        jobs.append(options)
        return EXIT_FINISHED

    monkeypatch.setattr(sampling_commands, "run_job", draw)
    return jobs


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "momo"
    write_spec(folder, spec_from_preset("lora", dataset="/nowhere", base="tiny", name="momo"))
    for epoch in (4, 8):
        state = folder / f"checkpoints/step-{epoch:08}/state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"position": 0, "curve": [{"epoch": epoch}]}))
    with Reporter(folder) as reporter:
        reporter.emit(events.Tested, epoch=8, test=ValidationLoss(loss=0.1, ratio=0.9, bands=()), base_loss=0.2)
    return folder


def test_a_job_and_its_epochs_are_sampled_into_a_folder_of_their_own(
    drawn: list[RunOptions], job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "theirs.safetensors", lora())
    arguments = ["--job", str(job), "--epochs", "4, 8", "--prompt", "a", "--prompt", "b", "--negative", "bad"]
    options = ["--file", str(file), "--with-base", "--seeds", "1,2", "--strengths", "0.5,1", "--size", "96x64"]

    for _twice in range(2):
        assert main(["sample", *arguments, *options]) == EXIT_FINISHED

    folders = [job.resolve() / "sampling" / name for name in "12"]
    assert [options.job_dir.resolve() for options in drawn] == folders
    assert capsys.readouterr().out.split() == [str(options.job_dir) for options in drawn]
    assert all(options.kind is JobKind.SAMPLE and not options.stay_s for options in drawn)
    spec = read_sampling(folders[1])
    assert [model.label for model in spec.models] == ["base", "momo, epoch 4", "momo, epoch 8", "theirs"]
    assert spec.base.source == "tiny"
    assert [(each.prompt, each.negative) for each in spec.prompts] == [("a", "bad"), ("b", "bad")]
    assert (spec.seeds, spec.strengths, spec.width, spec.height) == ((1, 2), (0.5, 1.0), 96, 64)
    assert (folders[1] / "adapters/1/theirs.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "a"], "Say what to draw with"),
        (["--base", "tiny"], "Say what to draw"),
        (["--base", "tiny", "--prompt", "a"], "Name a folder for the images: --out DIR."),
        (["--job", "JOB", "--prompt", "a", "--epochs", "four"], "--epochs four is not a list of numbers"),
        (
            ["--job", "JOB", "--prompt", "a", "--epochs", "4,9"],
            "momo, epoch 9 are not kept. Choose one of the epochs 4",
        ),
        (["--job", "NEW", "--prompt", "a"], "momo has no weights to draw with."),
        (["--job", "JOB", "--prompt", "a", "--strengths", "2"], "strengths.0 2 is not between 0 and 1.5"),
        (["--job", "JOB", "--prompt", "a", "--size", "large"], "width"),
        (["--job", "NOWHERE", "--prompt", "a"], "has no spec.json"),
        (["--job", "JOB", "--prompt", "a", "--out", "FULL"], "holds another sampling job"),
        (["--job", "JOB", "--prompt", "a", "--file", "NOWHERE"], "No such file"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    drawn: list[RunOptions],
    job: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    full = tmp_path / "full"
    write_spec(full, make_sampling_spec({"models": [{"kind": "base"}], "prompts": [{"prompt": "a"}]}))
    new = tmp_path / "new"
    write_spec(new, read_spec(job))
    names = {"JOB": job, "NEW": new, "NOWHERE": tmp_path / "nowhere", "FULL": full}

    assert main(["sample", *(str(names.get(each, each)) for each in arguments)]) == EXIT_REFUSED

    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not drawn


def test_what_a_header_says_is_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.safetensors", lora(2048), {"ss_output_name": "momo"})
    assert main(["adapter", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["method"], facts["title"]) == ("sdxl", "lora", "momo")

    path.write_bytes(path.read_bytes()[:-1])
    for wrong, sentence in ((path, "a.safetensors is cut off"), (tmp_path / "gone", "cannot be read")):
        assert main(["adapter", str(wrong)]) == EXIT_REFUSED
        assert sentence in capsys.readouterr().err


def test_a_refusal_is_in_the_language_of_who_asks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", lora(), tail=-1)
    argv = [sys.executable, "-m", "trainer", "adapter", str(path), "--language=zh_CN"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_REFUSED
    assert "a.safetensors 不完整" in done.stderr


def test_checking_a_file_imports_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", lora())
    subprocess.run([*WITHOUT_TORCH, "adapter", str(path)], check=True, capture_output=True)


def test_a_refusal_and_what_has_all_captions_import_no_torch(job: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--job", str(job), "--epochs=9", "--prompt=a"]
    subprocess.run([*WITHOUT_TORCH, *arguments], check=True, capture_output=True)
    counts = Counts(images=0, kept=0, dropped=0, refused=0, train=0, validation=0, test=0, captioned=0)
    report = DatasetReport(digest="d", counts=counts, summary="", images=())
    (tmp_path / "report.json").write_text(report.model_dump_json())
    arguments = ["caption", str(tmp_path), "--model=blip"]
    subprocess.run([*WITHOUT_TORCH, *arguments], check=True, capture_output=True)


@pytest.fixture
def staying(tmp_path: Path, fork_server: ForkServer) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A real sampler on its first job, which stays after it, and our end of its channel."""
    ours, theirs = socket.socketpair()
    ours.settimeout(300)
    argv = [*fork_server.command, "sample", str(make_job(tmp_path, 1)), "--attempt=1", "--stay=600"]
    with theirs, (tmp_path / "first.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=log, stderr=log)
    yield process, ours
    ours.close()
    process.kill()
    process.wait()


def make_job(tmp_path: Path, number: int) -> Path:
    folder = tmp_path / str(number)
    settings = {"base": {"source": "tiny"}, "models": [{"kind": "base"}], "prompts": [{"prompt": "a red circle"}]}
    write_spec(folder, make_sampling_spec({**settings, "steps": 2, "seeds": [number]}))
    (folder / "attempt.json").write_text('{"attempt": 1}')
    return folder


@pytest.mark.slow
def test_a_real_sampler_draws_one_job_after_the_other_and_ends_with_its_parent(
    staying: tuple[subprocess.Popen[bytes], socket.socket], tmp_path: Path
) -> None:
    process, channel = staying
    assert channel.recv(100) == READY, (tmp_path / "first.log").read_text()
    assert is_released(tmp_path / "1", 1)
    second = make_job(tmp_path, 2)

    channel.sendall(RunOptions(job_dir=second, kind=JobKind.SAMPLE, attempt=1, stay_s=600).to_line())

    assert channel.recv(len(TAKEN)) == TAKEN
    assert channel.recv(100) == READY
    assert process.poll() is None
    for number, was_warm in ((1, False), (2, True)):
        (started,) = events_of(tmp_path / str(number), SamplingStarted)
        assert started.was_warm is was_warm
        assert events_of(tmp_path / str(number), SamplingFinished)
    assert (second / LOG_FILE).exists()

    channel.shutdown(socket.SHUT_WR)
    assert process.wait(300) == EXIT_FINISHED
