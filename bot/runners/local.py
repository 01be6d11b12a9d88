"""Trainings on this machine: detached processes that a restart of the bot does not touch."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from bot.errors import LaunchFailed
from bot.runners.command import trainer_argv
from bot.runners.events import EventLines, read_events
from bot.runners.processes import environment, find_marked
from bot.runners.runner import Handle, Launch, Status
from bot.runners.spawn import spawn
from bot.runners.warm import WarmTrainer
from trainer.protocol.attempt import HEARTBEAT_FILE, read_attempt, write_attempt
from trainer.protocol.order import LOG_FILE, Order
from trainer.protocol.process import ProcessIdentity, identify, read_process_file

log = logging.getLogger(__name__)

_Send: TypeAlias = Callable[[int, int], None]

#: How long a killed process of an earlier attempt may take to go: one that waits for a disk or a driver takes longer.
GONE_S = 10.0


class _Handle(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    job_dir: Path
    #: The process that was started; None if it was gone before anybody could look.
    process: ProcessIdentity | None
    #: 0 in a handle of before there were fences.
    attempt: int = 0

    @property
    def holder(self) -> ProcessIdentity | None:
        """The living process that holds the job folder's lock, if it is of this attempt.

        It is not the one started under `accelerate launch`, whose child it is; nor when a bot died between a start and
        writing it down: then the next one started a second trainer, which found the folder held (exit status 6).
        """
        is_ours = self.attempt in {0, read_attempt(self.job_dir)}
        holder = read_process_file(self.job_dir) if is_ours else None
        return holder if holder is not None and holder.is_alive() else None

    @property
    def started(self) -> ProcessIdentity | None:
        """The living process that was started."""
        return self.process if self.process is not None and self.process.is_alive() else None

    def all(self) -> set[ProcessIdentity]:
        """Every living process of this attempt."""
        marked = {each for each, attempt in find_marked(self.job_dir).items() if self.attempt in {0, attempt}}
        return marked | {each for each in (self.started, self.holder) if each is not None}


class LocalRunner:
    """Runs `command run JOB_DIR` in a session of its own, standard output and error into JOB_DIR/trainer.log.

    With a `warm` trainer that is ready, that one gets the job: no libraries to load, and the same in all else.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
        env: Mapping[str, str] | None = None,
        warm: WarmTrainer | None = None,
    ) -> None:
        self._command = tuple(command)
        self._env = dict(os.environ if env is None else env)
        self._warm = warm
        #: Children that were not waited for; those of an earlier bot belong to init.
        self._children: set[int] = set()

    async def launch(self, launch: Launch) -> Handle:
        """See `Runner.launch`; a living trainer of the same attempt is taken over, one of an earlier attempt killed."""
        found = await asyncio.to_thread(_clear_the_way, launch)
        if found is not None:
            log.info("#%d: taking over process %d", launch.job_id, found.pid)
            return _dump(_Handle(job_dir=launch.job_dir, process=found, attempt=launch.attempt))
        pid, how = await self._start(launch)
        self._children.add(pid)
        log.info(
            "#%d: process %d %s (attempt %d%s)",
            launch.job_id,
            pid,
            how,
            launch.attempt,
            ", finish" if launch.finish else "",
        )
        return _dump(_Handle(job_dir=launch.job_dir, process=identify(pid), attempt=launch.attempt))

    async def _start(self, launch: Launch) -> tuple[int, str]:
        """Its pid, and whether it was started for this or was there."""
        if self._warm is not None and launch.gpus < 2:
            pid = await self._warm.take(_order(launch))
            if pid is not None:
                return pid, "was ready and took it"
        argv = trainer_argv(self._command, launch, str(launch.job_dir))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(launch.job_dir / LOG_FILE), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return await asyncio.to_thread(spawn, argv, {**self._env, **environment(launch)}, actions), "started"

    async def poll(self, handle: Handle) -> Status:
        """See `Runner.poll`."""
        loaded = _load(handle)
        is_running = loaded.started is not None or loaded.holder is not None
        # In this order: a child that is gone by now is reaped by this very call, which may be the last one.
        self._reap()
        if is_running:
            return Status.RUNNING
        is_cut_off = loaded.process is not None and loaded.process.went_down_with_its_machine()
        return Status.CUT_OFF if is_cut_off else Status.GONE

    async def stop(self, handle: Handle) -> None:
        """See `Runner.stop`; SIGTERM to the trainer alone, which ends its own helpers.

        Not to what launched it: `accelerate launch` would give its processes 30 s, and then kill them.
        """
        loaded = _load(handle)
        trainer = loaded.holder or loaded.started
        if trainer is not None:
            _signal(os.kill, trainer.pid, signal.SIGTERM)

    async def kill(self, handle: Handle) -> None:
        """See `Runner.kill`; SIGKILL to each, and to the whole group of one that leads it."""
        _kill(await asyncio.to_thread(_load(handle).all), _load(handle).job_dir)

    async def events(self, handle: Handle, job_dir: Path, offset: int) -> EventLines:
        """See `Runner.events`."""
        return await asyncio.to_thread(read_events, job_dir, offset)

    async def last_beat(self, handle: Handle, job_dir: Path) -> float | None:
        """See `Runner.last_beat`."""
        try:
            return (job_dir / HEARTBEAT_FILE).stat().st_mtime
        except FileNotFoundError:
            return None

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                self._children.discard(pid)
                continue
            if done:
                self._children.discard(pid)
                log.info("process %d ended with status %d", pid, os.waitstatus_to_exitcode(status))


