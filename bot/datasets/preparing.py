"""Running `trainer prepare` on untrusted files, and `trainer caption`: own sessions, limits on time and memory."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bot.config import CaptionSettings, PrepareSettings
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
    edits: Path | None = None,
    earlier: Path | None = None,
) -> None:
    """`command prepare SOURCE --out OUT [--edits FILE] [--earlier DATASET_DIR] --limit …`; returns if it ended well.

    Raises:
        DatasetRefused: it refused, in its own words (the last line that it wrote to stderr).
        PrepareFailed: it took too long, or died.
    """
    argv = [*command, "prepare", str(source), "--out", str(out)]
    argv += [] if edits is None else ["--edits", str(edits)]
    argv += [] if earlier is None else ["--earlier", str(earlier)]
    # Last: what strangers upload is never read as Arrow or Parquet, whatever the settings say.
    for name, value in {**settings.limits, "allow_arrow": False}.items():
        argv += ["--limit", f"{name}={str(value).lower()}"]
    status = await _run(argv, log_file, env, timeout_s=settings.timeout_s, memory_bytes=settings.memory_bytes)
    if status != 0:
        memory = f"out of memory at {settings.memory_mib} MiB, or "
        raise _failure(status, title, log_file, timeout_s=settings.timeout_s, memory=memory)


async def run_captions(
    dataset: Path,
    edits: Path,
    *,
    title: str,
    log_file: Path,
    command: Sequence[str],
    env: Mapping[str, str],
    settings: CaptionSettings,
) -> None:
    """`command caption DATASET_DIR --model SOURCE --edits FILE`: captions by a model, written into the edits.

    Raises:
        DatasetRefused: it refused, in its own words.
        PrepareFailed: it took too long, or died.
    """
    argv = [*command, "caption", str(dataset), "--model", settings.model, "--edits", str(edits)]
    # No limit on memory: it opens pictures that we decoded ourselves, and a model takes what it takes.
    status = await _run(argv, log_file, env, timeout_s=settings.timeout_s)
    if status != 0:
        raise _failure(status, title, log_file, timeout_s=settings.timeout_s)


def _failure(status: int | None, title: str, log_file: Path, *, timeout_s: float, memory: str = "") -> DatasetRefused:
    """What to raise for a process that did not end well."""
    if status == EXIT_REFUSED:
        return DatasetRefused(_last_line(log_file) or f"{title} was refused without a reason.")
    log.warning("examining %s ended with status %s; see %s", title, status, log_file)
    if status is None:
        return PrepareFailed(name=title, why=f"it took longer than {timeout_s:g} s.")
    why = f"the process was ended by signal {-status}" if status < 0 else f"the process failed with status {status}"
    return PrepareFailed(name=title, why=f"{why} ({memory}a bug; see {log_file.name}).")


async def _run(
    argv: Sequence[str], log_file: Path, env: Mapping[str, str], *, timeout_s: float, memory_bytes: int | None = None
) -> int | None:
    """The exit status, None if the time ran out; no process of the group is left either way."""
    # A file and no pipe: what an untrusted archive makes a library print need not fit into the bot's memory.
    descriptor = _new_log(log_file)
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
        if memory_bytes is not None:
            _limit_memory(process.pid, memory_bytes)
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        _kill_group(process.pid)
        await process.wait()


def _new_log(log_file: Path) -> int:
    """A descriptor of a new file: a process that outlived a killed bot goes on writing into the one before."""
    log_file.unlink(missing_ok=True)
    return os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


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
