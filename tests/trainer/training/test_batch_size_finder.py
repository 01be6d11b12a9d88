"""The batch-size finder picks what fits into memory and what is faster, by trial steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.conftest import MakeJob
from tests.trainer.job_events import events_of
from trainer.errors import BadSpecError, OutOfMemoryError
from trainer.models.base import LoadedBase, load_base
from trainer.models.methods.adapters import attach_adapter
from trainer.models.methods.trained import Trained
from trainer.protocol.events import Warned
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import Base, Method, MethodKind, Quantization, Targets
from trainer.protocol.spec import make_spec
from trainer.protocol.training_settings import Precision, Training
from trainer.reporter import Reporter
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings, predict_memory
from trainer.training import batch_size_finder, recipe
from trainer.training.batch_size_finder import (
    DryRun,
    MemoryPlan,
    Trial,
    cached_result,
    check_fits,
    find_micro_batch,
    find_precision,
    is_memory_short,
    known_precision,
    read_memory_plan,
    write_memory_plan,
)
from trainer.training.run import StopRequest

LARGE = batch_size_finder.MIN_TRIAL_WEIGHTS
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_memory_plan_is_read_back(tmp_path: Path) -> None:
    assert read_memory_plan(tmp_path) is None

    plan = MemoryPlan(precision=Precision.BF16, micro_batch_size=3)
    write_memory_plan(tmp_path, plan)

    assert read_memory_plan(tmp_path) == plan


@pytest.mark.parametrize(("slow_in_bf16", "found"), [(True, Precision.FP32), (False, Precision.BF16)])
def test_a_cpu_uses_the_faster_precision(slow_in_bf16: bool, found: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the clock: threads that wait for memory use no CPU time. Every third step, another process takes the cores.
    clock, steps = 0.0, itertools.count()

    def run(images: int, in_bf16: bool) -> None:
        nonlocal clock
        clock += (0.6 if in_bf16 is slow_in_bf16 else 0.5) * (5 if next(steps) % 3 == 0 else 1)

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    assert find_precision(Precision.AUTO, LARGE, Trial(run=run, device=CPU)) is found
    # A warm-up step each, and the trial.
    assert next(steps) <= 20


def test_a_trial_in_bf16_has_the_weights_of_a_training_in_bf16_and_leaves_no_trace() -> None:
    frozen, adapter, encoder = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4), nn.Linear(4, 4)
    seen: list[tuple[Precision, torch.dtype, torch.dtype, torch.dtype]] = []

    def train_loss(_examples: object, _views: object, _seeds: object) -> torch.Tensor:
        seen.append((task.precision, frozen.weight.dtype, adapter.weight.dtype, encoder.weight.dtype))
        loss: torch.Tensor = adapter(torch.ones(1, 4)).sum()
        return loss

    trained = SimpleNamespace(
        modules={"unet": nn.ModuleList([frozen, adapter]), "text_encoder": encoder},
        named_parameters=lambda: adapter.named_parameters(),
    )
    task: Any = SimpleNamespace(
        precision=Precision.FP32, trained=trained, train_loss=train_loss, train_mode=lambda _is_training: None
    )
    examples: Any = SimpleNamespace(sizes=[(64, 64)])
    before = frozen.weight.detach().clone()
    trial = DryRun(task, [examples])

    trial.run(1, True)
    trial.run(1, False)

    whole = torch.float32
    assert seen == [(Precision.BF16, torch.bfloat16, whole, whole), (Precision.FP32, whole, whole, whole)]
    assert task.precision is Precision.FP32
    assert torch.equal(frozen.weight, before)
    assert adapter.weight.grad is None


def test_the_precision_is_cached_per_task(tmp_path: Path) -> None:
    def found(resolution: int, find: Callable[[], Precision]) -> Precision:
        return cached_result(tmp_path / "cache", "precision", ("base", resolution), Precision, find)

    assert [found(512, lambda: Precision.BF16), found(768, lambda: Precision.FP32)] == [Precision.BF16, Precision.FP32]
    assert found(512, lambda: pytest.fail("it is known")) is Precision.BF16


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


def test_on_a_cpu_the_micro_batch_follows_from_the_memory_of_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that runs out of memory swaps or kills the process, so trying is no option."""
    monkeypatch.setattr(batch_size_finder, "peak_memory_bytes", lambda device: 1_300)
    in_use = type("I", (), {"rss": 1_000})
    monkeypatch.setattr("psutil.Process", lambda: type("P", (), {"memory_info": lambda self: in_use})())
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 1_000}))
    cached = partial(cached_result, tmp_path, "image-bytes", ("base",), int)
    tried: list[int] = []

    def find(batch_size: int) -> int:
        trial = Trial(run=lambda n, bf16: tried.append(n), device=CPU)
        return find_micro_batch(Training(batch_size=batch_size), LARGE, 100, trial, cached)

    # 0.8 of 1,000 bytes, 300 per image.
    assert (find(32), tried) == (2, [1])
    # An earlier job has measured it; it is measured again only if it limits the batch.
    assert (find(2), tried) == (2, [1])
    assert (find(32), tried) == (2, [1, 1])


