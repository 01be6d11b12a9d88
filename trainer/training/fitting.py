"""What this machine can do with a job: the precision, and how many pictures fit into memory at once.

Both are found once, by real steps, and kept in the job folder (`fit.json`): a resumed run must not find otherwise.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.device import is_out_of_memory, peak_memory_bytes
from trainer.errors import OutOfMemoryError
from trainer.protocol.settings import Precision, Training

FIT_FILE = "fit.json"
#: Below so many weights bf16 never pays on a CPU (0.63 of fp32 on the tiny base, 1.26 at 90 million): no trial.
MIN_TRIAL_WEIGHTS = 20_000_000
#: Share of the memory that is free before the trial which may be used: validation and samples need some too.
MEMORY_SHARE = 0.8
#: As many as before there was a trial; more was not seen to be faster on a CPU, nor tried at length.
MAX_CPU_MICRO_BATCH = 4
#: Steps each way, to choose the precision.
_TRIAL_STEPS = 2


class Fit(BaseModel):
    """What was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    micro_batch_size: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One forward and backward pass with nothing learnt from it: (pictures, in bf16) -> None."""

    run: Callable[[int, bool], None]
    device: torch.device


def read_fit(job_dir: Path) -> Fit | None:
    """What an earlier run of the job found; None if there was none."""
    try:
        return Fit.model_validate_json((job_dir / FIT_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def keep_fit(job_dir: Path, fit: Fit) -> Fit:
    """Write it by rename."""
    part = job_dir / f"{FIT_FILE}.part"
    part.write_text(fit.model_dump_json() + "\n", encoding="utf-8")
    part.replace(job_dir / FIT_FILE)
    return fit


def find_precision(wanted: Precision, weights: int, trial: Trial) -> Precision:
    """`auto` on a CPU: bf16 where a trial step is faster in it than in fp32."""
    if wanted is not Precision.AUTO:
        return wanted
    if weights < MIN_TRIAL_WEIGHTS:
        return Precision.FP32
    return Precision.BF16 if _is_faster_in_bf16(trial) else Precision.FP32


def remembered(folder: Path, task: Sequence[object], find: Callable[[], Precision]) -> Precision:
    """What `find` says, kept in `folder` for the next job that trains the same on this machine."""
    machine = (platform.processor(), torch.get_num_threads(), torch.__version__)
    key = hashlib.sha256(repr((machine, *task)).encode()).hexdigest()[:32]
    path = folder / f"precision-{key}.txt"
    try:
        return Precision(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        found = find()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(found.value, encoding="ascii")
    part.replace(path)
    return found


def find_micro_batch(training: Training, weights: int, largest: int, trial: Trial) -> int:
    """The most pictures, up to the batch, that go through the model at once: the setting, or what memory has room for.

    `largest` is how many pictures the fullest size has in an epoch: more cannot come together.

    Raises:
        OutOfMemoryError: not even one picture fits.
    """
    if training.micro_batch_size is not None:
        return min(training.micro_batch_size, training.batch_size)
    most = max(1, min(training.batch_size, largest))
    if trial.device.type == "cuda":
        return _by_trying(most, trial)
    most = min(most, MAX_CPU_MICRO_BATCH)
    return most if most == 1 or weights < MIN_TRIAL_WEIGHTS else _by_measuring(most, trial)


def _by_trying(most: int, trial: Trial) -> int:
    """On a GPU: halve until a step fits, with room to spare."""
    size = most
    while True:
        try:
            trial.run(size, False)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            total = torch.cuda.get_device_properties(trial.device).total_memory
            if size == 1 or torch.cuda.max_memory_reserved(trial.device) < 0.95 * total:
                return size
        if size == 1:
            raise OutOfMemoryError(
                "Not even one picture fits into the device's memory.",
                "Take a smaller training.resolution, or training.gradient_checkpointing.",
            )
        size = (size + 1) // 2
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trial.device)


def _by_measuring(most: int, trial: Trial) -> int:
    """On a CPU, where too much is swapped or killed, not refused: what one picture takes, and how many have room."""
    free = psutil.virtual_memory().available
    # Against what is in use, not the peak so far: where encoding took more, this takes a picture for larger than it is.
    before = psutil.Process().memory_info().rss
    trial.run(1, False)
    one = max(1, peak_memory_bytes(trial.device) - before)
    return max(1, min(most, int(MEMORY_SHARE * free / one)))


def _is_faster_in_bf16(trial: Trial) -> bool:
    """By the fastest of a few steps of one picture each way, in turns, after one each to warm up.

    In CPU-seconds: by the clock, whatever else ran on the machine during one step or the other would decide.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + _TRIAL_STEPS):
        for in_bf16 in (True, False):
            began = time.process_time()
            trial.run(1, in_bf16)
            seconds[in_bf16].append(time.process_time() - began)
    return min(seconds[True][1:]) < min(seconds[False][1:])
