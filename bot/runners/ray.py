"""Trainings on a Ray cluster by Ray Jobs: one Ray job for each attempt, found again by its name (ADR 0013)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bot.config import RaySettings
from bot.errors import LaunchFailed
from bot.runners.ray_api import JobStatus, RayApi, RayJob, RayNode
from bot.runners.runner import Handle, RunStatus, trainer_argv
from trainer.exchange.attempt import write_attempt
from trainer.exchange.job_dir import LOG_FILE, dataset_paths_environment, read_sampling, read_spec
from trainer.protocol.frozen import Frozen
from trainer.protocol.run_options import JobKind, RunOptions
from trainer.protocol.sampling import SampledJob
from trainer.protocol.text import _

log = logging.getLogger(__name__)

#: Seconds between two checks whether a waiting job can ever run.
_FEASIBILITY_CHECK_S = 60.0
#: Ray failed a job that waited too long (RAY_JOB_START_TIMEOUT_SECONDS on the head, 15 minutes by default).
_START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
#: Ray's process beside a job died, which is how a lost node shows.
_SUPERVISOR_DIED = "JOB_SUPERVISOR_ACTOR_DIED"

#: Limit on Ray's message in the log; Ray itself keeps 20,000 characters of a job's output.
_MAX_MESSAGE_CHARS = 20_000
_LOG_TAIL_BYTES = 256 * 1024
#: User name and password in an address: `ftp://name:password@host`.
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASS", re.IGNORECASE)
#: A shorter value is a switch (`HF_TOKEN_IMPLICIT=1`), whose characters occur everywhere.
_MIN_SECRET_CHARS = 6


class RayHandle(Frozen):
    """Handle of a training on a Ray cluster."""

    submission_id: str
    job_id: int
    attempt: int
    job_dir: Path
    #: Requested amounts by Ray's resource names.
    resources: dict[str, float]

    @property
    def withdrawn_path(self) -> Path:
        """Exists once the job was stopped while it waited; Ray stops such a job only when its turn comes."""
        return self.job_dir / f"withdrawn-{self.attempt}"


class RayRunner:
    """Submits `command run JOB_DIR` to the cluster at `settings.address`.

    Job folders and datasets are on storage that the nodes share (`settings.shared_root`). `env` is passed to the
    trainers; `stop_grace_s` is how long a stopped trainer may take to save its checkpoint.
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
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir.absolute()
        self._command = tuple(command or (settings.python, "-m", "trainer"))
        self._env = dict(env or {})
        self._stop_grace_s = stop_grace_s
        self._api = RayApi(settings.address, token=environ.get(settings.token_env), timeout_s=settings.timeout_s)
        # Two bots may share a cluster, and their jobs have the same numbers.
        self._owner = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:8]
        self._feasibility_checked_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<RayRunner {self._settings.address} {self._settings.shared_root}>"

    async def launch(self, options: RunOptions) -> Handle:
        """Submit the training. The attempt's name is the key: submitting it twice makes one job.

        Raises:
            LaunchFailed: No machine of the cluster is large enough for the job.
            RunnerUnreachable: The cluster does not answer; call it again.
        """
        handle = RayHandle(
            submission_id=f"darkroom-{options.job_id}-{options.attempt}-{self._owner}",
            job_id=options.job_id,
            attempt=options.attempt,
            job_dir=options.job_dir.absolute(),
            resources=self._resources(options),
        )
        nodes = await self._api.nodes()
        if (problem := _infeasible_reason(handle.resources, nodes, alive_only=False)) is not None:
            raise LaunchFailed(command=handle.submission_id, why=problem)
        request = await asyncio.to_thread(self._request, options, handle.resources)
        await asyncio.to_thread(write_attempt, handle.job_dir, options.attempt)
        await self._api.submit({"submission_id": handle.submission_id, **request})
        log.info("#%d: submitted as %s (attempt %d)", options.job_id, handle.submission_id, options.attempt)
        return Handle(handle.model_dump_json())

    def _resources(self, options: RunOptions) -> dict[str, float]:
        """Return the request by Ray's resource names. A job without any would run on the head."""
        settings = self._settings
        return {
            "CPU": float(settings.cpus),
            "GPU": float(options.gpus or settings.gpus),
            "memory": float(settings.memory_mib * 1024 * 1024),
        }

    def _request(self, options: RunOptions, resources: Mapping[str, float]) -> dict[str, Any]:
        job_dir = self._path_on_node(options.job_dir.absolute())
        argv = trainer_argv(self._command, options.model_copy(update={"job_dir": job_dir, "stay_s": 0.0}))
        env = self._env | {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(self._stop_grace_s))}
        return {
            # `exec`: a shell in between would hide the exit status, and survive a lost node.
            "entrypoint": f"exec {shlex.join(argv)} >> {shlex.quote(str(job_dir / LOG_FILE))} 2>&1",
            "entrypoint_num_cpus": resources["CPU"],
            "entrypoint_num_gpus": resources["GPU"],
            "entrypoint_memory": int(resources["memory"]),
            "runtime_env": {"env_vars": env | self._paths_on_node(options)},
            "metadata": {"darkroom_job": str(options.job_id), "darkroom_attempt": str(options.attempt)},
        }

    def _path_on_node(self, path: Path) -> Path:
        if not self._settings.shared_root or not path.is_relative_to(self._data_dir):
            return path
        return Path(self._settings.shared_root) / path.relative_to(self._data_dir)

    def _paths_on_node(self, options: RunOptions) -> dict[str, str]:
        """Return the variable that maps the job's datasets, or the jobs that it draws with, to paths on the nodes."""
        if options.kind is JobKind.SAMPLE:
            models = read_sampling(options.job_dir).models
            folders = tuple(model.job_dir for model in models if isinstance(model, SampledJob))
        else:
            spec = read_spec(options.job_dir)
            folders = (spec.dataset, *(part.dataset for part in spec.mix))
        paths = {folder: str(self._path_on_node(Path(folder))) for folder in folders}
        moved = {folder: path for folder, path in paths.items() if folder != path}
        return dataset_paths_environment(moved) if moved else {}

    async def poll(self, handle: Handle) -> RunStatus:
        """Return the state of the Ray job; append Ray's message to trainer.log if it failed.

        Raises:
            RunnerUnreachable: The cluster does not answer. The state is unknown, so nothing may be started elsewhere.
        """
        known = _load(handle)
        job = await self._api.job(known.submission_id)
        if job is None:
            log.warning("#%d: the cluster does not know %s any more", known.job_id, known.submission_id)
            return RunStatus.EXITED
        match job.status:
            case JobStatus.RUNNING:
                return RunStatus.RUNNING
            case JobStatus.PENDING:
                return await self._waiting(known)
            case JobStatus.FAILED:
                log.warning("#%d: %s failed: %s", known.job_id, known.submission_id, (job.message or "")[-2000:])
                await self._log_failure(known, job)
                # It never ran, or its node was lost: the attempt does not count.
                is_node_lost = job.error_type in {_START_TIMEOUT, _SUPERVISOR_DIED}
                return RunStatus.NODE_LOST if is_node_lost else RunStatus.EXITED
            case _:
                return RunStatus.EXITED

    async def _waiting(self, known: RayHandle) -> RunStatus:
        if known.withdrawn_path.exists():
            return RunStatus.EXITED
        now = time.monotonic()
        if now - self._feasibility_checked_at.get(known.submission_id, -math.inf) >= _FEASIBILITY_CHECK_S:
            self._feasibility_checked_at[known.submission_id] = now
            nodes = await self._api.nodes()
            if (problem := _infeasible_reason(known.resources, nodes, alive_only=True)) is not None:
                log.warning("#%d waits for a machine that is not there: %s", known.job_id, problem)
        return RunStatus.WAITING

    async def _log_failure(self, known: RayHandle, job: RayJob) -> None:
        """Append Ray's message to trainer.log: the trainer may have failed before it wrote anything."""
        message = without_secrets(job.message or "", self._env)
        await asyncio.to_thread(append_ray_message, known, message)

    async def stop(self, handle: Handle) -> None:
        """Stop the job; Ray kills it when the grace is over. A waiting job is withdrawn.

        Raises:
            RunnerUnreachable: The cluster does not answer.
        """
        known = _load(handle)
        job = await self._api.job(known.submission_id)
        await self._api.stop(known.submission_id)
        if job is not None and job.status is JobStatus.PENDING:
            await asyncio.to_thread(known.withdrawn_path.touch)

    async def kill(self, handle: Handle) -> None:
        """Do the same as `stop`: Ray sends SIGTERM, and SIGKILL only when the grace is over.

        Raises:
            RunnerUnreachable: The cluster does not answer.
        """
        known = _load(handle)
        log.warning("#%d: killing %s in %g s", known.job_id, known.submission_id, self._stop_grace_s)
        await self.stop(handle)


