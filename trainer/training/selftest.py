"""Tries on this machine what a training may use: is it right, how fast is it, how much memory does it take.

The quick form trains the tiny base; the long one also a model of true size and random weights of each family.

Each check is a real job of a few steps in a process of its own, so that its peak memory is its own, and the crash of a
driver ends nothing else. It is compared with a reference job that starts from the same weights and draws the same
noise: the distance between the two updates of the weights, relative to the reference's (0: the same, 1: unrelated or
none). They train by SGD, whose updates are proportional to the gradients; AdamW would make a whole step of the
rounding of a tiny gradient.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.dataset.preparing.prepare import prepare
from trainer.device import choose_precision
from trainer.errors import DatasetError
from trainer.models.random_models import random_model_bytes, write_random_model
from trainer.protocol.devices import Outcome, SelfTestResult
from trainer.protocol.settings import MethodKind
from trainer.protocol.text import _, duration, size
from trainer.protocol.training_settings import OptimizerKind, Precision, ScheduleKind
from trainer.training.selftest_job import (
    DATASET,
    ONE_IMAGE,
    FailedError,
    Measured,
    UnavailableError,
    Variant,
    answer_with,
    measure,
    predict,
)

T = TypeVar("T")

#: Modules that are imported late, when a model is loaded and a method attached.
_PRELOADED = (
    "trainer.models.methods.adapters",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
_IMAGES, _IMAGE_PX = 6, 512
#: Seconds for one job. Compiling a model takes minutes.
_TIMEOUT_S = 900.0
#: Of an update that is the same but for the order of additions.
_ROUNDING = 1e-3
#: The memory in use may exceed the predicted one by this much.
_MEMORY_TOLERANCE = 1.15
#: Models of true size by their kind in `RELEASED`. At its own resolution, SDXL takes minutes a step on a CPU.
TRUE_SIZES = {"v1": "SD 1.5", "xl_base": "SDXL", "sd3": "SD 3 medium"}
_CPU_RESOLUTION = 512
#: Of an update in half precision; it was not measured on a GPU.
_LARGE_LIMIT = 0.3


@dataclass(frozen=True, kw_only=True)
class Check:
    """A variant, and the one that it must agree with."""

    name: str
    variant: Variant
    reference: Variant | None = None
    limit: float = 0.0
    #: Why this machine cannot do it, if it cannot.
    unavailable: str = ""


def checks_of_tiny() -> list[Check]:
    """Return the checks of precisions, options and methods, each a job on the tiny base."""
    has_gpu = torch.cuda.is_available()
    needs_gpu = "" if has_gpu else _("needs a GPU")
    exact = _variant(precision=Precision.FP32, tf32=False)
    half = choose_precision(Precision.AUTO) if has_gpu else Precision.BF16
    return [
        Check(name="fp32", variant=exact),
        Check(
            name="tf32",
            variant=_variant(precision=Precision.FP32),
            reference=exact,
            limit=0.02,
            unavailable=needs_gpu,
        ),
        Check(name="bf16", variant=_variant(precision=Precision.BF16), reference=exact, limit=0.2),
        Check(
            name="fp16",
            variant=_variant(precision=Precision.FP16),
            reference=exact,
            limit=0.05,
            unavailable=needs_gpu,
        ),
        *(_attention_check(backend, half) for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")),
        Check(name="channels last", variant=exact, reference=replace(exact, is_contiguous=True), limit=_ROUNDING),
        Check(
            name="gradient checkpointing",
            variant=_variant(precision=Precision.FP32, tf32=False, gradient_checkpointing=True),
            reference=exact,
            limit=_ROUNDING,
        ),
        Check(
            name="compile",
            variant=_variant(precision=Precision.FP32, tf32=False, compile=True),
            reference=exact,
            limit=_ROUNDING,
            unavailable=needs_gpu,
        ),
        Check(
            name="AdamW in 8 bits",
            variant=_variant(
                precision=Precision.FP32, tf32=False, optimizer=OptimizerKind.ADAMW_8BIT, learning_rate=1e-4
            ),
            reference=_variant(precision=Precision.FP32, tf32=False, optimizer=OptimizerKind.ADAMW, learning_rate=1e-4),
            limit=0.5,
            unavailable=needs_gpu,
        ),
        *(_method_check(kind, half) for kind in MethodKind if kind is not MethodKind.LORA),
    ]


def check_of(base: str, name: str = "") -> Check:
    """Return the check of a model of true size: a LoRA, one image at a time, at its own resolution on a GPU.

    It is compared with fp32 on a GPU; on a CPU that would take minutes.
    """
    has_gpu = torch.cuda.is_available()
    precision = choose_precision(Precision.AUTO) if has_gpu else Precision.BF16

    def variant(precision: Precision) -> Variant:
        training: dict[str, Any] = {"precision": precision, "tf32": False, "batch_size": 1, "micro_batch_size": 1}
        # The first step is the one that is compared.
        training |= {"schedule": ScheduleKind.CONSTANT, "warmup_steps": 0}
        if not has_gpu:
            training["resolution"] = _CPU_RESOLUTION
        return Variant(base=base, settings={"training": training}, is_large=True)

    name = f"{name or Path(base).name}, {precision}" + ("" if has_gpu else f", {_CPU_RESOLUTION} px")
    return Check(
        name=name,
        variant=variant(precision),
        reference=variant(Precision.FP32) if has_gpu else None,
        limit=_LARGE_LIMIT if has_gpu else 0.0,
    )


def _variant(method: MethodKind = MethodKind.LORA, **training: Any) -> Variant:
    return Variant(settings={"method": {"kind": method}, "training": training})


def _attention_check(backend: str, precision: Precision) -> Check:
    mathematical = replace(_variant(precision=precision), attention="MATH")
    name = _("{name} attention, {precision}", name=backend.partition("_")[0].lower(), precision=precision)
    return Check(name=name, variant=replace(mathematical, attention=backend), reference=mathematical, limit=0.1)


def _method_check(kind: MethodKind, precision: Precision) -> Check:
    # The tiny model of a method is as precise as its smallest layers; a fault is off by all of the update.
    return Check(
        name=f"{kind}, {precision}",
        variant=_variant(kind, precision=precision),
        reference=_variant(kind, precision=Precision.FP32, tf32=False),
        limit=0.3,
    )


# -- running them ------------------------------------------------------------------------------------------------------


class SelfTestRunner:
    """Runs checks on a dataset that it makes, each job once; a context manager that deletes the files."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # Forks of a process that has imported what a job needs: only the first one takes seconds to start.
        self._context.set_forkserver_preload([__name__, *_PRELOADED])
        self._stack = ExitStack()
        self._answers: dict[str, Measured | UnavailableError | FailedError] = {}
        self._jobs = count()
        self._deadline = math.inf

    def __enter__(self) -> Self:
        """Make the dataset.

        Raises:
            DatasetError: It cannot be prepared.
        """
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="selftest-")))
        _write_images(self._folder / "images")
        self._prepare(self._folder / "images", self._folder / DATASET)
        self._prepare(self._folder / "images" / "0.png", self._folder / ONE_IMAGE)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _prepare(self, source: Path, out: Path) -> None:
        # Preparing has a forkserver too, and a process has only one: that of another process, which imports no torch.
        preparing = multiprocessing.get_context("spawn").Process(target=prepare, args=([source], out))
        preparing.start()
        preparing.join()
        if preparing.exitcode:
            raise DatasetError(
                _("The images of the self-test cannot be prepared."),
                _("The log above says why; `make setup` installs it again."),
            )

    def run(self, check: Check) -> SelfTestResult:
        """Measure the variant of a check, and its reference unless an earlier check did."""
        if check.unavailable:
            return SelfTestResult(name=check.name, outcome=Outcome.UNAVAILABLE, note=check.unavailable)
        predicted = None
        try:
            if check.variant.is_large:
                predicted = self._ask(predict, check.variant)
            found = self._measure(check.variant)
            reference = None if check.reference is None else self._measure(check.reference)
        except UnavailableError as error:
            return SelfTestResult(
                name=check.name, outcome=Outcome.UNAVAILABLE, note=str(error), predicted_bytes=predicted
            )
        except FailedError as error:
            return SelfTestResult(name=check.name, outcome=Outcome.FAILED, note=str(error), predicted_bytes=predicted)
        is_finite = np.isfinite(found.update).all()
        distance = None if reference is None or not is_finite else _distance(found.update, reference.update)
        fault = _fault(check, found, distance, predicted)
        return SelfTestResult(
            name=check.name,
            outcome=Outcome.FAILED if fault else Outcome.PASSED,
            note=fault,
            step_s=found.step_s,
            peak_bytes=found.peak_bytes,
            used_bytes=found.used_bytes,
            predicted_bytes=predicted,
            free_bytes=found.free_bytes,
            distance=distance,
            limit=None if distance is None else check.limit,
        )

    def run_true_size(self, kind: str, deadline: float) -> SelfTestResult:
        """Write a model with random weights, and check it; it is left out if time, disk or memory do not suffice.

        Args:
            kind: A key of `TRUE_SIZES`.
            deadline: By `time.monotonic`; a check that is not done then is stopped.
        """
        # By its name, because a job that was measured is known by its settings.
        folder = self._folder / f"model-{kind}"
        check = check_of(str(folder / ("model" if kind.startswith("sd3") else "model.safetensors")), TRUE_SIZES[kind])
        needed, free = random_model_bytes(kind), shutil.disk_usage(self._folder).free
        self._deadline = deadline
        if needed > free:
            note = _("its file needs {needed} of disk, and {free} are free", needed=size(needed), free=size(free))
            return self.run(replace(check, unavailable=note))
        if time.monotonic() > deadline:
            return self.run(replace(check, unavailable=_out_of_time()))
        try:
            folder.mkdir()
            write_random_model(kind, Path(check.variant.base))
            return self.run(check)
        finally:
            shutil.rmtree(folder)

    def _measure(self, variant: Variant) -> Measured:
        """Return what a job measured; each is run once.

        Raises:
            UnavailableError: This machine cannot do it.
            FailedError: It failed.
        """
        answer = self._answers.get(repr(variant))
        if answer is None:
            try:
                answer = self._ask(measure, variant)
            except (UnavailableError, FailedError) as error:
                answer = error
            self._answers[repr(variant)] = answer
        if isinstance(answer, Measured):
            return answer
        raise answer

    def _ask(self, work: Callable[[Variant, Path, Path], T], variant: Variant) -> T:
        """Return the result of `work` in a process of its own.

        Raises:
            UnavailableError: This machine cannot do it.
            FailedError: It failed.
        """
        ours, theirs = self._context.Pipe()
        job_dir = self._folder / f"job-{next(self._jobs)}"
        process = self._context.Process(target=answer_with, args=(theirs, work, variant, self._folder, job_dir))
        process.start()
        theirs.close()
        try:
            if not ours.poll(min(_TIMEOUT_S, max(0.0, self._deadline - time.monotonic()))):
                if time.monotonic() >= self._deadline:
                    raise UnavailableError(_out_of_time())
                raise FailedError(_("it took longer than {limit}", limit=duration(_TIMEOUT_S)))
            answer: T | Exception = ours.recv()
        except EOFError:
            process.join()
            raise FailedError(
                _("its process ended unexpectedly (exit status {status})", status=process.exitcode)
            ) from None
        finally:
            process.kill()
            process.join()
            ours.close()
            shutil.rmtree(job_dir, ignore_errors=True)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _fault(check: Check, found: Measured, distance: float | None, predicted: int | None) -> str:
    """Return what is wrong with a result; empty if nothing is."""
    if not np.isfinite(found.update).all():
        return _("the weights are no longer numbers")
    if not found.update.any():
        return _("the weights did not change")
    if distance is not None and not distance <= check.limit:
        return _("its result is not that of the reference")
    if predicted is not None and (found.used_bytes or found.peak_bytes) > _MEMORY_TOLERANCE * predicted:
        return _("it takes more memory than was predicted")
    return ""


def _out_of_time() -> str:
    return _("left out: the self-test would take too long")


def _distance(update: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(update - reference) / np.linalg.norm(reference))


def _write_images(folder: Path) -> None:
    """Write a few unlike images with captions; the same ones each time."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(_IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((_IMAGE_PX, _IMAGE_PX), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a pattern of colors, number {number}", encoding="utf-8")
