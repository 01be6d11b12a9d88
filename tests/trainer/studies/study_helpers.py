"""Studies with a trainer that trains nothing: what their tests share."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.trainer.dataset.prepared_folders import drawn, write_dataset
from tests.trainer.fork_server import TRAINER, ForkServer
from tests.trainer.studies.fake_study import TRAINER_VARIABLE
from trainer.exchange.job_dir import write_spec
from trainer.exchange.process import read_process_file
from trainer.protocol.events import EpochEnded, Event, parse_event
from trainer.protocol.report import Split
from trainer.protocol.spec import Spec, make_spec

ROOT = Path(__file__).parents[3]
E = TypeVar("E", bound=Event)
_TRAINER, _STUDY = "tests.trainer.studies.fake_trainer:main", "tests.trainer.studies.fake_study:main"
#: The best of these is 3e-4, and 2.9e-4 is next to it.
RATES = "training.learning_rate=1e-4,2.9e-4,3e-4,1e-3"


@functools.cache
def _server() -> ForkServer:
    server = ForkServer(_TRAINER, imports=[_TRAINER, _STUDY])
    atexit.register(server.__exit__)
    return server


def fake_trainer() -> tuple[str, ...]:
    """Return the command of the fake trainer; each is a fork of one process, without a quarter second of imports."""
    return _server().command


def real_trainer() -> tuple[str, ...]:
    """Return the command `python -m trainer`, likewise, for what needs no torch."""
    return ForkServer(TRAINER, socket=_server().socket).command


def make_study(folder: Path, behavior: dict[str, Any] | None = None, **settings: Any) -> Spec:
    """Make a job folder on a dataset of seven images, one of them for the test."""
    images = [*(drawn(seed) for seed in range(1, 6)), drawn(6, Split.VALIDATION), drawn(9, Split.TEST)]
    dataset = write_dataset(folder / "dataset", images)
    spec = make_spec({"dataset": str(dataset), "training": {"epochs": 8}, **settings})
    write_spec(folder / "job", spec)
    (folder / "job" / "behavior.json").write_text(json.dumps(behavior or {}), encoding="utf-8")
    return spec


def start_study(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line as a process whose children are fake trainers."""
    return subprocess.Popen(
        [*ForkServer(_STUDY, socket=_server().socket).command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", TRAINER_VARIABLE: json.dumps(fake_trainer())},
    )


def all_events(job_dir: Path) -> list[Event]:
    """Return all complete events of a job."""
    path = job_dir / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [parse_event(line) for line in lines]


def events_of(job_dir: Path, kind: type[E]) -> list[E]:
    """Return the events of one kind."""
    return [event for event in all_events(job_dir) if isinstance(event, kind)]


def epochs_of(job_dir: Path) -> list[int]:
    """Return the epochs that have ended, in the order of their events."""
    return [event.epoch for event in events_of(job_dir, EpochEnded)]


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until `condition` holds; fail after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def is_alive(job_dir: Path) -> bool:
    """True if a trainer runs in the folder."""
    holder = read_process_file(job_dir)
    return holder is not None and holder.is_alive()
