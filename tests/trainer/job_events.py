"""What a trainer wrote into a job folder, for tests."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.protocol.events import EpochEnded, parse_event


def events_of(job_dir: Path, kind: type[Any] | UnionType = object) -> list[Any]:
    """Return the complete events of a type; none before the trainer starts."""
    path = job_dir / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for event in map(parse_event, lines) if isinstance(event, kind)]


def curve_of(job_dir: Path) -> list[list[float]]:
    """Return the training and validation loss of each epoch."""
    return [[event.train_loss, event.validation.loss] for event in events_of(job_dir, EpochEnded)]


def metadata_of(path: Path) -> dict[str, str]:
    """Return the header of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """Assert that two jobs have the same checkpoints, with weights that are equal to the bit."""
    names = {path.name for path in (one / "checkpoints").iterdir()}
    assert names == {path.name for path in (other / "checkpoints").iterdir()}
    for name in names:
        assert_same_tensors(*(job / "checkpoints" / name / "weights.safetensors" for job in (one, other)))


def assert_same_tensors(one: Path, other: Path) -> None:
    """Assert that two safetensors files are equal to the bit."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
