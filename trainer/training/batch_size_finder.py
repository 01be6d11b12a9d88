"""Precision and micro-batch size for this machine, found by trial steps.

The result is stored in the job folder (`memory_plan.json`), because a resumed run must use the same.
"""

from __future__ import annotations

import gc
import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from trainer.device import free_memory_bytes, is_out_of_memory, peak_memory_bytes
from trainer.errors import BadSpecError, OutOfMemoryError
from trainer.exchange.files import write_text
from trainer.exchange.memory_predictions import caption_chunks
from trainer.models.base import load_base
from trainer.models.methods import attach
from trainer.protocol.frozen import Frozen
from trainer.protocol.settings import Arguments
from trainer.protocol.spec import Settings, Spec, SpecError, make_spec, merge
from trainer.protocol.text import _, listed, size
from trainer.protocol.training_settings import Precision, Stage, Training
from trainer.tasks.drawing import BATCH as SAMPLES_AT_ONCE
from trainer.tasks.examples import Examples, ImageView
from trainer.tasks.memory_prediction import MemoryNeed, StepSettings, predict_memory, predict_sampling
from trainer.tasks.task import Task
from trainer.training.optimizers import make_optimizer

T = TypeVar("T")

MEMORY_PLAN_FILE = "memory_plan.json"
#: No trial of bf16 on a CPU below this many weights: bf16 ran at 0.63 x the speed of fp32 on the tiny base, at 1.26 x
#: with 90 million weights.
MIN_TRIAL_WEIGHTS = 20_000_000
#: No trial from this many weights on.
MAX_TRIAL_WEIGHTS = 500_000_000
#: Share of the free memory that a step may use; validation and samples need some, too.
MEMORY_SHARE = 0.8
#: More was not faster on a CPU.
MAX_CPU_MICRO_BATCH = 4
#: Steps per precision in the trial: it ends once all of them agree, or with the median.
_MIN_TRIAL_STEPS, _MAX_TRIAL_STEPS = 3, 9


