"""A trainer that is killed at every failpoint and started again each time ends like one that was not."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import assert_same_tensors, curve_of, events_of
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import EXIT_FINISHED, TerminalEvent
from trainer.protocol.presets import spec_from_preset
from trainer.trainer_failpoints import FAILPOINT_VARIABLE, POINTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

#: The smallest run with two epochs, a test and an export.
SHORT: dict[str, Any] = {
    "training": {"epochs": 2, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 4, "repeats": 1},
    "method": {"rank": 2, "alpha": 2.0},
    "validation": {"timesteps": 1, "draws": 1},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 1},
    "exports": {"every_epochs": None},
}
ONCE = ("base_validated", "stage_began", "sampled", "epoch_ended", "tested", "finished")
#: Each start goes further than the one before: a checkpoint of the first epoch is half written, then written, then one
#: of the second is half written.
KILLED_AT = (
    "lock_held",
    "event_half_written",
    "event_half_written:6",
    "event_written",
    "checkpoint_half_written",
    "checkpoint_written",
    "checkpoint_half_written",
    "epoch_emitted",
    "export_written",
    "before_terminal_event",
    "after_terminal_event",
)
EXPORT = "output/diffusers/pytorch_lora_weights.safetensors"


def start(server: ForkServer, job_dir: Path, fail_at: str = "") -> int:
    return server.run("run", str(job_dir), log=job_dir / "trainer.log", env={FAILPOINT_VARIABLE: fail_at}).returncode


@pytest.fixture(scope="module")
def undisturbed(
    fork_server: ForkServer, dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    job_dir = tmp_path_factory.mktemp("undisturbed") / "job"
    write_spec(job_dir, spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=SHORT))
    assert start(fork_server, job_dir) == EXIT_FINISHED, (job_dir / "trainer.log").read_text(encoding="utf-8")
    return job_dir


def single_events(job_dir: Path) -> Counter[tuple[str, int]]:
    """Count the events that a job emits once, or once per epoch."""
    return Counter((event.type, getattr(event, "epoch", 0)) for event in events_of(job_dir) if event.type in ONCE)


def test_kills_at_all_failpoints_change_nothing(fork_server: ForkServer, undisturbed: Path, tmp_path: Path) -> None:
    """One job, started once for each point: a run per point would take eight times as long."""
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    (job_dir / "spec.json").write_bytes((undisturbed / "spec.json").read_bytes())

    assert {point.partition(":")[0] for point in KILLED_AT} == set(POINTS)
    for point in KILLED_AT:
        code = start(fork_server, job_dir, point)
        assert code == -signal.SIGKILL, (point, code, (job_dir / "trainer.log").read_text(encoding="utf-8"))
        # The bot does not start a job again that has emitted its terminal event.
        assert bool(events_of(job_dir, TerminalEvent)) == (point == POINTS[-1]), point

    assert single_events(job_dir) == single_events(undisturbed)
    assert len(events_of(job_dir, TerminalEvent)) == 1
    seqs = [event.seq for event in events_of(job_dir)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert curve_of(job_dir) == curve_of(undisturbed)
    assert_same_tensors(job_dir / EXPORT, undisturbed / EXPORT)
