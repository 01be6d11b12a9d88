"""The self-test finds what is wrong, and tells it from what this machine lacks."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.models.released_configs import RELEASED
from trainer.protocol.devices import Outcome, SelfTestResult
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED
from trainer.protocol.training_settings import Precision
from trainer.training import selftest
from trainer.training.selftest import Check, SelfTestRunner, checks_of_tiny
from trainer.training.selftest_job import Measured, UnavailableError, Variant, predict

EXACT, BF16 = (each.variant for each in checks_of_tiny() if each.name in {"fp32", "bf16"})


def measured(*update: float) -> Measured:
    return Measured(step_s=0.5, peak_bytes=10**9, free_bytes=2 * 10**9, update=np.array(update, dtype=np.float32))


def runner_with(monkeypatch: pytest.MonkeyPatch, predicted: int = 0, **answers: Any) -> SelfTestRunner:
    """Return a runner in which the jobs of these bases answer so."""

    def ask(_self: SelfTestRunner, work: object, variant: Variant) -> Any:
        answer = predicted if work is predict else answers[variant.base]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(SelfTestRunner, "_ask", ask)
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
    runner = runner_with(monkeypatch, ours=UnavailableError("does not fit into the memory"))
    result = runner.run(Check(name="it", variant=Variant(base="ours")))
    assert (result.outcome, result.note) == (Outcome.UNAVAILABLE, "does not fit into the memory")


@pytest.mark.parametrize(("predicted", "outcome"), [(900_000_000, Outcome.PASSED), (860_000_000, Outcome.FAILED)])
def test_a_peak_may_exceed_the_predicted_memory_by_15_percent(
    monkeypatch: pytest.MonkeyPatch, predicted: int, outcome: Outcome
) -> None:
    runner = runner_with(monkeypatch, predicted, model=measured(1.0))
    result = runner.run(Check(name="it", variant=Variant(base="model", is_large=True)))
    assert (result.outcome, result.predicted_bytes) == (outcome, predicted)
    assert bool(result.note) == (outcome is Outcome.FAILED)
    assert result.free_bytes == 2 * 10**9


def test_what_the_c_library_keeps_is_no_fault_of_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    for used, outcome in ((900_000_000, Outcome.PASSED), (990_000_000, Outcome.FAILED)):
        answer = replace(measured(1.0), peak_bytes=2 * 10**9, used_bytes=used)
        runner = runner_with(monkeypatch, 850_000_000, model=answer)
        result = runner.run(Check(name="it", variant=Variant(base="model", is_large=True)))
        assert (result.outcome, result.used_bytes, result.peak_bytes) == (outcome, used, 2 * 10**9)


@pytest.fixture
def small_sd3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a random SD 3 be small."""
    released = RELEASED["sd3"]
    encoder = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    small: dict[str, dict[str, object]] = {
        "transformer": {
            "num_layers": 1,
            "num_attention_heads": 1,
            "attention_head_dim": 8,
            "caption_projection_dim": 8,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
        },
        "vae": {"block_out_channels": [32] * 4, "layers_per_block": 1},
        "text_encoder": {**encoder, "projection_dim": 8},
        "text_encoder_2": {**encoder, "projection_dim": 8},
        "scheduler": {},
    }
    changed = {name: {**released[name], **changes} for name, changes in small.items()}
    monkeypatch.setitem(RELEASED, "sd3", changed)


@pytest.fixture(scope="module")
def prepared_runner() -> Iterator[SelfTestRunner]:
    """Preparing its dataset takes a fresh process, ten seconds of CPU."""
    with SelfTestRunner() as runner:
        yield runner


@pytest.fixture
def real_runner(prepared_runner: SelfTestRunner) -> SelfTestRunner:
    # That of another test has passed.
    prepared_runner._deadline = math.inf
    return prepared_runner


