"""A Ray cluster on this machine: a head without GPUs and workers with one simulated GPU each, in their own process.

`python -m tests.bot.runners.cluster PORT` reads one command per line (`add`, `kill N`), answers each with a line of
JSON, and stops the cluster at the end of its input.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[3]


class RayCluster:
    """Controls the cluster from a test. Ray would fill the tests' own process with threads."""

    def __init__(self) -> None:
        # Short: Ray puts sockets below it, whose paths are limited to 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.token = secrets.token_hex(32)
        (self._folder / "token").write_text(self.token)
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "RAY_TMPDIR": str(self._folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            # The defaults are 5 × 3 s, and 10 s before the first check.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
        }
        self._log = (self._folder / "cluster.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bot.runners.cluster", str(port)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    async def node_of(self, submission_id: str) -> str:
        """Return the node that a job runs or ran on."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{self.address}/api/jobs/{submission_id}") as answer,
        ):
            node_id: str = (await answer.json())["driver_node_id"]
            return node_id

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self._folder / "cluster.log").read_text()[-3000:]
        return json.loads(line)

    def close(self) -> None:
        """Stop the cluster, and check that no process of it is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._log.close()
        left = self.processes()
        for pid in left:
            os.kill(pid, 9)
        shutil.rmtree(self._folder, ignore_errors=True)
        assert not left, f"{len(left)} processes of the cluster were left"

    def processes(self) -> list[int]:
        """Return the processes with this cluster's folder in their command line."""
        mark = os.fsencode(self._folder)
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(port: int) -> None:
    # Ray prints to stdout too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": True,
            # Nothing is scaled, and jobs write their own logs: two processes less.
            "no_monitor": True,
            "include_log_monitor": False,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            # The default port is fixed; if another cluster of this machine has it, no job is accepted.
            "dashboard_agent_listen_port": _free_port(),
        },
    )

    def add() -> Any:
        return cluster.add_node(num_cpus=4, num_gpus=1)

    workers = [add(), add()]
    try:
        _answer_line(answers, [worker.node_id for worker in workers])
        for line in sys.stdin:
            match line.split():
                case ["add"]:
                    workers.append(add())
                    _answer_line(answers, workers[-1].node_id)
                case ["kill", node_id]:
                    [worker] = [each for each in workers if each.node_id == node_id]
                    workers.remove(worker)
                    cluster.remove_node(worker, allow_graceful=False)
                    _answer_line(answers, node_id)
    finally:
        cluster.shutdown()


def _answer_line(answers: Any, content: Any) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
