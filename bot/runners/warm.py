"""One trainer kept ready: its libraries are loaded, and it waits for a job (`python -m trainer wait`).

Whatever goes wrong with it (it dies, hangs, is not ready yet), the job is started cold, as without it. It ends with
the bot: the end of its standard input ends it, however the bot went.
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
from bot.runners.spawn import spawn
from trainer.protocol.order import READY, TAKEN, Order
from trainer.protocol.process import identify

log = logging.getLogger(__name__)

#: Before the first: the bot has enough to do when it starts.
FIRST_PAUSE_S = 5.0
#: Before the next: a training that has just begun is to have the machine for itself.
PAUSE_S = 60.0
#: A process that is ready answers at once; one that is stopped or swapped out does not.
ANSWER_S = 5.0
#: Deaths in a row, before any order, after which it is not tried any more.
MAX_DEATHS = 3
#: Pause between two looks at whether it still lives.
LOOK_S = 2.0


class _Waiting:
    """A process that waits, or will once it is ready."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.is_ready = False

    async def hears(self, expected: bytes) -> bool:
        """Whether it says that next; False once it is gone."""
        said = b""
        while len(said) < len(expected):
            try:
                part = await asyncio.get_running_loop().sock_recv(self.channel, len(expected) - len(said))
            except ConnectionError:
                return False
            if not part:
                return False
            said += part
        return said == expected

    def end(self) -> int:
        """End it now and wait for it, which takes no time; its exit status."""
        self.channel.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except (ProcessLookupError, ChildProcessError):
            return 0


class WarmTrainer:
    """Keeps one `command wait` ready while `run()` runs, and hands jobs to it."""

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
        self._waiting: _Waiting | None = None
        #: Set when the one that waited was handed out.
        self._taken = asyncio.Event()

    def __repr__(self) -> str:
        waiting = self._waiting
        state = "none" if waiting is None else f"{waiting.pid}, {'ready' if waiting.is_ready else 'not ready'}"
        return f"<WarmTrainer {state}>"

    @property
    def is_ready(self) -> bool:
        """Whether a job could be handed over now."""
        return self._waiting is not None and self._waiting.is_ready

    @property
    def pid(self) -> int | None:
        """The process that waits, or will."""
        return None if self._waiting is None else self._waiting.pid

    async def run(self) -> None:
        """Keep one ready until cancelled."""
        deaths, pause_s = 0, self._first_pause_s
        try:
            while deaths < MAX_DEATHS:
                await asyncio.sleep(pause_s)
                deaths = 0 if await self._keep_one() else deaths + 1
                pause_s = self._pause_s
            log.warning("no trainer is kept ready from here on: it died %d times; trainings start cold", deaths)
        finally:
            if self._waiting is not None:
                self._waiting.end()
                self._waiting = None

    async def take(self, order: Order) -> int | None:
        """Hand a job to the one that waits; its pid, or None if the job is to be started cold."""
        waiting = self._waiting
        if waiting is None or not waiting.is_ready:
            return None
        # From here on it is nobody's but the job's: not handed out twice, and not ended when the bot is.
        self._waiting = None
        self._taken.set()
        try:
            async with asyncio.timeout(self._answer_s):
                await asyncio.get_running_loop().sock_sendall(waiting.channel, order.to_line())
                if await waiting.hears(TAKEN):
                    return waiting.pid
        except (TimeoutError, ConnectionError):
            pass
        finally:
            waiting.channel.close()
        log.warning("the trainer that was ready took no order (status %d): starting cold", waiting.end())
        return None

    async def _keep_one(self) -> bool:
        """Start one and stay until it was handed out (True) or died (False)."""
        self._taken.clear()
        try:
            waiting = self._waiting = self._start()
        except LaunchFailed as error:
            log.warning("no trainer can be kept ready: %s", error)
            return False
        waiting.is_ready = await waiting.hears(READY)
        # Nobody reads its channel meanwhile, for its next word is the answer to an order.
        while waiting.is_ready and identify(waiting.pid) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._taken.wait()
                    return True
        if self._taken.is_set():
            return True
        self._waiting = None
        log.warning("the trainer that was to be ready died (status %d)", waiting.end())
        return False

    def _start(self) -> _Waiting:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            actions = [
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ]
            try:
                return _Waiting(spawn(self._argv, self._env, actions), ours)
            except LaunchFailed:
                ours.close()
                raise