def _clear_the_way(launch: Launch) -> ProcessIdentity | None:
    """The living process of this very attempt, if there is one; else nobody else works in the folder from here on.

    In this order: killed, then fenced. A bot that dies in between finds the next time what it had not killed yet.

    Raises:
        LaunchFailed: a process of an earlier attempt does not go.
        OSError: the folder cannot be written.
    """
    living = find_marked(launch.job_dir)
    holder = read_process_file(launch.job_dir)
    if holder is not None and holder.is_alive():
        living.setdefault(holder, read_attempt(launch.job_dir))
    ours = [each for each, attempt in living.items() if attempt == launch.attempt]
    if holder in ours:
        return holder
    if ours:
        return ours[0]
    _kill(living, launch.job_dir)
    until = time.monotonic() + GONE_S
    while left := [each for each in living if each.is_alive()]:
        if time.monotonic() > until:
            why = f"process {left[0].pid} of an earlier attempt does not end"
            raise LaunchFailed(command=f"attempt {launch.attempt}", why=why)
        time.sleep(0.02)
    write_attempt(launch.job_dir, launch.attempt)
    # So that the next sign of life is this attempt's.
    (launch.job_dir / HEARTBEAT_FILE).unlink(missing_ok=True)
    return None


def _order(launch: Launch) -> Order:
    return Order(
        job_dir=launch.job_dir.absolute(),
        finish=launch.finish,
        attempt=launch.attempt,
        devices=launch.devices,
        micro_batch=launch.micro_batch,
    )


def _kill(identities: Iterable[ProcessIdentity], job_dir: Path) -> None:
    for identity in identities:
        log.warning("killing process %d (%s)", identity.pid, job_dir)
        _signal(os.killpg if _leads_group(identity.pid) else os.kill, identity.pid, signal.SIGKILL)


def _dump(handle: _Handle) -> Handle:
    return Handle(handle.model_dump_json())


def _load(handle: Handle) -> _Handle:
    return _Handle.model_validate_json(handle)


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _signal(send: _Send, pid: int, number: signal.Signals) -> None:
    try:
        send(pid, number)
    except ProcessLookupError:
        log.info("process %d ended before %s reached it", pid, number.name)
