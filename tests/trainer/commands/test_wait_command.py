"""The warm trainer: it waits for one job on standard input, trains it as `run` does, and ends with its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import MakeJob
from tests.trainer.fork_server import ForkServer
from trainer.exchange.job_dir import LOG_FILE
from trainer.protocol.events import EXIT_BUSY, EXIT_FINISHED, EXIT_REFUSED, parse_event
from trainer.protocol.run_options import READY, TAKEN, RunOptions
from trainer.reporter import Reporter

Wait = Callable[..., "subprocess.Popen[bytes]"]
#: `-m trainer wait`, without the seconds that loading the libraries takes.
_WITHOUT_WARM_UP = """
import sys
from trainer.commands import job_processes
job_processes.warm_up = lambda: None
from trainer.__main__ import main
sys.exit(main(["wait"]))
"""
#: `-m trainer wait`, with a `run` that prints its options and its GPUs.
_PRINTS_OPTIONS = """
import os, sys
from trainer.commands import job_processes
job_processes.warm_up = lambda: None
job_processes.run_job = lambda options: print(os.environ["CUDA_VISIBLE_DEVICES"], options, flush=True) or 0
from trainer.__main__ import main
sys.exit(main(["wait"]))
"""


@pytest.fixture
def wait(tmp_path: Path) -> Iterator[Wait]:
    """Start a waiting process, which is killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str = _WITHOUT_WARM_UP, command: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        argv = command or (sys.executable, "-c", code)
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def send_job(process: subprocess.Popen[bytes], job_dir: Path, **options: Any) -> None:
    """Wait until the process is ready, and give it a job."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == READY
    process.stdin.write(RunOptions(job_dir=job_dir, **options).to_line())
    process.stdin.flush()
    assert process.stdout.readline() == TAKEN


@pytest.mark.slow
def test_a_job_is_trained_to_its_end_with_its_output_in_the_log(
    wait: Wait, make_job: MakeJob, fork_server: ForkServer
) -> None:
    job_dir = make_job(training={"epochs": 1}, validation={"test": False})
    process = wait(command=(*fork_server.command, "wait"))
    send_job(process, job_dir)

    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == EXIT_FINISHED
    assert (stdout, stderr) == (b"", b"")
    events = [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]
    assert [events[0].type, events[-1].type] == ["phase_began", "finished"]
    assert "finished: epoch" in (job_dir / LOG_FILE).read_text(encoding="utf-8")


def test_the_job_gets_all_run_options_and_its_gpus(wait: Wait, tmp_path: Path) -> None:
    process = wait(_PRINTS_OPTIONS)
    send_job(process, tmp_path, attempt=3, devices=("GPU-1", "2"), micro_batch=4)
    process.communicate(timeout=60)

    output = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert output.startswith("GPU-1,2 ")
    assert "attempt=3" in output
    assert "micro_batch=4" in output


def test_the_end_of_standard_input_ends_it(wait: Wait) -> None:
    process = wait()
    # `communicate` closes standard input at once.
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (EXIT_FINISHED, READY, b"")


def test_part_of_a_line_is_not_a_job(wait: Wait, tmp_path: Path) -> None:
    line = RunOptions(job_dir=tmp_path).to_line().removesuffix(b"\n")
    stdout, stderr = wait().communicate(line, timeout=60)
    assert (stdout, stderr) == (READY, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_sigterm_ends_the_waiting(wait: Wait) -> None:
    process = wait()
    assert process.stdout is not None
    assert process.stdout.readline() == READY
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_invalid_options_are_refused(wait: Wait) -> None:
    process = wait()
    stdout, stderr = process.communicate(b'{"job": "x"}\n', timeout=60)
    assert (process.returncode, stdout) == (EXIT_REFUSED, READY)
    assert b"2 problems" in stderr


def test_a_locked_job_folder_has_the_exit_status_of_run(wait: Wait, tmp_path: Path) -> None:
    process = wait()
    with Reporter(tmp_path):
        send_job(process, tmp_path)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_BUSY