def never(images: int, in_bf16: bool) -> None:
    raise AssertionError("no trial is needed")


def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 100}))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)


def test_a_large_model_needs_no_trial_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    large = batch_size_finder.MAX_TRIAL_WEIGHTS
    for capabilities, found in (
        ({"avx512_bf16": True}, Precision.BF16),
        ({"amx_bf16": True}, Precision.BF16),
        ({}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        assert known_precision(Precision.AUTO, large) is found
        assert known_precision(Precision.AUTO, large - 1) is None
        assert known_precision(Precision.FP32, large) is Precision.FP32


# -- does it fit at all ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(random_base: Path) -> tuple[LoadedBase, Trained]:
    base = load_base(Base(source=str(random_base)))
    return base, attach_adapter(base, Method(rank=8, alpha=8, targets=Targets.ATTENTION))


def predicted(lora: tuple[LoadedBase, Trained], **changes: Any) -> MemoryNeed:
    base, trained = lora
    settings: dict[str, Any] = {"precision": Precision.FP32, "images": 4, "state_bytes": 8.0, **changes}
    return predict_memory(base, dict(trained.named_parameters()), StepSettings(resolution=64, **settings))


@pytest.fixture(scope="module")
def need(lora: tuple[LoadedBase, Trained]) -> MemoryNeed:
    """A prediction takes seconds of CPU."""
    return predicted(lora)


def test_the_predicted_memory_of_a_step_is_that_of_a_real_one(
    lora: tuple[LoadedBase, Trained], need: MemoryNeed
) -> None:
    base, trained = lora

    # The same step with numbers, by torch's own count of what its allocator hands out.
    base.denoiser.train()
    side, width = base.resolution // base.vae_scale, base.denoiser.config.cross_attention_dim
    noisy, timestep, text = torch.randn(4, 4, side, side), torch.zeros(4, dtype=torch.long), torch.randn(4, 77, width)
    with torch.profiler.profile(profile_memory=True) as profile:
        prediction = base.predict(noisy, timestep, {"caption_BTD": text})
        torch.autograd.backward(prediction.float().square().mean())
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    for _name, parameter in trained.named_parameters():
        parameter.grad = None

    assert need.step == pytest.approx(peak, rel=0.15)
    assert need.weights == 4 * sum(parameter.numel() for parameter in base.denoiser.parameters())
    assert need.optimizer == 8 * sum(parameter.numel() for _name, parameter in trained.named_parameters())


@pytest.mark.slow
def test_what_saves_memory_is_predicted_to_save_it(lora: tuple[LoadedBase, Trained], need: MemoryNeed) -> None:
    small = predicted(lora, precision=Precision.BF16, images=1, is_checkpointed=True)
    assert small.weights < 0.6 * need.weights
    # A third of what is kept, of a quarter of the images, with half the bits of most tensors.
    assert small.step < 0.06 * need.step


def test_the_state_of_an_optimizer_is_measured() -> None:
    known = {"adamw": 8, "sgd": 4, "lion": 4, "torch.optim.RAdam": 8, "adamw_8bit": 2}
    assert {name: batch_size_finder._state_bytes_per_weight(name, {}) for name in known} == known
    assert 0 < batch_size_finder._state_bytes_per_weight("adafactor", {}) < 0.1


class FakeTask:
    """A base of 8 GB in bf16; a step takes as much beside it at 1024 px, without gradients."""

    weights = 4_000_000_000
    resolution = 1024
    device = CPU

    def __init__(self, trained: int) -> None:
        self._count = trained
        self.trained: Any = SimpleNamespace(
            named_parameters=lambda: iter([("unet.a", SimpleNamespace(numel=lambda: trained))])
        )

    def predict_memory(self, settings: StepSettings) -> MemoryNeed:
        frozen = {None: 2.0, Quantization.INT8: 1.0, Quantization.NF4: 0.5}[settings.quantization]
        frees = settings.steps_in_backward and not settings.accumulates
        activations = 8e9 * (settings.resolution / 1024) ** 2 / (4 if settings.is_checkpointed else 1)
        width = settings.trained_dtype.itemsize
        return MemoryNeed(
            weights=int(frozen * (self.weights - self._count) + width * self._count),
            optimizer=int(settings.state_bytes * self._count),
            step=int(activations + (0 if frees else width * self._count)),
        )


def check_on(memory: float, *, kind: MethodKind, **training: Any) -> None:
    task: Any = FakeTask(FakeTask.weights if kind is MethodKind.FULL else 10_000_000)
    spec = make_spec({"dataset": "data", "method": {"kind": kind}, "training": {"batch_size": 4, **training}})
    check_fits(task, spec, Precision.AUTO, memory)


@pytest.mark.parametrize(
    ("kind", "memory", "hint"),
    [
        (MethodKind.LORA, 13e9, "enough with training.gradient_checkpointing = true."),
        (MethodKind.LORA, 9e9, "training.gradient_checkpointing = true and base.quantization = int8."),
        (MethodKind.LORA, 5e9, "training.gradient_checkpointing = true and base.quantization = nf4."),
        (MethodKind.LORA, 4.2e9, "training.resolution = 768 and base.quantization = nf4."),
        (MethodKind.LORA, 2e9, "Nothing that was tried"),
        (MethodKind.FULL, 37e9, "training.gradient_checkpointing = true and training.optimizer = adafactor."),
        (MethodKind.FULL, 20e9, "optimizer = adafactor, training.fused_backward = true and training.batch_size = 1."),
        (MethodKind.FULL, 12e9, "fused_backward = true, training.batch_size = 1 and training.bf16_weights = true."),
    ],
)
def test_a_training_that_cannot_fit_says_what_would(kind: MethodKind, memory: float, hint: str) -> None:
    check_on(100e9, kind=kind)
    with pytest.raises(BadSpecError, match=r"needs about .* of memory") as refusal:
        check_on(memory, kind=kind)

    assert hint in refusal.value.hint


def test_a_change_that_the_other_settings_exclude_is_not_suggested() -> None:
    with pytest.raises(BadSpecError) as refusal:
        check_on(12e9, kind=MethodKind.FULL, ema_decay=0.99)

    assert "Nothing that was tried" in refusal.value.hint


def test_a_training_far_from_the_limit_is_not_predicted() -> None:
    task: Any = FakeTask(10_000_000)
    task.predict_memory = lambda *_given, **_settings: pytest.fail("it takes seconds")

    check_fits(task, make_spec({"dataset": "data"}), Precision.BF16, 100e9)


@pytest.mark.parametrize(("free", "is_short"), [(30e9, False), (17e9, True), (15e9, True)])
def test_freed_memory_goes_back_at_once_only_where_it_is_short(free: float, is_short: bool) -> None:
    # 8 GB of weights, and 8 of a step, of which the C library may keep as much again.
    task: Any = FakeTask(10_000_000)
    spec = make_spec({"dataset": "data"})

    assert is_memory_short(task, spec, Precision.BF16, free) is is_short
    task.device = GPU
    assert not is_memory_short(task, spec, Precision.BF16, free)


@pytest.mark.slow
@pytest.mark.parametrize(("free", "chosen"), [(1000, "return_large_blocks"), (10**12, "keep_memory_between_steps")])
def test_a_training_that_is_slower_to_save_memory_says_so(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, free: int, chosen: str
) -> None:
    # A prediction takes a second for some layers, and seconds for all of them.
    job_dir, calls = make_job(method={"targets": "attention", "text_encoder": False}), list[str]()
    monkeypatch.setattr(recipe, "free_memory_bytes", lambda _device: free)
    for name in ("return_large_blocks", "keep_memory_between_steps"):
        # They are for the whole process, which is that of the tests.
        monkeypatch.setattr(recipe, name, lambda name=name: calls.append(name))
    for _start in range(2):
        with StopRequest() as stop, Reporter(job_dir) as reporter:
            session = recipe.prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        assert session.memory_plan.returns_memory == (chosen == "return_large_blocks")

    # The second start goes on as the first one did, and does not say it again.
    assert calls == [chosen] * 2
    warned = [event for event in events_of(job_dir) if isinstance(event, Warned) and event.kind == "memory_short"]
    assert len(warned) == (chosen == "return_large_blocks")