async def count_cluster_slots(settings: RaySettings, environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of slots of the cluster: its GPUs, or how often a job's CPUs fit if jobs use no GPU.

    Raises:
        RunnerUnreachable: The cluster does not answer.
    """
    api = RayApi(settings.address, token=environ.get(settings.token_env), timeout_s=settings.timeout_s)
    alive = [node.resources_total for node in await api.nodes() if node.is_alive]
    resource, amount = ("GPU", 1) if settings.gpus else ("CPU", settings.cpus)
    return max(1, sum(int(resources.get(resource, 0.0) // amount) for resources in alive))


def _infeasible_reason(resources: Mapping[str, float], nodes: Sequence[RayNode], *, alive_only: bool) -> str | None:
    """Return why no machine is large enough, None if one is (or was, without `alive_only`)."""
    if any(_fits(node, resources) for node in nodes if node.is_alive or not alive_only):
        return None
    largest = {
        name: max((node.resources_total.get(name, 0.0) for node in nodes if node.is_alive), default=0.0)
        for name in resources
    }
    return _(
        "it asks for {wanted}, and no machine of the cluster has that; the largest has {largest}. "
        "Start a larger one, or lower the numbers under [ray]",
        wanted=_format_resources(resources),
        largest=_format_resources(largest),
    )


def _fits(node: RayNode, resources: Mapping[str, float]) -> bool:
    return all(node.resources_total.get(name, 0.0) >= amount for name, amount in resources.items())


def _format_resources(amounts: Mapping[str, float]) -> str:
    return _(
        "{gpus:g} GPUs, {cpus:g} CPUs and {gib:.3g} GiB of memory",
        gpus=amounts["GPU"],
        cpus=amounts["CPU"],
        gib=amounts["memory"] / 1024**3,
    )


def append_ray_message(known: RayHandle, message: str) -> None:
    """Append Ray's message to the job's log under the attempt's name, unless it is there already.

    A log that cannot be written is reported in the bot's log only: asking Ray again would not help.
    """
    title = f"--- Ray about {known.submission_id} ---"
    path = known.job_dir / LOG_FILE
    try:
        if title.encode() in _read_tail(path):
            return
        with path.open("ab") as file:
            file.write(f"{title}\n{message.strip()[-_MAX_MESSAGE_CHARS:]}\n".encode())
    except OSError as error:
        log.warning("%s: Ray's message could not be appended (%s)", path, error)


def _read_tail(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read(_LOG_TAIL_BYTES)


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """Mask passwords in addresses and the secrets of a trainer's environment.

    Ray repeats command lines and environments in its messages.
    """
    text = _USER_INFO.sub("***@", text)
    for secret in sorted(_secrets(env), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(env: Mapping[str, str]) -> Iterator[str]:
    for name, value in env.items():
        if len(value) >= _MIN_SECRET_CHARS and _SECRET_NAME.search(name):
            yield value


def _load(handle: Handle) -> RayHandle:
    return RayHandle.model_validate_json(handle)
