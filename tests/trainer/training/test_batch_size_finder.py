"""The batch-size finder picks what fits into memory and what is faster, by trial steps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from trainer.errors import OutOfMemoryError
from trainer.protocol.settings import Precision, Training
from trainer.training import batch_size_finder
from trainer.training.batch_size_finder import (
    MemoryPlan,
    Trial,
    cached_precision,
    find_micro_batch,
    find_precision,
    read_memory_plan,
    write_memory_plan,
)

LARGE = batch_size_finder.MIN_TRIAL_WEIGHTS
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_memory_plan_is_read_back(tmp_path: Path) -> None:
    assert read_memory_plan(tmp_path) is None

    plan = MemoryPlan(precision=Precision.BF16, micro_batch_size=3)
    write_memory_plan(tmp_path, plan)

    assert read_memory_plan(tmp_path) == plan


@pytest.mark.parametrize(("slow_in_bf16", "found"), [(True, Precision.FP32), (False, Precision.BF16)])
def test_a_cpu_uses_the_faster_precision(slow_in_bf16: bool, found: Precision) -> None:
    def run(images: int, in_bf16: bool) -> None:
        until = time.process_time() + (0.03 if in_bf16 is slow_in_bf16 else 0.001)
        while time.process_time() < until:
            pass

    assert find_precision(Precision.AUTO, LARGE, Trial(run=run, device=CPU)) is found


def test_the_precision_is_cached_per_task(tmp_path: Path) -> None:
    found = [cached_precision(tmp_path / "cache", ("base", 512), lambda: Precision.BF16) for _ in range(2)]
    other = cached_precision(tmp_path / "cache", ("base", 768), lambda: Precision.FP32)

    assert [*found, other] == [Precision.BF16, Precision.BF16, Precision.FP32]
    assert cached_precision(tmp_path / "cache", ("base", 512), lambda: pytest.fail("it is known")) is Precision.BF16


def test_small_models_and_explicit_precisions_need_no_trial() -> None:
    assert find_precision(Precision.AUTO, LARGE - 1, Trial(run=never, device=CPU)) is Precision.FP32
    assert find_precision(Precision.BF16, LARGE, Trial(run=never, device=CPU)) is Precision.BF16


def test_an_explicit_micro_batch_is_limited_by_the_batch() -> None:
    trial = Trial(run=never, device=GPU)

    assert find_micro_batch(Training(batch_size=8, micro_batch_size=3), LARGE, 100, trial) == 3
    assert find_micro_batch(Training(batch_size=2, micro_batch_size=3), LARGE, 100, trial) == 2


@pytest.mark.parametrize(("room", "found"), [(100, 32), (31, 16), (7, 4), (1, 1)])
def test_a_gpu_gets_the_largest_micro_batch_that_fits_and_occurs(
    monkeypatch: pytest.MonkeyPatch, room: int, found: int
) -> None:
    fake_gpu(monkeypatch)

    def run(images: int, in_bf16: bool) -> None:
        if images > room:
            raise torch.OutOfMemoryError

    trial = Trial(run=run, device=GPU)
    assert find_micro_batch(Training(batch_size=32), LARGE, 100, trial) == found
    if room > 4:
        assert find_micro_batch(Training(batch_size=32), LARGE, 5, trial) == 5


def test_a_gpu_without_room_for_one_image_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch)

    def run(images: int, in_bf16: bool) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(OutOfMemoryError):
        find_micro_batch(Training(batch_size=2), LARGE, 100, Trial(run=run, device=GPU))


def test_other_errors_of_a_trial_are_not_mistaken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch)

    def run(images: int, in_bf16: bool) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        find_micro_batch(Training(batch_size=2), LARGE, 100, Trial(run=run, device=GPU))


def test_on_a_cpu_the_micro_batch_follows_from_the_memory_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that runs out of memory swaps or kills the process, so trying is no option."""
    monkeypatch.setattr(batch_size_finder, "peak_memory_bytes", lambda device: 1_300)
    in_use = type("I", (), {"rss": 1_000})
    monkeypatch.setattr("psutil.Process", lambda: type("P", (), {"memory_info": lambda self: in_use})())
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 1_000}))
    tried = []

    found = find_micro_batch(
        Training(batch_size=32), LARGE, 100, Trial(run=lambda n, bf16: tried.append(n), device=CPU)
    )

    # 0.8 of 1,000 bytes, 300 per image.
    assert (found, tried) == (2, [1])


def never(images: int, in_bf16: bool) -> None:
    raise AssertionError("no trial is needed")


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 100}))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
