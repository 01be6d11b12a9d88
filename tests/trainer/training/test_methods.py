"""Every method: a pinned loss curve, files that load back, and a run that is killed and stopped at random steps ends
with the same weights, to the bit, as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conftest import MakeJob
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, EpochEnded, Exported, Finished, parse_event
from trainer.training import recipe
from trainer.training.run import run

pytestmark = pytest.mark.timeout(600)

PINNED = Path(__file__).parent / "pinned-curves.json"
#: What a job of each name is: what is most likely to be forgotten by a checkpoint.
JOBS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"method": {"kind": "dora"}},
    "loha": {"method": {"kind": "loha"}, "training": {"learning_rate": 1e-2}},
    "lokr": {"method": {"kind": "lokr"}, "training": {"learning_rate": 1e-2}},
    "ia3": {
        "method": {"kind": "ia3", "rank": 16, "alpha": None, "dropout": 0.0, "targets": "attention"},
        "training": {"learning_rate": 1e-2},
    },
    "oft": {"method": {"kind": "oft", "rank": 16, "alpha": None, "block_size": 8}},
    "full": {
        "method": {"kind": "full", "rank": 16, "alpha": None, "dropout": 0.0, "targets": None},
        "training": {"learning_rate": 1e-3, "ema_decay": 0.9},
    },
    "textual_inversion": {
        "method": {
            "kind": "textual_inversion",
            "rank": 16,
            "alpha": None,
            "dropout": 0.0,
            "targets": None,
            "text_encoder": False,
            "vectors": 2,
        },
        "training": {"trigger": "zork", "learning_rate": 1e-2},
    },
    "staged": {
        "training": {"optimizer": "schedule_free_adamw", "schedule": "constant", "epochs": 4},
        "stages": [
            {"epochs": 1, "train": ["up_blocks"]},
            {
                "epochs": 3,
                "train": ["up_blocks"],
                "freeze": ["up_blocks.0"],
                "unfreeze": [{"blocks": "mid_block", "from_epoch": 2}, {"blocks": "text_encoder", "from_epoch": 3}],
                "layer_decay": 0.8,
                "resolution": 128,
            },
        ],
    },
    "prodigy": {
        "training": {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_arguments": {"d0": 1e-3}},
        "objective": {"snr_gamma": 5.0},
    },
    "adafactor": {"training": {"optimizer": "adafactor"}, "objective": {"loss": "huber", "pyramid_noise": 0.3}},
}


@pytest.fixture
def make(make_job: MakeJob) -> Callable[[str, str], Path]:
    def make(name: str, folder: str) -> Path:
        changes = {group: dict(v) if isinstance(v, dict) else v for group, v in JOBS[name].items()}
        changes["samples"] = {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 3}
        return make_job(folder, **changes)

    return make


@pytest.mark.parametrize("name", JOBS)
def test_a_method_learns_as_it_did_is_loaded_back_and_resumes_to_the_bit(
    name: str, make: Callable[[str, str], Path]
) -> None:
    whole = make(name, f"{name}-whole")
    assert run(whole) == EXIT_FINISHED, said(whole)[-1]
    broken = make(name, f"{name}-broken")
    steps = said(whole, EpochEnded)[-1].step
    rng = random.Random(os.getpid())
    # A stop in the middle leaves a checkpoint of the very step; a kill goes back to the last one.
    stopped_at = rng.randrange(1, steps)
    assert run_until(broken, signal.SIGTERM, stopped_at) == EXIT_STOPPED
    killed_at = rng.randrange(stopped_at + 1, steps) if stopped_at + 1 < steps else None
    if killed_at is not None:
        assert run_until(broken, signal.SIGKILL, killed_at) == -signal.SIGKILL
    assert run_until(broken, None, 0) == EXIT_FINISHED, said(broken)[-1]

    assert curve(broken) == curve(whole), (stopped_at, killed_at)
    assert_same_weights(broken, whole)
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))[name]
    assert curve(whole) == [pytest.approx(point, rel=0.02) for point in pinned]
    # Each file was loaded back and compared before it was told.
    assert said(whole, Exported)
    assert said(whole, Finished)[0].best_ratio < 1


def run_until(job_dir: Path, number: signal.Signals | None, step: int) -> int:
    """Run the job in a process of its own that gets a signal before its `step`-th optimizer step; its exit status."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            real: Any = vars(recipe)["take_step"]

            def take_step(session: Any, views: Any, place: int) -> torch.Tensor:
                if number is not None and place == step:
                    os.kill(os.getpid(), number)
                result: torch.Tensor = real(session, views, place)
                return result

            vars(recipe)["take_step"] = take_step
            status = run(job_dir)
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(code)


def said(job_dir: Path, kind: type[Any] = object) -> list[Any]:
    lines = (job_dir / "events.jsonl").read_bytes().splitlines()
    return [event for event in map(parse_event, lines) if isinstance(event, kind)]


def curve(job_dir: Path) -> list[list[float]]:
    return [[event.train_loss, event.validation.loss] for event in said(job_dir, EpochEnded)]


def assert_same_weights(one: Path, other: Path) -> None:
    names = {path.name for path in (one / "checkpoints").iterdir()}
    assert names == {path.name for path in (other / "checkpoints").iterdir()}
    for name in names:
        ours, theirs = (load_file(job / "checkpoints" / name / "weights.safetensors") for job in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
