"""The self-test finds what is wrong, and tells it from what this machine lacks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.protocol.devices import Outcome
from trainer.protocol.training_settings import Precision
from trainer.training import selftest
from trainer.training.selftest import Check, Measured, SelfTestRunner, Variant, checks_of_tiny

EXACT, BF16 = (each.variant for each in checks_of_tiny() if each.name in {"fp32", "bf16"})


def measured(*update: float) -> Measured:
    return Measured(step_s=0.5, peak_bytes=10**9, update=np.array(update, dtype=np.float32))


def runner_with(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> SelfTestRunner:
    """Return a runner in which the jobs of these bases answer so."""
    monkeypatch.setattr(SelfTestRunner, "_ask", lambda _self, variant: answers[variant.base])
    return SelfTestRunner()


@pytest.mark.parametrize(
    ("update", "outcome"),
    [
        ((3.0, 4.1), Outcome.PASSED),
        ((-3.0, -4.0), Outcome.FAILED),
        ((0.0, 0.0), Outcome.FAILED),
        ((3.0, float("nan")), Outcome.FAILED),
    ],
)
def test_an_update_must_be_that_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, update: tuple[float, float], outcome: Outcome
) -> None:
    runner = runner_with(monkeypatch, ours=measured(*update), theirs=measured(3.0, 4.0))
    check = Check(name="it", variant=Variant(base="ours"), reference=Variant(base="theirs"), limit=0.1)
    result = runner.run(check)
    assert result.outcome is outcome
    assert bool(result.note) == (outcome is Outcome.FAILED)


def test_what_this_machine_lacks_is_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_with(monkeypatch, ours=selftest.UnavailableError("does not fit into the memory"))
    result = runner.run(Check(name="it", variant=Variant(base="ours")))
    assert (result.outcome, result.note) == (Outcome.UNAVAILABLE, "does not fit into the memory")


@pytest.mark.slow
def test_jobs_are_compared_and_a_process_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with SelfTestRunner() as runner:
        right = runner.run(Check(name="bf16", variant=BF16, reference=EXACT, limit=0.2))
        assert right.outcome is Outcome.PASSED
        assert right.distance
        assert right.peak_bytes
        assert right.peak_bytes > 2**28
        # The limit is one: another rate is another update.
        slower = replace(EXACT, settings={"training": {**EXACT.settings["training"], "learning_rate": 0.25}})
        wrong = runner.run(Check(name="slower", variant=slower, reference=EXACT, limit=0.2))
        assert wrong.outcome is Outcome.FAILED
        assert wrong.distance == pytest.approx(0.5, abs=0.05)
        monkeypatch.setattr(selftest, "_answer", die)
        died = runner.run(Check(name="dies", variant=replace(EXACT, base="other")))
        assert (died.outcome, died.note) == (Outcome.FAILED, "its process died (exit status 3)")


def die(*_: object) -> None:
    os._exit(3)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check(name="fp32", variant=EXACT), Check(name="tf32", variant=EXACT, unavailable="needs a GPU")]
    monkeypatch.setattr(selftest, "checks_of_tiny", lambda: checks)
    assert main(["selftest", "--json", str(tmp_path / "found.json")]) == 0
    device, *lines = capsys.readouterr().out.splitlines()
    assert "CPU" in device
    assert [line.split()[:2] for line in lines] == [["fp32", "passed"], ["tf32", "unavailable"]]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["outcome"] for each in found["results"]] == ["passed", "unavailable"]
    assert found["results"][0]["step_s"] > 0


def test_every_precision_and_method_is_checked() -> None:
    names = " ".join(check.name for check in checks_of_tiny())
    assert all(name in names for name in (*Precision, "dora", "full", "textual_inversion") if name != Precision.AUTO)
