"""Running `trainer prepare` on untrusted files: in its own session, with limits on time and memory."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bot.config import PrepareSettings
from bot.errors import DatasetRefused, PrepareFailed
from trainer.protocol.events import EXIT_REFUSED

log = logging.getLogger(__name__)

_TAIL_BYTES = 4096
_LONGEST_REASON = 600


async def run_prepare(
    source: Path,
    out: Path,
    *,
    title: str,
    log_file: Path,
    command: Sequence[str],
    env: Mapping[str, str],
    settings: PrepareSettings,
) -> None:
    """`command prepare SOURCE --out OUT`; returns if it ended well.

    Raises:
        DatasetRefused: it refused, in its own words (the last line that it wrote to stderr).
        PrepareFailed: it took too long, or died.
    """
    status = await _run((*command, "prepare", str(source), "--out", str(out)), log_file, env, settings)
    if status == 0:
        return
    if status == EXIT_REFUSED:
        raise DatasetRefused(_last_line(log_file) or f"{title} was refused without a reason.")
    log.warning("prepare of %s ended with status %s; see %s", source, status, log_file)
    if status is None:
        raise PrepareFailed(name=title, why=f"it took longer than {settings.timeout_s:g} s.")
    why = f"the process was ended by signal {-status}" if status < 0 else f"the process failed with status {status}"
    raise PrepareFailed(
        name=title, why=f"{why} (out of memory at {settings.memory_mib} MiB, or a bug; see {log_file.name})."
    )


async def _run(argv: Sequence[str], log_file: Path, env: Mapping[str, str], settings: PrepareSettings) -> int | None:
    """The exit status, None if the time ran out; no process of the group is left either way."""
    # A file and no pipe: what an untrusted archive makes a library print need not fit into the bot's memory.
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=env,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    try:
        # After the start and not by `preexec_fn`, which may hang a program with threads; no byte is decoded this early.
        _limit_memory(process.pid, settings.memory_bytes)
        async with asyncio.timeout(settings.timeout_s):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        _kill_group(process.pid)
        await process.wait()


def _limit_memory(pid: int, limit_bytes: int) -> None:
    if sys.platform != "linux":
        return
    try:
        # RLIMIT_DATA: private memory. RLIMIT_AS would also count the address space that libraries map and never touch.
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    except ProcessLookupError:
        log.info("process %d ended before its memory could be limited", pid)


def _kill_group(pid: int) -> None:
    """End what is left of the group that `pid` leads or led (helpers that it started keep the group's number taken)."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _last_line(log_file: Path) -> str:
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip()[:_LONGEST_REASON] for line in reversed(lines) if line.strip()), "")
