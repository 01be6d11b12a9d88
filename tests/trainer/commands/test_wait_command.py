"""A warmed trainer: waits for one order, trains it as `run` does, and goes with whoever started it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import MakeJob
from trainer.protocol.events import EXIT_BUSY, EXIT_FINISHED, EXIT_REFUSED, parse_event
from trainer.protocol.order import LOG_FILE, READY, TAKEN, Order
from trainer.reporter import Reporter

Wait = Callable[..., "subprocess.Popen[bytes]"]
#: As `-m trainer wait`, and says so if waiting asks for GPUs: from then on CUDA_VISIBLE_DEVICES would be settled.
_WITHOUT_CUDA = """
import sys, torch
def asked(): sys.stderr.write("it asked for GPUs\\n"); return False
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = asked
from trainer.__main__ import main
sys.exit(main(["wait"]))
"""


#: As `-m trainer wait`, with a run that tells what it was asked for and what it sees.
_TELLS = """
import os, sys
from trainer.commands import run
run.run = lambda options: print(os.environ["CUDA_VISIBLE_DEVICES"], options, flush=True) or 0
from trainer.__main__ import main
sys.exit(main(["wait"]))
"""


@pytest.fixture
def wait(tmp_path: Path) -> Iterator[Wait]:
    """`wait()`: a process that was told to wait; it is ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        argv = [sys.executable, *(arguments or ("-m", "trainer", "wait"))]
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def order(process: subprocess.Popen[bytes], job_dir: Path, **start: Any) -> None:
    """Wait until it is ready, and give it a job."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == READY
    process.stdin.write(Order(job_dir=job_dir, **start).to_line())
    process.stdin.flush()
    assert process.stdout.readline() == TAKEN


def test_a_job_is_trained_to_its_end_and_told_in_its_log(wait: Wait, make_job: MakeJob) -> None:
    job_dir = make_job(training={"epochs": 1}, method={"text_encoder": False})
    process = wait()
    order(process, job_dir)

    said, errors = process.communicate(timeout=100)
    assert process.returncode == EXIT_FINISHED
    assert (said, errors) == (b"", b"")
    events = [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]
    assert [events[0].type, events[-1].type] == ["phase_began", "finished"]
    assert "finished: best epoch" in (job_dir / LOG_FILE).read_text(encoding="utf-8")
    assert json.loads((job_dir / "process.json").read_bytes())["pid"] == process.pid


def test_an_order_tells_the_attempt_the_gpus_and_the_room(wait: Wait, make_job: MakeJob) -> None:
    job_dir = make_job()
    process = wait("-c", _TELLS)
    order(process, job_dir, attempt=3, devices=("GPU-1", "2"), micro_batch=4)
    process.communicate(timeout=60)

    told = (job_dir / LOG_FILE).read_text(encoding="utf-8")
    assert told.startswith("GPU-1,2 Namespace(")
    assert "attempt=3, micro_batch=4" in told


def test_waiting_ends_with_who_started_it_without_a_word(wait: Wait) -> None:
    process = wait("-c", _WITHOUT_CUDA)
    # Closes its standard input at once, while it still loads.
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (EXIT_FINISHED, READY, b"")


def test_half_an_order_is_none(wait: Wait, make_job: MakeJob) -> None:
    job_dir = make_job()
    line = Order(job_dir=job_dir).to_line().removesuffix(b"\n")
    said, errors = wait().communicate(line, timeout=60)
    assert (said, errors) == (READY, b"")
    assert not (job_dir / "events.jsonl").exists()


def test_it_waits_no_more_after_a_sigterm(wait: Wait) -> None:
    process = wait()
    assert process.stdout is not None
    assert process.stdout.readline() == READY
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_a_line_that_is_no_order_is_refused(wait: Wait) -> None:
    process = wait()
    said, errors = process.communicate(b'{"job": "x"}\n', timeout=60)
    assert (process.returncode, said) == (EXIT_REFUSED, READY)
    assert errors.startswith(b"This is no order (2 problems)")


def test_a_folder_that_is_held_is_left_alone_with_the_same_status_as_by_run(wait: Wait, make_job: MakeJob) -> None:
    job_dir = make_job()
    process = wait()
    with Reporter(job_dir):
        order(process, job_dir)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_BUSY
