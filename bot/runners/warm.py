"""One warm trainer: a process with its libraries loaded that waits for a job (`python -m trainer wait`).

If it dies, hangs or is not ready yet, the job is started cold. It ends with the bot, however the bot ends, because the
end of its standard input ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bot.errors import LaunchFailed
from bot.runners.child_process import spawn_detached
from trainer.exchange.process import identify
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


class _WaitingProcess:
    """A process that waits for a job, or will once it has loaded its libraries."""

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
        self._waiting: _WaitingProcess | None = None
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

    async def take(self, options: RunOptions) -> int | None:
        """Hand a job to the waiting process; return its pid, or None if the job must be started cold."""
        waiting = self._waiting
        if waiting is None or not waiting.is_ready:
            return None
        # From here on the process belongs to the job: it gets no second one, and does not end with the bot.
        self._waiting = None
        self._taken.set()
        try:
            async with asyncio.timeout(self._answer_s):
                await asyncio.get_running_loop().sock_sendall(waiting.channel, options.to_line())
                if await waiting.expects(TAKEN):
                    return waiting.pid
        except (TimeoutError, ConnectionError):
            pass
        finally:
            waiting.channel.close()
        log.warning("#%d: the warm trainer did not take it (status %d): starting cold", options.job_id, waiting.kill())
        return None

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

    def _start(self) -> _WaitingProcess:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            file_actions = [
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ]
            try:
                return _WaitingProcess(spawn_detached(self._argv, self._env, file_actions), ours)
            except LaunchFailed:
                ours.close()
                raise
