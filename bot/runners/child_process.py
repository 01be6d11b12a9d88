"""Child processes: run one to its end (time-out, own process group, captured output), or start one that outlives us."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.errors import LaunchFailed
from bot.runners.confinement import confined
from trainer.protocol.text import LANGUAGE_VARIABLE, current_language

log = logging.getLogger(__name__)

#: Between SIGTERM and SIGKILL when the time is up.
TERM_GRACE_S = 2.0
_MAX_ERROR_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class CompletedChild:
    """A child process that has ended."""

    #: Exit status; the negative number of the signal that ended it.
    status: int
    #: Standard output and error; empty if they went to a log file.
    stdout: bytes
    stderr: bytes

    @property
    def error_text(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace").strip()

    @property
    def last_line(self) -> bytes:
        """The last line of standard output."""
        return self.stdout.rstrip().rpartition(b"\n")[2]

    @property
    def last_error_line(self) -> str:
        """The last line of standard error, shortened; empty if there is none."""
        return self.error_text.rpartition("\n")[2][:_MAX_ERROR_CHARS]


async def run_and_capture(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    file_bytes: int | None = None,
    log_path: Path | None = None,
    is_confined: bool = False,
) -> CompletedChild:
    """Run a command in a process group of its own; no process of the group is left when this returns or raises.

    Args:
        argv: The command and its arguments.
        env: The whole environment of the child, but for the language: the child speaks the caller's.
        timeout_s: When to end it: SIGTERM to the group, then SIGKILL after `TERM_GRACE_S`.
        memory_bytes: Limit on its private memory (Linux).
        file_bytes: Limit on each file that it writes (Linux).
        log_path: A new file for standard output and error, in place of memory. Use it for untrusted input, whose
            error messages may be of any size.
        is_confined: Take the network and the view of other processes away from it. Use it for untrusted input.

    Raises:
        TimeoutError: It took longer than `timeout_s`.
        OSError: It cannot be started.
    """
    output = asyncio.subprocess.PIPE if log_path is None else _new_file(log_path)
    command = confined(argv) if is_confined else argv
    null = asyncio.subprocess.DEVNULL
    environment = {**env, LANGUAGE_VARIABLE: current_language()}
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=null, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    finally:
        if log_path is not None:
            os.close(output)
    try:
        # Not by `preexec_fn`, which can deadlock a program that has threads. No input is read this early.
        # RLIMIT_DATA counts private memory. RLIMIT_AS would also count address space that libraries never touch.
        _limit(process.pid, resource.RLIMIT_DATA, memory_bytes)
        _limit(process.pid, resource.RLIMIT_FSIZE, file_bytes)
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE_S):
                await process.wait()
        raise
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return CompletedChild(status=process.returncode, stdout=stdout or b"", stderr=stderr or b"")


def _new_file(path: Path) -> int:
    """Open a new file: a child that outlived a killed bot keeps writing to the old one."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def _limit(pid: int, kind: int, limit_bytes: int | None) -> None:
    if sys.platform != "linux" or limit_bytes is None:
        return
    try:
        resource.prlimit(pid, kind, (limit_bytes, limit_bytes))
    except ProcessLookupError:
        log.info("process %d ended before it could be limited", pid)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the group that `pid` leads or led; its helpers keep the group's number taken."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def spawn_detached(argv: Sequence[str], env: Mapping[str, str], file_actions: Sequence[tuple[Any, ...]]) -> int:
    """Start a process that outlives the bot, in a new session; return its pid.

    It uses `posix_spawn`: a `Popen` object (or asyncio's transport) that is dropped while its process runs warns, or
    kills the process.

    Raises:
        LaunchFailed: It cannot be started.
    """
    try:
        return os.posix_spawnp(argv[0], tuple(argv), env, file_actions=file_actions, setsid=True)
    except OSError as error:
        raise LaunchFailed(command=" ".join(argv), why=error.strerror or str(error)) from error
