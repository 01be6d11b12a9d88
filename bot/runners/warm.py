"""Processes that wait for a job: a trainer with its libraries loaded (`python -m trainer wait`), and samplers that stay
after a sampling job with its base loaded (`python -m trainer sample JOB_DIR --stay S`).

If one dies, hangs or is not ready yet, the job is started cold. They end with the bot, however the bot ends: the end of
their standard input ends them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bot.errors import LaunchFailed
from bot.runners.child_process import spawn_detached
from trainer.exchange.process import identify, is_released
from trainer.protocol.run_options import READY, TAKEN, RunOptions

log = logging.getLogger(__name__)

#: Before the first start: the bot itself is starting.
FIRST_PAUSE_S = 5.0
#: Before the next start: a training that has just begun gets the machine for itself.
PAUSE_S = 60.0
#: A ready process answers at once; one that is stopped or swapped out does not.
ANSWER_S = 5.0
#: Consecutive deaths before any job after which no warm trainer is started any more.
MAX_DEATHS = 3
#: Between two checks whether it is alive.
POLL_S = 2.0
#: How long a sampler that must make room may take to exit; a driver can delay it.
EXIT_S = 10.0


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return our end and a child's end of a channel."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


class WaitingProcess:
    """A process that waits for a job, or will once it has loaded its libraries or done the job that it has."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.is_ready = False

    async def expects(self, answer: bytes) -> bool:
        """Return True if the process sends `answer` next, False once it has exited."""
        received = b""
        while len(received) < len(answer):
            try:
                part = await asyncio.get_running_loop().sock_recv(self.channel, len(answer) - len(received))
            except ConnectionError:
                return False
            if not part:
                return False
            received += part
        return received == answer

    async def hand_over(self, options: RunOptions, *, within_s: float) -> bool:
        """Give it a job; False if it did not take it and was killed."""
        self.is_ready = False
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(within_s):
                await asyncio.get_running_loop().sock_sendall(self.channel, options.to_line())
                if await self.expects(TAKEN):
                    return True
        log.warning("#%d: process %d did not take it (status %d)", options.job_id, self.pid, self.kill())
        return False

    def is_alive(self) -> bool:
        """Take note if it has become ready, without waiting; False once it has exited."""
        try:
            received = self.channel.recv(len(READY))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.is_ready = self.is_ready or received == READY
        return bool(received)

    def reap(self) -> None:
        """Record its exit status, if it has exited; another caller may have reaped it."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def kill(self) -> int:
        """Kill and reap the process; return its exit status."""
        self.channel.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            return 0


class WarmTrainer:
    """Keeps one `command wait` process ready while `run()` runs, and hands jobs to it."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        first_pause_s: float = FIRST_PAUSE_S,
        pause_s: float = PAUSE_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._argv = (*command, "wait")
        self._env = dict(env)
        self._first_pause_s = first_pause_s
        self._pause_s = pause_s
        self._answer_s = answer_s
        self._waiting: WaitingProcess | None = None
        #: Set when the waiting process was given a job.
        self._taken = asyncio.Event()

    def __repr__(self) -> str:
        waiting = self._waiting
        state = "none" if waiting is None else f"{waiting.pid}, {'ready' if waiting.is_ready else 'not ready'}"
        return f"<WarmTrainer {state}>"

    @property
    def is_ready(self) -> bool:
        """True if a job could be handed over now."""
        return self._waiting is not None and self._waiting.is_ready

    @property
    def pid(self) -> int | None:
        """The waiting process, ready or not."""
        return None if self._waiting is None else self._waiting.pid

    async def run(self) -> None:
        """Keep a process ready until cancelled."""
        deaths, pause_s = 0, self._first_pause_s
        try:
            while deaths < MAX_DEATHS:
                await asyncio.sleep(pause_s)
                deaths = 0 if await self._keep_one() else deaths + 1
                pause_s = self._pause_s
            log.warning("the warm trainer died %d times and is not started again; trainings start cold", deaths)
        finally:
            if self._waiting is not None:
                self._waiting.kill()
                self._waiting = None

    async def take(self, options: RunOptions) -> WaitingProcess | None:
        """Hand a job to the waiting process; return it, or None if the job must be started cold.

        Close its channel, unless more jobs follow: until then it is the job's, and does not end with the bot.
        """
        waiting = self._waiting
        if waiting is None or not waiting.is_ready:
            return None
        # From here on the process belongs to the job: it gets no second one.
        self._waiting = None
        self._taken.set()
        return waiting if await waiting.hand_over(options, within_s=self._answer_s) else None

    async def _keep_one(self) -> bool:
        """Start a process and wait until it was given a job (True) or died (False)."""
        self._taken.clear()
        try:
            waiting = self._waiting = self._start()
        except LaunchFailed as error:
            log.warning("no warm trainer can be started: %s", error)
            return False
        waiting.is_ready = await waiting.expects(READY)
        # Its channel is not read meanwhile: the next answer is for `take`.
        while waiting.is_ready and identify(waiting.pid) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._taken.wait()
                    return True
        if self._taken.is_set():
            return True
        self._waiting = None
        log.warning("the warm trainer died (status %d)", waiting.kill())
        return False

    def _start(self) -> WaitingProcess:
        ours, theirs = channel_pair()
        with theirs:
            file_actions = [
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ]
            try:
                return WaitingProcess(spawn_detached(self._argv, self._env, file_actions), ours)
            except LaunchFailed:
                ours.close()
                raise


