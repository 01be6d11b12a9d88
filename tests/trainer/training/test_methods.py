"""Every training method has a pinned loss curve; those whose checkpoints differ in state resume bit for bit."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.golden import is_rewriting
from tests.trainer.conftest import MakeJob
from tests.trainer.fork_server import ForkServer, Hook
from tests.trainer.job_events import assert_same_checkpoints, curve_of, events_of
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, EpochEnded, Finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PINNED = Path(__file__).parent / "pinned-curves.json"
#: The settings of each job.
JOBS: dict[str, dict[str, Any]] = {
    "lora": {},
    "pissa": {"method": {"init": "pissa"}},
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
    "low_memory": {
        "method": {"kind": "full", "rank": 16, "alpha": None, "dropout": 0.0, "targets": None},
        "training": {
            "learning_rate": 1e-3,
            "fused_backward": True,
            "bf16_weights": True,
            "gradient_checkpointing": True,
            "repeats": 1,
        },
    },
    "quantized": {"base_settings": {"quantization": "int8"}, "training": {"repeats": 1}},
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
        "training": {"optimizer": "schedule_free_adamw", "schedule": "constant", "epochs": 3},
        "stages": [
            {"epochs": 1, "train": ["up_blocks"]},
            {
                "epochs": 2,
                "train": ["up_blocks"],
                "freeze": ["up_blocks.0"],
                "unfreeze": [{"blocks": "mid_block", "from_epoch": 2}, {"blocks": "text_encoder", "from_epoch": 2}],
                "layer_decay": 0.8,
                "resolution": 96,
            },
        ],
    },
    "prodigy": {
        "training": {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_arguments": {"d0": 1e-3}},
        "objective": {"snr_gamma": 5.0},
    },
    "adafactor": {"training": {"optimizer": "adafactor"}, "objective": {"loss": "huber", "pyramid_noise": 0.3}},
}
#: Their checkpoints hold different kinds of state: LoRA with dropout and a text encoder, one with what it started from,
#: full weights with EMA, stages
#: with a schedule-free optimizer, and an optimizer that estimates its rate; weights in bf16 that are rounded at random,
#: and an adapter of a base that is quantized at each start.
RESUMED = ("lora", "pissa", "full", "low_memory", "quantized", "staged", "prodigy")


@pytest.mark.parametrize("name", JOBS)
def test_a_method_has_its_pinned_curve_and_resumes_bit_for_bit(
    name: str, make_job: MakeJob, fork_server: ForkServer
) -> None:
    whole = make(make_job, name, "whole")
    assert fork_server.run("run", str(whole)).returncode == EXIT_FINISHED, events_of(whole)[-1]

    assert curve_of(whole) == [pytest.approx(point, rel=0.02) for point in pinned_curve(name, curve_of(whole))]
    assert events_of(whole, Finished)[0].best_ratio < 1
    if name not in RESUMED:
        return

    steps = events_of(whole, EpochEnded)[-1].step
    stopped_at, killed_at = sorted(random.Random(name).sample(range(1, steps), 2))
    resumed = make(make_job, name, "resumed")
    # A stop saves a checkpoint of the current step; a kill falls back to the last one.
    if name != "pissa":
        assert run_until(fork_server, resumed, signal.SIGTERM, stopped_at) == EXIT_STOPPED
    if name in {"lora", "pissa"}:
        assert run_until(fork_server, resumed, signal.SIGKILL, killed_at) == -signal.SIGKILL
    assert fork_server.run("run", str(resumed)).returncode == EXIT_FINISHED, events_of(resumed)[-1]
    assert curve_of(resumed) == curve_of(whole), (stopped_at, killed_at)
    assert_same_checkpoints(resumed, whole)


def pinned_curve(name: str, found: list[list[float]]) -> list[list[float]]:
    """The curve of a job in the file, which `pytest --rewrite-golden` rewrites."""
    curves: dict[str, list[list[float]]] = json.loads(PINNED.read_text(encoding="utf-8"))
    if is_rewriting():
        curves[name] = found
        PINNED.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    return curves[name]


def make(make_job: MakeJob, name: str, folder: str) -> Path:
    changes = {group: dict(v) if isinstance(v, dict) else v for group, v in JOBS[name].items()}
    changes["training"] = {"epochs": 2, **changes.get("training", {})}
    # The files of each method are loaded back in tests/trainer/models/test_export.py.
    changes["validation"] = {"test": False}
    changes["samples"] = {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 4}
    return make_job(folder, **changes)


def run_until(server: ForkServer, job_dir: Path, number: signal.Signals, step: int) -> int:
    """Run a job that gets a signal before its `step`-th optimizer step; return the exit status."""
    hook: Hook = ("tests.trainer.fork_server:signal_before_step", [int(number), step])
    return server.run("run", str(job_dir), hook=hook).returncode