class MemoryPlan(Frozen):
    """Precision and micro-batch size of a job."""

    precision: Precision
    micro_batch_size: int = Field(ge=1)
    #: Freed memory goes back to the system at once, which is slower: there is little of it (CPU).
    returns_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One forward and backward pass without an optimizer step: `run(images, in_bf16)`."""

    run: Callable[[int, bool], None]
    device: torch.device


def read_memory_plan(job_dir: Path) -> MemoryPlan | None:
    """Return the plan of an earlier run of the job, or None."""
    try:
        return MemoryPlan.model_validate_json((job_dir / MEMORY_PLAN_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_memory_plan(job_dir: Path, plan: MemoryPlan) -> None:
    write_text(job_dir / MEMORY_PLAN_FILE, plan.model_dump_json() + "\n")


class DryRun:
    """Forward and backward passes whose gradients are discarded, on copies of the largest image of all `candidates`."""

    def __init__(self, task: Task, candidates: Iterable[Examples]) -> None:
        self._task = task
        self._examples = max(candidates, key=lambda each: max(width * height for width, height in each.sizes))
        sizes = [width * height for width, height in self._examples.sizes]
        self._largest = sizes.index(max(sizes))
        #: The frozen weights in bf16, while a trial compares the precisions.
        self._rounded: dict[nn.Parameter, Tensor] = {}

    def run(self, images: int, in_bf16: bool) -> None:
        """Run `images` copies; `in_bf16` only with the weights in fp32."""
        task = self._task
        with self._in_bf16() if in_bf16 else nullcontext():
            try:
                task.train_mode(True)
                views = [ImageView(index=self._largest)] * images
                loss_B = task.train_loss(self._examples, views, list(range(images)))
                torch.autograd.backward(loss_B.sum())
            finally:
                for _name, parameter in task.trained.named_parameters():
                    parameter.grad = None

    def release(self) -> None:
        """Free what a trial of bf16 needed."""
        self._rounded.clear()

    @contextmanager
    def _in_bf16(self) -> Iterator[None]:
        """Compute in bf16 for a while, with the weights that a training would have: not converted at each step."""
        if not self._rounded:
            self._rounded = {parameter: parameter.data.bfloat16() for parameter in self._frozen_weights()}
        precision, weights = self._task.precision, {parameter: parameter.data for parameter in self._rounded}
        try:
            self._task.precision = Precision.BF16
            for parameter, rounded in self._rounded.items():
                parameter.data = rounded
            yield
        finally:
            self._task.precision = precision
            for parameter, data in weights.items():
                parameter.data = data

    def _frozen_weights(self) -> Iterator[nn.Parameter]:
        """Yield the frozen weights of what is trained, except text encoders, which stay in fp32 (`Task.place`)."""
        trained = self._task.trained
        ids = {id(parameter) for _name, parameter in trained.named_parameters()}
        for name, module in trained.modules.items():
            if not name.startswith("text_encoder"):
                yield from (each for each in module.parameters() if each.is_floating_point() and id(each) not in ids)


def known_precision(wanted: Precision, weights: int) -> Precision | None:
    """Return the wanted precision; for `auto` on a CPU what needs no trial, or None.

    A trial holds the whole model in fp32. For a large one the processor decides: with instructions for bf16, a step of
    SD 1.5 took 0.47 of the time.
    """
    if wanted is not Precision.AUTO:
        return wanted
    if weights < MIN_TRIAL_WEIGHTS:
        return Precision.FP32
    return Precision.BF16 if weights >= MAX_TRIAL_WEIGHTS and _computes_bf16() else None


def _computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def find_precision(wanted: Precision, weights: int, trial: Trial) -> Precision:
    """Return `known_precision`, or else bf16 if a trial step is faster in it than in fp32."""
    known = known_precision(wanted, weights)
    return known or (Precision.BF16 if _is_faster_in_bf16(trial) else Precision.FP32)


def cached_result(
    folder: Path, name: str, task: Sequence[object], read: Callable[[str], T], find: Callable[[], T]
) -> T:
    """Return the result of `find`, cached in `folder` for jobs that train the same on this machine.

    Args:
        name: What is found, for the name of the file.
        task: What it depends on, beside the machine.
        read: Converts the text of a result back.
    """
    machine = (platform.processor(), torch.get_num_threads(), torch.__version__)
    key = hashlib.sha256(repr((machine, *task)).encode()).hexdigest()[:32]
    path = folder / f"{name}-{key}.txt"
    try:
        return read(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        found = find()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, str(found))
    return found


def find_micro_batch(
    training: Training,
    weights: int,
    largest: int,
    trial: Trial,
    cached: Callable[[Callable[[], int]], int] = lambda measure: measure(),
) -> int:
    """Return the configured micro-batch size, or the largest one, up to the batch size, that fits into memory.

    Args:
        weights: Number of weights of the model.
        largest: Number of images per epoch in the fullest bucket; a micro-batch cannot have more.
        cached: Returns the bytes that one image takes on a CPU, as an earlier job has measured them, or measures them.

    Raises:
        OutOfMemoryError: Not even one image fits.
    """
    if training.micro_batch_size is not None:
        return min(training.micro_batch_size, training.batch_size)
    most = max(1, min(training.batch_size, largest))
    if trial.device.type == "cuda":
        return _largest_that_fits(most, trial)
    most = min(most, MAX_CPU_MICRO_BATCH)
    return most if most == 1 or weights < MIN_TRIAL_WEIGHTS else _estimate_by_one(most, trial, cached)


def _largest_that_fits(most: int, trial: Trial) -> int:
    """On a GPU: halve until a step fits with 5 % to spare."""
    size = most
    while True:
        try:
            trial.run(size, False)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            total = torch.cuda.get_device_properties(trial.device).total_memory
            if size == 1 or torch.cuda.max_memory_reserved(trial.device) < 0.95 * total:
                return size
        if size == 1:
            raise OutOfMemoryError(
                _("Not even one image fits into the device's memory."),
                _("Use a smaller training.resolution, or training.gradient_checkpointing."),
            )
        size = (size + 1) // 2
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trial.device)


def _estimate_by_one(most: int, trial: Trial, cached: Callable[[Callable[[], int]], int]) -> int:
    """On a CPU, which swaps or is killed where a GPU refuses: measure one image and divide the free memory by it."""
    free = free_memory_bytes(trial.device)

    @cache
    def measure() -> int:
        # Resident size, not the peak so far: if encoding peaked higher, the peak would hide what one image takes.
        before = psutil.Process().memory_info().rss
        trial.run(1, False)
        return int(max(1, peak_memory_bytes(trial.device) - before))

    def fitting(one: int) -> int:
        return max(1, min(most, int(MEMORY_SHARE * free / one)))

    # Where it matters, it is measured again: an earlier job may have encoded its images, which peaks higher.
    return most if fitting(cached(measure)) == most else fitting(measure())


def _is_faster_in_bf16(trial: Trial) -> bool:
    """Compare one-image steps that take turns in the two precisions, after one warm-up step each.

    By the time on the clock, which is what a user waits for: the threads of a step do not use all cores all the time.
    Neighboring steps are compared, in changing order, so that what else runs on the machine slows both alike.
    """
    for in_bf16 in (True, False):
        trial.run(1, in_bf16)
    ratios: list[float] = []
    for number in range(_MAX_TRIAL_STEPS):
        seconds: dict[bool, float] = {}
        for in_bf16 in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            trial.run(1, in_bf16)
            seconds[in_bf16] = time.perf_counter() - began
        ratios.append(seconds[True] / seconds[False])
        is_clear = all(ratio < 1 for ratio in ratios) or all(ratio > 1 for ratio in ratios)
        if is_clear and len(ratios) >= _MIN_TRIAL_STEPS:
            break
    return statistics.median(ratios) < 1


# -- does it fit at all ------------------------------------------------------------------------------------------------


#: Side of the weight that an optimizer's state is measured on, large enough for those that skip small ones.
_PROBE_SIDE = 128
#: Bytes of an optimizer's state and the average for each weight, at least as many as those with two or three states
#: keep: to measure them takes 0.1 s.
_MOST_STATE_BYTES = 16
#: Bytes that a process takes before it loads a model: libraries, and the context of a GPU.
_OVERHEAD = 0.7e9


def check_fits(task: Task, spec: Spec, precision: Precision, memory: float) -> None:
    """Refuse a training of which not even one image at once fits into `memory`, in bytes, whatever else runs.

    Raises:
        BadSpecError: it does not fit; the hint says which changes of the settings would.
    """
    if _is_far_below(task, memory) or (needed := _predict(task, spec, precision)) <= memory:
        return
    changes = _changes_that_fit(task, spec, precision, needed, memory)
    if changes is None:
        hint = _("Nothing that was tried makes it fit: choose a smaller method, such as lora, or a smaller base.")
    else:
        less, names = changes
        hint = _("By the same estimate {size} are enough with {changes}.", size=size(less), changes=listed(names))
    raise BadSpecError(
        _(
            "This training needs about {needed} of memory with one image at once, and this device has {memory}.",
            needed=size(needed),
            memory=size(memory),
        ),
        hint,
    )


def is_memory_short(task: Task, spec: Spec, precision: Precision, free: float) -> bool:
    """True if a training on a CPU fits into the `free` bytes only if freed memory goes back to the system at once.

    Else the C library keeps up to as much as a step takes (docs/performance.md).
    """
    if task.device.type != "cpu" or _is_far_below(task, free):
        return False
    return max((need.total + need.step + _OVERHEAD for need in _needs(task, spec, precision)), default=0.0) > free


def _is_far_below(task: Task, memory: float) -> bool:
    """True if a training needs so much less that it is not predicted, which takes seconds."""
    trained = sum(parameter.numel() for _name, parameter in task.trained.named_parameters())
    return 3 * (4 * task.weights + (8 + _MOST_STATE_BYTES) * trained) < memory


#: What takes less memory, the change that costs the least first: time, then bits, then what is learned.
_SMALLER: tuple[Settings, ...] = (
    {"training": {"gradient_checkpointing": True}},
    {"base": {"quantization": "int8"}},
    {"training": {"optimizer": "adafactor"}},
    {"training": {"fused_backward": True}},
    {"training": {"fused_backward": True, "batch_size": 1}},
    {"training": {"bf16_weights": True}},
    {"base": {"quantization": "nf4"}},
)
#: A change that saves less than this share is not worth it.
_WORTH = 0.02


def _changes_that_fit(
    task: Task, spec: Spec, precision: Precision, needed: float, memory: float
) -> tuple[float, list[str]] | None:
    """Add one change after another until a training fits; returns what it then needs, and the changes by name."""
    sides = [stage.resolution or spec.training.resolution or task.resolution for stage in spec.plan]
    smaller: Settings = {"training": {"resolution": max(64, max(sides) * 3 // 4 // 64 * 64)}}
    changes: dict[str, Any] = {}
    for change in (*_SMALLER, smaller):
        both = merge(changes, change)
        try:
            less = _predict(task, make_spec(merge(spec.model_dump(mode="json"), both)), precision)
        except SpecError:
            # It does not go with the other settings.
            continue
        if less < (1 - _WORTH) * needed:
            changes, needed = both, less
        if needed <= memory:
            return needed, [
                f"{group}.{name} = {_as_toml(value)}" for group in both for name, value in both[group].items()
            ]
    return None


def _as_toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _predict(task: Task, spec: Spec, precision: Precision) -> float:
    """Return what the largest stage needs, in bytes; 0 if that is not known."""
    return max((need.total + _OVERHEAD for need in _needs(task, spec, precision)), default=0.0)


def _needs(task: Task, spec: Spec, precision: Precision) -> list[MemoryNeed]:
    """Return what each stage needs, as far as it is known."""
    needs = (task.predict_memory(_step_settings(spec, stage, precision, task.resolution)) for stage in spec.plan)
    return [need for need in needs if need is not None]


def predict_job(spec: Spec) -> int:
    """Predict a training's memory with one image at once from its settings alone, in bytes, libraries included.

    For captions as long as the datasets' reports say, and samples; the base is opened on the CPU.

    Raises:
        TrainerError: The base cannot be opened, or the method does not fit it.
        RuntimeError, NotImplementedError: It has an operation that fake tensors lack.
    """
    base = load_base(spec.base, spec.objective, as_stored=True)
    trained = dict(attach(base, spec).named_parameters())
    found = []
    for stage in spec.plan:
        settings = _step_settings(spec, stage, spec.training.precision, base.resolution)
        settings = replace(settings, chunks=caption_chunks(spec))
        need = predict_memory(base, trained, settings)
        found.append(replace(need, sampling=predict_sampling(base, settings, images=SAMPLES_AT_ONCE)))
    return int(max(need.total for need in found) + _OVERHEAD)


def _step_settings(spec: Spec, stage: Stage, precision: Precision, resolution: int) -> StepSettings:
    """Return what a stage's memory depends on; `resolution` is that of the base."""
    training = spec.training
    average_bytes = 4 if training.ema_decay is not None else 0
    return StepSettings(
        precision=Precision.BF16 if precision is Precision.AUTO else precision,
        resolution=stage.resolution or training.resolution or resolution,
        state_bytes=average_bytes + _state_bytes_per_weight(str(stage.optimizer), stage.optimizer_arguments or {}),
        is_checkpointed=training.gradient_checkpointing,
        accumulates=training.batch_size > 1,
        steps_in_backward=training.fused_backward,
        quantization=spec.base.quantization,
        trained_dtype=torch.bfloat16 if training.bf16_weights else torch.float32,
    )


def _state_bytes_per_weight(optimizer: str, arguments: Arguments) -> float:
    """Return the bytes that an optimizer keeps for each weight of a matrix, measured on a small one."""
    if "8bit" in optimizer.replace("_", ""):
        # They run on a GPU only: two states of a byte.
        return 2.0
    parameter = nn.Parameter(torch.randn(_PROBE_SIDE, _PROBE_SIDE))
    made = make_optimizer(optimizer, [{"params": [parameter], "lr": 1e-6}], weight_decay=0.0, arguments=arguments)
    parameter.grad = torch.randn_like(parameter)
    made.step()
    tensors = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel() > 1) / parameter.numel()