@dataclass(frozen=True, kw_only=True)
class _Sampler:
    """A process that draws a job, or waits for the next one."""

    process: WaitingProcess
    #: Of its newest job.
    options: RunOptions

    @property
    def is_idle(self) -> bool:
        """True if its job is over, also before it is ready for the next one."""
        return self.process.is_ready or is_released(self.options.job_dir, self.options.attempt)

    def shares_device(self, options: RunOptions) -> bool:
        ours, theirs = set(self.options.devices), set(options.devices)
        return not ours or not theirs or bool(ours & theirs)


class WarmSamplers:
    """The sampling processes that stay after their jobs, each for the next job on its device."""

    def __init__(self, *, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._samplers: list[_Sampler] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that stay, at work or not."""
        return tuple(sampler.process.pid for sampler in self._samplers)

    async def run(self) -> None:
        """Forget those that have exited; close the channels of all when cancelled, which ends them after their jobs."""
        try:
            while True:
                await asyncio.sleep(POLL_S)
                self._forget_exited()
        finally:
            for sampler in self._samplers:
                sampler.process.channel.close()
            self._samplers.clear()

    def add(self, process: WaitingProcess, options: RunOptions) -> None:
        """Take in a process that has begun a job and will stay after it."""
        self._samplers.append(_Sampler(process=process, options=options))

    async def take(self, options: RunOptions) -> int | None:
        """Hand a job to a sampler that waits on the same device; return its pid, or None if there is none."""
        self._forget_exited()
        for sampler in [*self._samplers]:
            if sampler.process.is_ready and sampler.options.devices == options.devices:
                self._samplers.remove(sampler)
                if await sampler.process.hand_over(options, within_s=self._answer_s):
                    self.add(sampler.process, options)
                    return sampler.process.pid
        return None

    async def make_room(self, options: RunOptions) -> None:
        """End the samplers that wait on the devices of a training; those at work end after their jobs."""
        self._forget_exited()
        ending = [sampler for sampler in self._samplers if sampler.shares_device(options)]
        self._samplers = [sampler for sampler in self._samplers if sampler not in ending]
        for sampler in ending:
            sampler.process.channel.close()
        for sampler in ending:
            if sampler.is_idle and not await asyncio.to_thread(_exits_in_time, sampler.process):
                pid, status = sampler.process.pid, sampler.process.kill()
                log.warning("#%d: sampler %d did not make room and was killed (%d)", options.job_id, pid, status)

    def _forget_exited(self) -> None:
        staying: list[_Sampler] = []
        for sampler in self._samplers:
            if sampler.process.is_alive():
                staying.append(sampler)
            else:
                sampler.process.channel.close()
                sampler.process.reap()
        self._samplers = staying


def _exits_in_time(process: WaitingProcess) -> bool:
    until = time.monotonic() + EXIT_S
    while identify(process.pid) is not None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    process.reap()
    return True
