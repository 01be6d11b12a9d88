"""Asking the trainer what a study needs next: one short process, its answer on its last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from bot.errors import DarkroomError
from bot.runners.briefly import ask_briefly
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
    try:
        answer = await ask_briefly(argv, env, timeout_s=TIMEOUT_S)
    except TimeoutError:
        raise StudyFailed(f"The trainer took longer than {TIMEOUT_S:.0f} s to say what comes next.") from None
    except OSError as error:
        raise StudyFailed(f"The trainer could not be asked ({error.strerror or error}).") from error
    if answer.status == EXIT_REFUSED:
        raise StudyRefused(answer.complaint or "The study was refused without a reason.")
    if answer.status != 0:
        raise StudyFailed(f"the trainer ended with status {answer.status} ({answer.last_complaint}).")
    try:
        return StudyStep.model_validate_json(answer.line)
    except ValidationError as error:
        raise StudyFailed("the trainer's answer is not understood; are both of the same version?") from error
