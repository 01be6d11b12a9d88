"""Studies with a trainer that trains nothing: what their tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.trainer.dataset.drawn import drawn, write_dataset
from trainer.protocol.events import EpochEnded, Event, parse_event
from trainer.protocol.process import read_process_file
from trainer.protocol.report import Split
from trainer.protocol.spec import Spec, make_spec
from trainer.studies.children import Children, Places
from trainer.studies.state import Study

ROOT = Path(__file__).parents[3]
E = TypeVar("E", bound=Event)
FAKE_TRAINER = (sys.executable, str(Path(__file__).parent / "fake_trainer.py"))


def make_study(folder: Path, behaviour: dict[str, Any] | None = None, **settings: Any) -> Spec:
    """A job folder on a dataset of seven pictures, one of them for the test."""
    pictures = [*(drawn(seed) for seed in range(1, 6)), drawn(6, Split.VALIDATION), drawn(9, Split.TEST)]
    dataset = write_dataset(folder / "dataset", pictures)
    spec = make_spec({"dataset": str(dataset), "training": {"epochs": 8}, **settings})
    spec.write(folder / "job")
    (folder / "job" / "behaviour.json").write_text(json.dumps(behaviour or {}), encoding="utf-8")
    return spec


def fake_children(
    *,
    parallel: int = 2,
    devices: tuple[str, ...] = (),
    must_halt: Callable[[], bool] = lambda: False,
    told: list[tuple[str, Event]] | None = None,
) -> Callable[[Study], Children]:
    """Makes the children of a study; `told` collects what its listener hears."""
    heard = told if told is not None else []

    def make(study: Study) -> Children:
        return Children(
            places=Places(parallel=parallel, devices=devices),
            must_halt=must_halt,
            devices=study.state.devices,
            remember_device=lambda child, device: study.remember(devices={**study.state.devices, child: device}),
            listener=lambda child, event: heard.append((child, event)),
            command=FAKE_TRAINER,
        )

    return make


def start_study(*arguments: str) -> subprocess.Popen[str]:
    """The command line as a process of its own, with the fake trainer as its children."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "fake_study.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )


def all_events(job_dir: Path) -> list[Event]:
    path = job_dir / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [parse_event(line) for line in lines]


def events_of(job_dir: Path, kind: type[E]) -> list[E]:
    return [event for event in all_events(job_dir) if isinstance(event, kind)]


def epochs_of(job_dir: Path) -> list[int]:
    """Every epoch that was said to have ended."""
    return [event.epoch for event in events_of(job_dir, EpochEnded)]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def is_alive(job_dir: Path) -> bool:
    """Whether a trainer runs in the folder."""
    holder = read_process_file(job_dir)
    return holder is not None and holder.is_alive()
