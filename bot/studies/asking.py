"""Asking the trainer what a study needs next: one short process, its answer on its last line."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from bot.errors import DarkroomError
from trainer.protocol.events import EXIT_REFUSED
from trainer.protocol.study import StudyStep

#: It reads events and draws a chart: seconds; a machine under load takes longer.
TIMEOUT_S = 300.0


class StudyRefused(DarkroomError):
    """The trainer says that this study cannot be; the sentence is its own."""


class StudyFailed(DarkroomError):
    """The trainer could not say what comes next: it died, or took too long."""


async def ask_study(
    folder: Path, *, command: Sequence[str], env: Mapping[str, str], only_check: bool = False
) -> StudyStep:
    """`command study FOLDER`: what must run now, and how the study stands.

    Raises:
        StudyRefused: it cannot be run.
        StudyFailed: there was no answer.
    """
    argv = [*command, "study", str(folder), *(["--check"] if only_check else [])]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, complaint = await process.communicate()
    except TimeoutError:
        raise StudyFailed(f"The trainer took longer than {TIMEOUT_S:.0f} s to say what comes next.") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    words = complaint.decode(errors="replace").strip()
    if process.returncode == EXIT_REFUSED:
        raise StudyRefused(words or "The study was refused without a reason.")
    last = words.rpartition("\n")[2][:300]
    if process.returncode != 0:
        raise StudyFailed(f"the trainer ended with status {process.returncode} ({last or 'no word'}).")
    try:
        return StudyStep.model_validate_json(said.rstrip().rpartition(b"\n")[2])
    except ValidationError as error:
        raise StudyFailed("the trainer's answer is not understood; are both of the same version?") from error
