"""Runners on this machine and on a Ray cluster, and a reader of their events."""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bot.config import RaySettings
from bot.runners import Handle, LocalRunner, Runner, RunStatus
from bot.runners.ray import RayRunner
from tests.bot.fakes import eventually
from tests.bot.runners.cluster import ROOT, RayCluster
from tests.trainer.fork_server import ForkServer
from trainer.exchange.event_file import EventLine, read_events
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import Event
from trainer.protocol.run_options import RunOptions
from trainer.protocol.spec import make_spec


@functools.cache
def forked_trainer() -> tuple[str, ...]:
    """Return the command of fake trainers without 0.3 s of imports; a job's process is the fork, not the client."""
    server = ForkServer("tests.bot.runners.fake_trainer:main")
    atexit.register(server.__exit__)
    return server.command


@dataclass(kw_only=True)
class Bench:
    """A data folder and the runners that use it; each runner is that of a new bot."""

    folder: Path
    #: None: local processes.
    cluster: RayCluster | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def runner(self, *, stop_grace_s: float = 20.0, **changes: Any) -> Runner:
        env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if self.cluster is None:
            return LocalRunner(command=self.command, env={**os.environ, **env})
        settings = {
            "address": self.cluster.address,
            "python": sys.executable,
            "cpus": 1,
            "memory_mib": 64,
            **self.settings,
            **changes,
        }
        return RayRunner(
            RaySettings.model_validate(settings, strict=False),
            data_dir=self.data_dir,
            command=self.command,
            env=env,
            stop_grace_s=stop_grace_s,
            environ={"RAY_AUTH_TOKEN": self.cluster.token},
        )

    def plan(self, **plan: Any) -> None:
        """Set how the fake trainer behaves from now on."""
        (self.folder / "plan.json").write_text(json.dumps({"epochs": 3, **plan}))
        self.command = (*forked_trainer(), str(self.folder / "plan.json"))

    def options(self, job_id: int = 7, attempt: int = 1, **more: Any) -> RunOptions:
        """Make the job folder and return the options of a start."""
        job_dir = self.data_dir / "jobs" / str(job_id)
        dataset = self.data_dir / "datasets/1/prepared"
        if not job_dir.exists():
            write_spec(job_dir, make_spec({"name": "fox", "dataset": str(dataset)}))
        return RunOptions(job_id=job_id, attempt=attempt, job_dir=job_dir, **more)


@dataclass
class EventReader:
    """Reads the events of a job as the dispatcher does: it polls first, and reads on from its stored offset."""

    job_dir: Path
    offset: int = 0
    lines: list[EventLine] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return [line.event for line in self.lines]

    async def read(self, runner: Runner, handle: Handle) -> RunStatus:
        status = await runner.poll(handle)
        batch = read_events(self.job_dir, self.offset)
        for line in batch.lines:
            self.check_files(line.event)
        self.lines += batch.lines
        self.offset = batch.end
        return status

    def check_files(self, event: Event) -> None:
        """Check that the files of an event exist when it is read."""
        for name in (getattr(event, "chart", None), getattr(event, "comparison", None)):
            assert name is None or (self.job_dir / name).exists(), name

    async def until_exited(
        self, runner: Runner, handle: Handle, *, within_s: float = 60.0, status: RunStatus = RunStatus.EXITED
    ) -> None:
        async def has_exited() -> bool:
            return await self.read(runner, handle) is status

        await eventually(has_exited, within_s=within_s)

    async def until_emitted(self, runner: Runner, handle: Handle, number: int) -> None:
        async def has_emitted() -> bool:
            await self.read(runner, handle)
            return len(self.lines) >= number

        await eventually(has_emitted)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    running = RayCluster()
    try:
        yield running
    finally:
        running.close()


async def until_exited(runner: Runner, handle: Handle) -> None:
    """Wait until the training of a handle has exited."""

    async def has_exited() -> bool:
        return await runner.poll(handle) is RunStatus.EXITED

    await eventually(has_exited)


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    """A start of job 7, whose folder exists."""
    job_dir = tmp_path / "7"
    job_dir.mkdir()
    return RunOptions(job_id=7, attempt=1, job_dir=job_dir)


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Each runner in turn."""
    return make_bench(request, tmp_path, on_cluster=request.param == "ray")


@pytest.fixture
def ray_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """The Ray cluster."""
    return make_bench(request, tmp_path, on_cluster=True)


def make_bench(request: pytest.FixtureRequest, folder: Path, *, on_cluster: bool) -> Bench:
    (folder / "data").mkdir(parents=True)
    if on_cluster:
        # The nodes see the same folder under another path.
        (folder / "seen-by-nodes").symlink_to(folder / "data")
        settings = {"shared_root": str(folder / "seen-by-nodes")}
        bench = Bench(folder=folder, cluster=request.getfixturevalue("cluster"), settings=settings)
    else:
        bench = Bench(folder=folder)
    bench.plan()
    return bench
