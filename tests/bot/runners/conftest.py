"""One set of stories for each place where a training may run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bot.config import RaySettings
from bot.runners import Handle, Launch, LocalRunner, Runner, Status
from bot.runners.events import EventLine
from bot.runners.ray import RayRunner
from tests.bot.runners.cluster import ROOT, RayCluster
from trainer.protocol.events import Event
from trainer.protocol.spec import make_spec

STAND_IN = ROOT / "tests/bot/runners/stand_in.py"


@dataclass(kw_only=True)
class Bench:
    """A data folder, and runners on it; each one is a new bot's."""

    folder: Path
    #: None: this machine.
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
        """How the stand-in trains from here on."""
        (self.folder / "plan.json").write_text(json.dumps({"epochs": 3, **plan}))
        self.command = (sys.executable, str(STAND_IN), str(self.folder / "plan.json"))

    def launch(self, job_id: int = 7, attempt: int = 1, **more: Any) -> Launch:
        """A start of a job whose folder is there."""
        job_dir = self.data_dir / "jobs" / str(job_id)
        dataset = self.data_dir / "datasets/1/prepared"
        if not job_dir.exists():
            job_dir.mkdir(parents=True)
            if not dataset.exists():
                dataset.mkdir(parents=True)
                (dataset / "report.json").write_text("{}")
            make_spec({"name": "fox", "dataset": str(dataset)}).write(job_dir)
        return Launch(job_id=job_id, attempt=attempt, job_dir=job_dir, **more)


@dataclass
class Listener:
    """Hears a job as the dispatcher does: `poll` first, and from the byte on that it has stored."""

    job_dir: Path
    offset: int = 0
    lines: list[EventLine] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return [line.event for line in self.lines]

    async def hear(self, runner: Runner, handle: Handle) -> Status:
        status = await runner.poll(handle)
        said = await runner.events(handle, self.job_dir, self.offset)
        for line in said.lines:
            self.check_files(line.event)
        self.lines += said.lines
        self.offset = said.end
        return status

    def check_files(self, event: Event) -> None:
        """What an event names is there when it is heard."""
        for name in (getattr(event, "chart", None), getattr(event, "comparison", None)):
            assert name is None or (self.job_dir / name).exists(), name

    async def until_gone(
        self, runner: Runner, handle: Handle, *, within_s: float = 40.0, status: Status = Status.GONE
    ) -> None:
        async def is_gone() -> bool:
            return await self.hear(runner, handle) is status

        await until(is_gone, within_s=within_s)

    async def until_said(self, runner: Runner, handle: Handle, number: int) -> None:
        async def has_said() -> bool:
            await self.hear(runner, handle)
            return len(self.lines) >= number

        await until(has_said)


async def until(claim: Callable[[], Awaitable[bool]], *, within_s: float = 40.0) -> None:
    """Wait until `claim` holds, asking as often as a bot may."""
    deadline = time.monotonic() + within_s
    while not await claim():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    running = RayCluster()
    try:
        yield running
    finally:
        running.close()


def everywhere(story: Callable[[Bench], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A story as a test of every runner; on the cluster, both ways of handing job folders over at the same time."""

    @pytest.mark.parametrize(
        "kinds",
        [
            pytest.param(("local",), id="local"),
            pytest.param(("ray_shared", "ray_store"), id="ray", marks=pytest.mark.slow),
        ],
    )
    async def test(kinds: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path) -> None:
        benches = [make_bench(kind, request, tmp_path / kind) for kind in kinds]
        await asyncio.gather(*(story(bench) for bench in benches))

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


@pytest.fixture
def shared_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """The cluster; its nodes see the data folder."""
    return make_bench("ray_shared", request, tmp_path)


@pytest.fixture
def store_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """The cluster; job folders go through a store."""
    return make_bench("ray_store", request, tmp_path)


def make_bench(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    (tmp_path / "data").mkdir(parents=True)
    match kind:
        case "local":
            bench = Bench(folder=tmp_path)
        case "ray_shared":
            # The nodes see the same folder under another name.
            (tmp_path / "seen-by-nodes").symlink_to(tmp_path / "data")
            settings = {"shared_root": str(tmp_path / "seen-by-nodes")}
            bench = Bench(folder=tmp_path, cluster=request.getfixturevalue("cluster"), settings=settings)
        case _:
            settings = {"store": f"file://{tmp_path}/store", "scratch_dir": str(tmp_path / "scratch")}
            bench = Bench(folder=tmp_path, cluster=request.getfixturevalue("cluster"), settings=settings)
    bench.plan()
    return bench
