"""A short question to the trainer: one process, its answer on its last line, and nothing left of it afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_LONGEST_COMPLAINT = 300


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a process said."""

    status: int
    #: The last line of its standard output.
    line: bytes
    #: Its standard error, whole.
    complaint: str

    @property
    def last_complaint(self) -> str:
        """The last line of its standard error, for a sentence."""
        return self.complaint.rpartition("\n")[2][:_LONGEST_COMPLAINT] or "no word"


async def ask_briefly(argv: Sequence[str], env: Mapping[str, str], *, timeout_s: float) -> Answer:
    """Run it to its end; its whole process group is gone when this returns or raises.

    Raises:
        TimeoutError: it takes longer.
        OSError: it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            said, complaint = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return Answer(
        status=process.returncode,
        line=said.rstrip().rpartition(b"\n")[2],
        complaint=complaint.decode(errors="replace").strip(),
    )
