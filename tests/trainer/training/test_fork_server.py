"""A forked trainer behaves like a fresh process; test_command_line.py shows that it trains the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.conftest import MakeJob
from tests.trainer.fork_server import ForkServer
from trainer.exchange.event_file import read_all_events
from trainer.protocol.events import (
    EXIT_REFUSED,
    EXIT_STOPPED,
    StepDone,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_arguments_streams_and_exit_status_are_those_of_a_process(fork_server: ForkServer, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "trainer", "run", "missing"]
    fresh = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False, env=with_path())
    forked = fork_server.run("run", "missing", cwd=tmp_path)
    by_command = subprocess.run(
        [*fork_server.command, "run", "missing"], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert fresh.returncode == EXIT_REFUSED
    for each in (forked, by_command):
        assert (each.returncode, each.stdout, each.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_trainer_through_its_client(
    make_job: MakeJob, fork_server: ForkServer, number: signal.Signals
) -> None:
    """Without a client they do so in test_recipe.py."""
    job_dir = make_job(training={"epochs": 1000}, early_stopping={"enabled": False}, samples={"prompts": ["an egg"]})
    trainer = subprocess.Popen([*fork_server.command, "run", str(job_dir)], stderr=subprocess.DEVNULL)
    # A trainer that is killed need not have come far.
    awaited: type = StepDone if number is signal.SIGTERM else object
    while not any(isinstance(event, awaited) for event in read_all_events(job_dir)):
        assert trainer.poll() is None
        time.sleep(0.1)
    trainer.send_signal(number)

    assert trainer.wait(60) == (EXIT_STOPPED if number is signal.SIGTERM else -signal.SIGKILL)


def with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def test_a_client_that_is_killed_as_it_writes_leaves_no_open_pipe() -> None:
    # The parent of the client reads this pipe to its end.
    reader, writer = os.pipe()
    with ForkServer("builtins:len") as server:
        path = server.command[-1]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            socket.send_fds(client, [(100).to_bytes(8, "big")], [writer])
        os.close(writer)
        # The next client is served after the server is done with the one before.
        assert server.run("one", "two").returncode == 2
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_server_is_shared_by_its_socket() -> None:
    with ForkServer("builtins:len") as server:
        with ForkServer("builtins:bool", socket=server.socket) as sharing:
            assert sharing.run("one", "two").returncode == 1
        assert server.run("one", "two").returncode == 2
