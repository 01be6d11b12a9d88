"""Asking the trainer which GPUs this machine has: one short process, its answer on its last line."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from trainer.protocol.devices import Devices


async def ask_devices(command: Sequence[str], env: Mapping[str, str], *, timeout_s: float = 60.0) -> Devices:
    """What `command devices` answers; no answer is an answer with a `problem`, never an error.

    Torch is loaded in a process of its own: it costs seconds and memory that the bot never needs.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            "devices",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        return Devices(problem=f"The trainer could not be asked for GPUs ({error.strerror or error}).")
    try:
        async with asyncio.timeout(timeout_s):
            said, complaint = await process.communicate()
    except TimeoutError:
        return Devices(problem=f"The trainer took longer than {timeout_s:.0f} s to find the GPUs: a driver may hang.")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:300]
        return Devices(
            problem=f"The trainer could not look for GPUs (status {process.returncode}: {last or 'no word'})."
        )
    try:
        return Devices.model_validate_json(said.rstrip().rpartition(b"\n")[2])
    except ValidationError:
        return Devices(problem="The trainer's answer about GPUs is not understood; are both of the same version?")
