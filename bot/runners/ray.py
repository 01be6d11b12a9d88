"""Trainings on a Ray cluster, by Ray Jobs: one job for each attempt, found again by its name (ADR 0013)."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from bot.config import RaySettings
from bot.errors import LaunchFailed, RunnerUnreachable
from bot.runners.command import trainer_argv
from bot.runners.events import EventLines, read_events
from bot.runners.mirror import Mirror, datasets_of
from bot.runners.ray_api import JobStatus, RayApi, RayJob, RayNode
from bot.runners.ray_words import keep_words, without_secrets
from bot.runners.runner import Handle, Launch, Status
from bot.runners.stored import open_store, owner_of
from trainer.protocol.attempt import HEARTBEAT_FILE, write_attempt
from trainer.protocol.order import LOG_FILE
from trainer.protocol.places import write_places
from trainer.protocol.spec import read_spec
from trainer.protocol.store import JOB_DIR_ARGUMENT, JobPlace

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two looks at whether what waits can ever run.
_FEASIBLE_S = 60.0
#: Between two looks at the log of a job that runs, which its machine sends every ten seconds.
_LOG_S = 30.0
#: How long the head may take to ask a machine for a job's output that may be gone.
_PRINTED_S = 5.0
#: Ray gives a job up that it could not place for long (RAY_JOB_START_TIMEOUT_SECONDS on the head, 15 minutes).
_WAITED_TOO_LONG = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
#: The process of Ray that watches a job died, which is how the loss of a node looks.
_NODE_LOST = "JOB_SUPERVISOR_ACTOR_DIED"


class _Handle(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    submission_id: str
    job_id: int
    attempt: int
    job_dir: Path
    #: What it asks for, in Ray's words.
    needs: dict[str, float]

    @property
    def place(self) -> JobPlace:
        return JobPlace(job_id=self.job_id, attempt=self.attempt)

    @property
    def withdrawn(self) -> Path:
        """There once somebody stopped it while it waited: Ray itself tells such a job only when its turn comes."""
        return self.job_dir / f"withdrawn-{self.attempt}"


class RayRunner:
    """Submits `command run JOB_DIR` to the cluster of `settings.address`.

    Job folders are on storage that the nodes see (`settings.shared_root`), or go through an object store
    (`settings.store`). `env` is what trainers get; `stop_grace_s`, how long a stopped one may take to save.
    """

    def __init__(
        self,
        settings: RaySettings,
        *,
        data_dir: Path,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        stop_grace_s: float = 60.0,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir.absolute()
        self._command = tuple(command or (settings.python, "-m", "trainer"))
        self._env = dict(env or {})
        self._stop_grace_s = stop_grace_s
        self._api = RayApi(settings.address, token=environ.get(settings.token_env), timeout_s=settings.timeout_s)
        self._owner = owner_of(self._data_dir)
        store = open_store(settings, self._data_dir)
        self._mirror = None if store is None else Mirror(store)
        self._monotonic = monotonic
        self._looked_at: dict[str, float] = {}
        self._log_fetched_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<RayRunner {self._settings.address} {self._settings.store or self._settings.shared_root}>"

    async def launch(self, launch: Launch) -> Handle:
        """See `Runner.launch`; the attempt's name is what makes two calls one job.

        Raises:
            LaunchFailed: no machine of the cluster is as large as the job asks.
            RunnerUnreachable: the cluster or the store does not answer; call it again.
        """
        handle = _Handle(
            submission_id=f"darkroom-{launch.job_id}-{launch.attempt}-{self._owner}",
            job_id=launch.job_id,
            attempt=launch.attempt,
            job_dir=launch.job_dir.absolute(),
            needs=self._needs(launch),
        )
        if (problem := _why_never(handle.needs, await self._api.nodes(), alive_only=False)) is not None:
            raise LaunchFailed(command=handle.submission_id, why=problem)
        request = await asyncio.to_thread(self._request, launch, handle.needs)
        if self._mirror is None:
            await asyncio.to_thread(write_attempt, handle.job_dir, launch.attempt)
        else:
            await self._in_store(self._mirror.prepare, handle.place, handle.job_dir)
        await self._api.submit({"submission_id": handle.submission_id, **request})
        log.info("#%d: submitted as %s (attempt %d)", launch.job_id, handle.submission_id, launch.attempt)
        return Handle(handle.model_dump_json())

    def _needs(self, launch: Launch) -> dict[str, float]:
        """In Ray's words. Without any, a job runs on the head, whatever that has."""
        settings = self._settings
        return {
            "CPU": float(settings.cpus),
            "GPU": float(launch.gpus or settings.gpus),
            "memory": float(settings.memory_mib * 1024 * 1024),
        }

    def _request(self, launch: Launch, needs: Mapping[str, float]) -> dict[str, Any]:
        env = self._env | {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(self._stop_grace_s))}
        if self._settings.store:
            argv = self._shipping(launch)
            # `exec`: no shell in between that would hide how the trainer ended, or keep it when the node goes.
            entrypoint = f"exec {shlex.join(argv)}"
        else:
            folder = self._on_node(launch.job_dir.absolute())
            argv = trainer_argv(self._command, launch, str(folder))
            entrypoint = f"exec {shlex.join(argv)} >> {shlex.quote(str(folder / LOG_FILE))} 2>&1"
            env |= self._places(launch.job_dir)
        return {
            "entrypoint": entrypoint,
            "entrypoint_num_cpus": needs["CPU"],
            "entrypoint_num_gpus": needs["GPU"],
            "entrypoint_memory": int(needs["memory"]),
            "runtime_env": {"env_vars": env},
            "metadata": {"darkroom_job": str(launch.job_id), "darkroom_attempt": str(launch.attempt)},
        }

    def _shipping(self, launch: Launch) -> tuple[str, ...]:
        assert self._mirror is not None
        scratch = [f"--scratch={self._settings.scratch_dir}"] if self._settings.scratch_dir else []
        names = [f"--job={launch.job_id}", f"--attempt={launch.attempt}"]
        argv = trainer_argv(self._command, launch, JOB_DIR_ARGUMENT)
        return (self._settings.python, "-m", "trainer", "ship", self._mirror.url, *names, *scratch, "--", *argv)

    def _on_node(self, path: Path) -> Path:
        """A path of this machine as the nodes see it."""
        if not self._settings.shared_root or not path.is_relative_to(self._data_dir):
            return path
        return Path(self._settings.shared_root) / path.relative_to(self._data_dir)

    def _places(self, job_dir: Path) -> dict[str, str]:
        """Tells the trainer of datasets that lie elsewhere on its node."""
        folders = datasets_of(read_spec(job_dir))
        places = {folder: str(self._on_node(Path(folder))) for folder in folders}
        moved = {folder: place for folder, place in places.items() if folder != place}
        return write_places(moved) if moved else {}

    async def poll(self, handle: Handle) -> Status:
        """See `Runner.poll`; trainer.log is brought on the way, now and then, and when the job has ended.

        Raises:
            RunnerUnreachable: the cluster or the store does not answer: nothing is known, so nothing is started
                elsewhere.
        """
        known = _load(handle)
        job = await self._api.job(known.submission_id)
        if job is None:
            log.warning("#%d: the cluster does not know %s any more", known.job_id, known.submission_id)
            await self._fetch_log(known)
            return Status.GONE
        match job.status:
            case JobStatus.RUNNING:
                await self._fetch_log(known, every_s=_LOG_S)
                return Status.RUNNING
            case JobStatus.PENDING:
                return await self._waiting(known)
            case _:
                await self._fetch_log(known)
                if job.status is JobStatus.FAILED:
                    await self._keep_words(known, job)
                return _ended(known, job)

    async def _fetch_log(self, known: _Handle, *, every_s: float = 0.0) -> None:
        """From a store; on shared storage the trainer writes into the very file."""
        now = self._monotonic()
        if self._mirror is None or now - self._log_fetched_at.get(known.submission_id, -math.inf) < every_s:
            return
        await self._in_store(self._mirror.fetch_log, known.place, known.job_dir)
        self._log_fetched_at[known.submission_id] = now

    async def _keep_words(self, known: _Handle, job: RayJob) -> None:
        """Why it failed as Ray sees it: the trainer may never have come so far as to have a log."""
        words = job.message or ""
        if job.error_type == _NODE_LOST:
            # Of others the message holds the end of the output.
            words += f"\n{await self._printed(known)}"
        await asyncio.to_thread(keep_words, known.job_dir, known.submission_id, without_secrets(words, self._env))

    async def _printed(self, known: _Handle) -> str:
        try:
            async with asyncio.timeout(_PRINTED_S):
                return await self._api.logs(known.submission_id)
        except (RunnerUnreachable, TimeoutError) as error:
            log.info("#%d: its output on the lost machine cannot be had (%s)", known.job_id, error)
            return ""

    async def _waiting(self, known: _Handle) -> Status:
        if known.withdrawn.exists():
            return Status.GONE
        now = self._monotonic()
        if now - self._looked_at.get(known.submission_id, -math.inf) >= _FEASIBLE_S:
            self._looked_at[known.submission_id] = now
            nodes = await self._api.nodes()
            if (problem := _why_never(known.needs, nodes, alive_only=True)) is not None:
                log.warning("#%d waits, and not for others: %s", known.job_id, problem)
        return Status.WAITING

    async def stop(self, handle: Handle) -> None:
        """See `Runner.stop`; Ray kills it when the grace is over. One that waits is withdrawn.

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        known = _load(handle)
        job = await self._api.job(known.submission_id)
        await self._api.stop(known.submission_id)
        if job is not None and job.status is JobStatus.PENDING:
            await asyncio.to_thread(known.withdrawn.touch)

    async def kill(self, handle: Handle) -> None:
        """See `Runner.kill`; Ray has no other way than SIGTERM, and SIGKILL when the grace is over.

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        known = _load(handle)
        log.warning("#%d: ending %s, by force in %g s", known.job_id, known.submission_id, self._stop_grace_s)
        await self.stop(handle)

    async def events(self, handle: Handle, job_dir: Path, offset: int) -> EventLines:
        """See `Runner.events`.

        Raises:
            RunnerUnreachable: the store does not answer.
        """
        if self._mirror is not None:
            await self._in_store(self._mirror.fetch, _load(handle).place, job_dir)
        return await asyncio.to_thread(read_events, job_dir, offset)

    async def last_beat(self, handle: Handle, job_dir: Path) -> float | None:
        """See `Runner.last_beat`.

        Raises:
            RunnerUnreachable: the store does not answer.
        """
        if self._mirror is not None:
            return await self._in_store(self._mirror.last_beat, _load(handle).place)
        return await asyncio.to_thread(_modified_at, job_dir / HEARTBEAT_FILE)

    def _in_store(self, work: Callable[..., T], *arguments: object) -> Awaitable[T]:
        return asyncio.to_thread(self._guarded, work, *arguments)

    def _guarded(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return work(*arguments)
        except OSError as error:
            raise RunnerUnreachable(where=self._settings.store, why=str(error) or type(error).__name__) from error


async def count_slots(settings: RaySettings, environ: Mapping[str, str] = os.environ) -> int:
    """How many slots the cluster is: one for each GPU, or for the CPUs of a job where jobs ask for no GPU.

    Raises:
        RunnerUnreachable: the cluster does not answer.
    """
    api = RayApi(settings.address, token=environ.get(settings.token_env), timeout_s=settings.timeout_s)
    alive = [node.resources_total for node in await api.nodes() if node.is_alive]
    what, each = ("GPU", 1) if settings.gpus else ("CPU", settings.cpus)
    return max(1, sum(int(resources.get(what, 0.0) // each) for resources in alive))


def _load(handle: Handle) -> _Handle:
    return _Handle.model_validate_json(handle)


def _ended(known: _Handle, job: RayJob) -> Status:
    if job.status is JobStatus.FAILED:
        log.warning("#%d: %s failed: %s", known.job_id, known.submission_id, (job.message or "")[-2000:])
    # It never ran, or its node went down under it: no start that counts.
    return Status.CUT_OFF if job.error_type in {_WAITED_TOO_LONG, _NODE_LOST} else Status.GONE


def _why_never(needs: Mapping[str, float], nodes: Sequence[RayNode], *, alive_only: bool) -> str | None:
    """Why no machine is large enough, as a sentence; None where one is (or was, without `alive_only`)."""
    if any(_holds(node, needs) for node in nodes if node.is_alive or not alive_only):
        return None
    largest = {
        name: max((node.resources_total.get(name, 0.0) for node in nodes if node.is_alive), default=0.0)
        for name in needs
    }
    return (
        f"it asks for {_in_words(needs)}, and no machine of the cluster has that; "
        f"the most that one has is {_in_words(largest)}. Start a larger one, or lower the numbers under [ray]"
    )


def _holds(node: RayNode, needs: Mapping[str, float]) -> bool:
    return all(node.resources_total.get(name, 0.0) >= amount for name, amount in needs.items())


def _in_words(amounts: Mapping[str, float]) -> str:
    return f"{amounts['GPU']:g} GPUs, {amounts['CPU']:g} CPUs and {amounts['memory'] / 1024**3:.3g} GiB of memory"


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
