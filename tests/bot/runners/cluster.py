"""A Ray cluster of this machine: a head without GPUs and workers with one made-up GPU each, in a process of its own.

`python -m tests.bot.runners.cluster PORT` reads one order a line (`add`, `kill N`), answers each by a line of JSON, and
ends the cluster at the end of its input, however the other side went.
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
    """The cluster seen from a test: never in the process of the tests, which Ray would fill with threads."""

    def __init__(self) -> None:
        # Short: Ray puts sockets below it, whose names may be 107 bytes long.
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
            # Default 5 × 3 s and 10 s before the first: a node that is gone is noticed sooner.
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

    def ask(self, order: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._answer()

    async def node_of(self, submission_id: str) -> str:
        """The node that a job runs on, or ran on."""
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
        """End it, and see that nothing of it is left."""
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
        """All that run with this cluster's folder in their command line."""
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
    # What Ray prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            # By default a fixed one, which another cluster of this machine may have: then nobody takes jobs.
            "dashboard_agent_listen_port": _free_port(),
        },
    )

    def add() -> Any:
        return cluster.add_node(num_cpus=4, num_gpus=1)

    workers = [add(), add()]
    try:
        _say(answers, [worker.node_id for worker in workers])
        for line in sys.stdin:
            match line.split():
                case ["add"]:
                    workers.append(add())
                    _say(answers, workers[-1].node_id)
                case ["kill", node_id]:
                    [worker] = [each for each in workers if each.node_id == node_id]
                    workers.remove(worker)
                    cluster.remove_node(worker, allow_graceful=False)
                    _say(answers, node_id)
    finally:
        cluster.shutdown()


def _say(answers: Any, content: Any) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