@pytest.mark.slow
def test_a_model_of_random_weights_is_trained_and_its_memory_predicted(
    small_sd3: None, real_runner: SelfTestRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a small model, most is what the libraries take, and that varies.
    monkeypatch.setattr(selftest, "_MEMORY_TOLERANCE", 1.5)
    result = real_runner.run_true_size("sd3", math.inf)
    assert not list(real_runner._folder.glob("model*")), "it takes gigabytes of the disk"
    assert result.outcome is Outcome.PASSED, result.note
    assert result.step_s
    assert result.peak_bytes
    assert result.predicted_bytes
    assert result.used_bytes
    assert result.used_bytes <= 1.05 * result.peak_bytes
    assert result.predicted_bytes == pytest.approx(result.used_bytes, rel=0.5)
    # A process has its time, and is stopped after it.
    late = real_runner.run_true_size("sd3", time.monotonic() + 1.0)
    assert (late.outcome, late.note) == (Outcome.UNAVAILABLE, selftest._out_of_time())


def test_a_model_of_true_size_is_left_out_if_time_or_disk_do_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd3: None
) -> None:
    monkeypatch.setattr(selftest, "write_random_model", lambda *_: pytest.fail("it takes minutes"))
    runner = SelfTestRunner()
    runner._folder = tmp_path
    assert runner.run_true_size("sd3", time.monotonic() - 1).outcome is Outcome.UNAVAILABLE
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1000))
    result = runner.run_true_size("sd3", math.inf)
    assert result.outcome is Outcome.UNAVAILABLE
    assert "of disk" in result.note


def test_each_model_of_true_size_is_measured_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(self: SelfTestRunner, work: object, variant: object) -> None:
        asked.append((work, variant))
        raise UnavailableError("not here")

    monkeypatch.setattr(selftest, "write_random_model", lambda *_: None)
    monkeypatch.setattr(SelfTestRunner, "_ask", ask)
    runner = SelfTestRunner()
    runner._folder = tmp_path
    for kind in ("v1", "xl_base"):
        runner.run_true_size(kind, math.inf)
    assert len({repr(variant) for _work, variant in asked}) == 2


@pytest.mark.slow
def test_jobs_are_compared_and_a_process_that_dies_is_a_failure(
    real_runner: SelfTestRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = real_runner.run(Check(name="bf16", variant=BF16, reference=EXACT, limit=0.2))
    assert right.outcome is Outcome.PASSED
    assert right.distance
    assert right.peak_bytes
    assert right.peak_bytes > 2**28
    # The limit is one: another rate is another update.
    slower = replace(EXACT, settings={"training": {**EXACT.settings["training"], "learning_rate": 0.25}})
    wrong = real_runner.run(Check(name="slower", variant=slower, reference=EXACT, limit=0.2))
    assert wrong.outcome is Outcome.FAILED
    assert wrong.distance == pytest.approx(0.5, abs=0.05)
    monkeypatch.setattr(selftest, "answer_with", die)
    died = real_runner.run(Check(name="dies", variant=replace(EXACT, base="other")))
    assert (died.outcome, died.note) == (Outcome.FAILED, "its process ended unexpectedly (exit status 3)")


def die(*_: object) -> None:
    os._exit(3)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_check(
    tmp_path: Path,
    real_runner: SelfTestRunner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(selftest, "SelfTestRunner", lambda: nullcontext(real_runner))
    checks = [Check(name="fp32", variant=EXACT), Check(name="tf32", variant=EXACT, unavailable="needs a GPU")]
    monkeypatch.setattr(selftest, "checks_of_tiny", lambda: checks)
    assert main(["selftest", "--quick", "--json", str(tmp_path / "found.json")]) == 0
    device, _heads, *lines = capsys.readouterr().out.splitlines()
    assert "CPU" in device
    assert [line.split()[:2] for line in lines] == [["fp32", "passed"], ["tf32", "unavailable"]]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["outcome"] for each in found["results"]] == ["passed", "unavailable"]
    assert found["results"][0]["step_s"] > 0


@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_the_long_form_also_trains_models_of_true_size(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "checks_of_tiny", list)
    monkeypatch.setattr(SelfTestRunner, "__enter__", lambda self: self)
    done = SelfTestResult(name="it", outcome=Outcome.FAILED, peak_bytes=2**30, predicted_bytes=2**29)
    monkeypatch.setattr(
        SelfTestRunner, "run_true_size", lambda _self, kind, _end: done.model_copy(update={"name": kind})
    )
    status = main(["selftest", *options])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == ([] if options else list(selftest.TRUE_SIZES))
    assert status == (EXIT_FINISHED if options else EXIT_FAILED)
    assert all("1.0 GiB" in line and "512 MiB" in line for line in lines)


def test_every_precision_and_method_is_checked() -> None:
    names = " ".join(check.name for check in checks_of_tiny())
    assert all(name in names for name in (*Precision, "dora", "full", "textual_inversion") if name != Precision.AUTO)
