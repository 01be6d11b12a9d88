"""Asking the trainer which GPUs this machine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from bot.runners.briefly import ask_briefly
from trainer.protocol.devices import Devices


async def ask_devices(command: Sequence[str], env: Mapping[str, str], *, timeout_s: float = 60.0) -> Devices:
    """What `command devices` answers; no answer is an answer with a `problem`, never an error.

    Torch is loaded in a process of its own: it costs seconds and memory that the bot never needs.
    """
    try:
        answer = await ask_briefly([*command, "devices"], env, timeout_s=timeout_s)
    except TimeoutError:
        return Devices(problem=f"The trainer took longer than {timeout_s:.0f} s to find the GPUs: a driver may hang.")
    except OSError as error:
        return Devices(problem=f"The trainer could not be asked for GPUs ({error.strerror or error}).")
    if answer.status != 0:
        why = f"status {answer.status}: {answer.last_complaint}"
        return Devices(problem=f"The trainer could not look for GPUs ({why}).")
    try:
        return Devices.model_validate_json(answer.line)
    except ValidationError:
        return Devices(problem="The trainer's answer about GPUs is not understood; are both of the same version?")
