"""What fits into memory, and what is faster, is found by real steps, once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from trainer.errors import OutOfMemoryError
from trainer.protocol.settings import Precision, Training
from trainer.training import fitting
from trainer.training.fitting import Fit, Trial, find_micro_batch, find_precision, keep_fit, read_fit, remembered

LARGE = fitting.MIN_TRIAL_WEIGHTS
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_what_was_found_is_read_again(tmp_path: Path) -> None:
    assert read_fit(tmp_path) is None

    fit = keep_fit(tmp_path, Fit(precision=Precision.BF16, micro_batch_size=3))

    assert read_fit(tmp_path) == fit


@pytest.mark.parametrize(("slow_in_bf16", "found"), [(True, Precision.FP32), (False, Precision.BF16)])
def test_on_a_cpu_the_faster_precision_is_taken(slow_in_bf16: bool, found: Precision) -> None:
    def run(pictures: int, in_bf16: bool) -> None:
        until = time.process_time() + (0.03 if in_bf16 is slow_in_bf16 else 0.001)
        while time.process_time() < until:
            pass

    assert find_precision(Precision.AUTO, LARGE, Trial(run=run, device=CPU)) is found


def test_the_next_job_on_this_machine_is_spared_the_trial(tmp_path: Path) -> None:
    found = [remembered(tmp_path / "cache", ("base", 512), lambda: Precision.BF16) for _ in range(2)]
    other = remembered(tmp_path / "cache", ("base", 768), lambda: Precision.FP32)

    assert [*found, other] == [Precision.BF16, Precision.BF16, Precision.FP32]
    assert remembered(tmp_path / "cache", ("base", 512), lambda: pytest.fail("it is known")) is Precision.BF16


def test_small_models_and_told_precisions_are_not_tried() -> None:
    assert find_precision(Precision.AUTO, LARGE - 1, Trial(run=never, device=CPU)) is Precision.FP32
    assert find_precision(Precision.BF16, LARGE, Trial(run=never, device=CPU)) is Precision.BF16


def test_a_micro_batch_that_was_told_is_taken_up_to_the_batch() -> None:
    trial = Trial(run=never, device=GPU)

    assert find_micro_batch(Training(batch_size=8, micro_batch_size=3), LARGE, 100, trial) == 3
    assert find_micro_batch(Training(batch_size=2, micro_batch_size=3), LARGE, 100, trial) == 2


@pytest.mark.parametrize(("room", "found"), [(100, 32), (31, 16), (7, 4), (1, 1)])
def test_a_gpu_gets_the_most_that_fits_and_no_more_than_come_together(
    monkeypatch: pytest.MonkeyPatch, room: int, found: int
) -> None:
    pretend_there_is_a_gpu(monkeypatch)

    def run(pictures: int, in_bf16: bool) -> None:
        if pictures > room:
            raise torch.OutOfMemoryError

    trial = Trial(run=run, device=GPU)
    assert find_micro_batch(Training(batch_size=32), LARGE, 100, trial) == found
    if room > 4:
        assert find_micro_batch(Training(batch_size=32), LARGE, 5, trial) == 5


def test_a_gpu_without_room_for_one_picture_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_there_is_a_gpu(monkeypatch)

    def run(pictures: int, in_bf16: bool) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemoryError, match="Not even one picture"):
        find_micro_batch(Training(batch_size=2), LARGE, 100, Trial(run=run, device=GPU))


def test_what_else_goes_wrong_in_a_trial_is_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_there_is_a_gpu(monkeypatch)

    def run(pictures: int, in_bf16: bool) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        find_micro_batch(Training(batch_size=2), LARGE, 100, Trial(run=run, device=GPU))


def test_on_a_cpu_one_picture_is_measured_and_the_rest_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that runs out of memory swaps or is killed: nothing may be tried there."""
    monkeypatch.setattr(fitting, "peak_memory_bytes", lambda device: 1_300)
    in_use = type("I", (), {"rss": 1_000})
    monkeypatch.setattr("psutil.Process", lambda: type("P", (), {"memory_info": lambda self: in_use})())
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 1_000}))
    tried = []

    found = find_micro_batch(
        Training(batch_size=32), LARGE, 100, Trial(run=lambda n, bf16: tried.append(n), device=CPU)
    )

    # 0.8 of 1,000 bytes, 300 for a picture.
    assert (found, tried) == (2, [1])


def never(pictures: int, in_bf16: bool) -> None:
    raise AssertionError("nothing is to be tried")


def pretend_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 100}))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
