"""Trainings on this machine: detached processes that a restart of the bot does not touch."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from bot.runners.events import EventLines, read_events
from bot.runners.runner import Handle, Launch, Status
from bot.runners.spawn import spawn
from bot.runners.warm import WarmTrainer
from trainer.protocol.order import LOG_FILE, Order
from trainer.protocol.process import ProcessIdentity, identify, read_process_file

log = logging.getLogger(__name__)

_Send: TypeAlias = Callable[[int, int], None]


class _Handle(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    job_dir: Path
    #: The process that was started; None if it was gone before anybody could look.
    process: ProcessIdentity | None

    def holders(self) -> list[ProcessIdentity]:
        """Living processes of this training: the one started, and the one that holds the job folder's lock.

        They differ when a bot died between a start and writing it down: the next one started a second trainer,
        which found the folder held (exit status 6).
        """
        known = {identity for identity in (self.process, read_process_file(self.job_dir)) if identity}
        return [identity for identity in known if identity.is_alive()]


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
        """See `Runner.launch`; a living trainer that holds the folder is taken over."""
        holder = read_process_file(launch.job_dir)
        if holder and holder.is_alive():
            log.info("#%d: taking over process %d", launch.job_id, holder.pid)
            return _dump(_Handle(job_dir=launch.job_dir, process=holder))
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
        return _dump(_Handle(job_dir=launch.job_dir, process=identify(pid)))

    async def _start(self, launch: Launch) -> tuple[int, str]:
        """Its pid, and whether it was started for this or was there."""
        if self._warm is not None:
            pid = await self._warm.take(Order(job_dir=launch.job_dir.absolute(), finish=launch.finish))
            if pid is not None:
                return pid, "was ready and took it"
        argv = (*self._command, "run", str(launch.job_dir), *(["--finish"] if launch.finish else []))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(launch.job_dir / LOG_FILE), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return await asyncio.to_thread(spawn, argv, self._env, actions), "started"

    async def poll(self, handle: Handle) -> Status:
        """See `Runner.poll`."""
        holders = _load(handle).holders()
        # In this order: a child that is gone by now is reaped by this very call, which may be the last one.
        self._reap()
        return Status.RUNNING if holders else Status.GONE

    async def stop(self, handle: Handle) -> None:
        """See `Runner.stop`; SIGTERM to the trainer alone, which ends its own helpers."""
        for identity in _load(handle).holders():
            _signal(os.kill, identity.pid, signal.SIGTERM)

    async def kill(self, handle: Handle) -> None:
        """See `Runner.kill`; SIGKILL to the whole group where the trainer leads one."""
        for identity in _load(handle).holders():
            log.warning("killing process %d (%s)", identity.pid, _load(handle).job_dir)
            _signal(os.killpg if _leads_group(identity.pid) else os.kill, identity.pid, signal.SIGKILL)

    async def events(self, job_dir: Path, offset: int) -> EventLines:
        """See `Runner.events`."""
        return await asyncio.to_thread(read_events, job_dir, offset)

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
