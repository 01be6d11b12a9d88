"""The processes of a job, found by a mark in their environment: launchers, ranks, helpers, whoever their parent is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bot.runners.runner import Launch
from trainer.protocol.order import NEEDS_GPU_VARIABLE
from trainer.protocol.process import ProcessIdentity, identify

#: Folder and attempt of the job that a process works for.
JOB_VARIABLE, ATTEMPT_VARIABLE = "DARKROOM_JOB_DIR", "DARKROOM_ATTEMPT"


def environment(launch: Launch) -> Mapping[str, str]:
    """What a trainer's environment has beside ours: its mark, and the GPUs that it got."""
    gpus = ",".join(launch.devices)
    devices = {"CUDA_VISIBLE_DEVICES": gpus, NEEDS_GPU_VARIABLE: "1"} if gpus else {}
    return {JOB_VARIABLE: str(launch.job_dir.absolute()), ATTEMPT_VARIABLE: str(launch.attempt), **devices}


def find_marked(job_dir: Path) -> dict[ProcessIdentity, int]:
    """Living processes that were started for a job, and for which attempt; the oldest first.

    A warmed trainer had no job when it was started, and has no mark.
    """
    mark = f"{JOB_VARIABLE}={job_dir.absolute()}".encode()
    found: dict[ProcessIdentity, int] = {}
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        variables = _environment_of(pid)
        if mark not in variables or pid == os.getpid():
            continue
        if (identity := identify(pid)) is not None:
            found[identity] = _attempt(variables)
    return dict(sorted(found.items(), key=lambda item: item[0].start_time))


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # Gone by now, or somebody else's.
        return []


def _attempt(variables: list[bytes]) -> int:
    prefix = f"{ATTEMPT_VARIABLE}=".encode()
    return next((int(each.removeprefix(prefix)) for each in variables if each.startswith(prefix)), 0)
