"""Tries on this machine what a training may use: is it right, how fast is it, how much memory does it take.

Each check is a real job of a few steps in a process of its own, so that its peak memory is its own, and the crash of a
driver ends nothing else. It is compared with a reference job that starts from the same weights and draws the same
noise: the distance between the two updates of the weights, relative to the reference's (0: the same, 1: unrelated or
none). They train by SGD, whose updates are proportional to the gradients; AdamW would make a whole step of the
rounding of a tiny gradient.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.dataset.preparing.prepare import prepare
from trainer.device import choose_precision, is_out_of_memory, peak_memory_bytes
from trainer.errors import DatasetError, TrainerError, first_line
from trainer.exchange.job_dir import write_spec
from trainer.models.base import TINY
from trainer.protocol.devices import Outcome, SelfTestResult
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import MethodKind, SplitKind
from trainer.protocol.spec import SpecError, make_spec, merge
from trainer.protocol.text import _, duration
from trainer.protocol.training_settings import OptimizerKind, Precision
from trainer.reporter import Reporter
from trainer.tasks.diffusion import DiffusionTask
from trainer.training.recipe import prepare_session
from trainer.training.run import StopRequest
from trainer.training.session import Session
from trainer.training.step import take_step

Settings: TypeAlias = Mapping[str, Any]

#: Modules that are imported late, when a model is loaded and a method attached.
_PRELOADED = (
    "trainer.models.methods.adapters",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
#: Steps whose update is compared; further steps whose time is taken.
_COMPARED_STEPS, _TIMED_STEPS = 2, 3
_IMAGES, _IMAGE_PX = 6, 512
#: Seconds for one job. Compiling a model takes minutes.
_TIMEOUT_S = 900.0
#: Of an update that is the same but for the order of additions.
_ROUNDING = 1e-3
#: A loss scale that no step on the tiny base overflows.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The settings of a job, and the kernels that torch may use."""

    base: str = TINY
    settings: Settings = field(default_factory=dict)
    #: The only implementation of attention that is allowed (`SDPBackend`); empty: torch chooses.
    attention: str = ""
    #: Not channels last.
    is_contiguous: bool = False


@dataclass(frozen=True, kw_only=True)
class Check:
    """A variant, and the one that it must agree with."""

    name: str
    variant: Variant
    reference: Variant | None = None
    limit: float = 0.0
    #: Why this machine cannot do it, if it cannot.
    unavailable: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One job of a few steps."""

    step_s: float
    peak_bytes: int
    #: Of all trained weights, by the compared steps.
    update: NDArray[np.float32]


class UnavailableError(Exception):
    """This machine has no means for the variant, or not the memory."""


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


def check_of(base: str) -> Check:
    """Return the check of a model: a LoRA at its own resolution, one image at a time."""
    precision = choose_precision(Precision.AUTO) if torch.cuda.is_available() else Precision.BF16
    settings = {"training": {"precision": precision, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1e-3}}
    return Check(name=f"{Path(base).name}, {precision}", variant=Variant(base=base, settings=settings))


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
        self._answers: dict[str, Measured | UnavailableError | _FailedError] = {}

    def __enter__(self) -> Self:
        """Make the dataset.

        Raises:
            DatasetError: It cannot be prepared.
        """
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="selftest-")))
        _write_images(self._folder / "images")
        # Preparing has a forkserver too, and a process has only one: that of another process.
        preparing = multiprocessing.get_context("spawn").Process(
            target=_prepare, args=(self._folder / "images", self._folder / "dataset")
        )
        preparing.start()
        preparing.join()
        if preparing.exitcode:
            raise DatasetError(
                _("The images of the self-test cannot be prepared."),
                _("The log above tells why; `make setup` installs anew."),
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def run(self, check: Check) -> SelfTestResult:
        """Measure the variant of a check, and its reference unless an earlier check did."""
        if check.unavailable:
            return SelfTestResult(name=check.name, outcome=Outcome.UNAVAILABLE, note=check.unavailable)
        try:
            found = self._measure(check.variant)
            reference = None if check.reference is None else self._measure(check.reference)
        except UnavailableError as error:
            return SelfTestResult(name=check.name, outcome=Outcome.UNAVAILABLE, note=str(error))
        except _FailedError as error:
            return SelfTestResult(name=check.name, outcome=Outcome.FAILED, note=str(error))
        result = SelfTestResult(
            name=check.name, outcome=Outcome.PASSED, step_s=found.step_s, peak_bytes=found.peak_bytes
        )
        if not np.isfinite(found.update).all() or not found.update.any():
            note = _("the weights did not change") if not found.update.any() else _("the weights are no longer numbers")
            return result.model_copy(update={"outcome": Outcome.FAILED, "note": note})
        if reference is None:
            return result
        distance = _distance(found.update, reference.update)
        is_right = distance <= check.limit
        return result.model_copy(
            update={
                "distance": distance,
                "limit": check.limit,
                "outcome": Outcome.PASSED if is_right else Outcome.FAILED,
                "note": "" if is_right else _("its result is not that of the reference"),
            }
        )

    def _measure(self, variant: Variant) -> Measured:
        """Return what a job measured; each is run once.

        Raises:
            UnavailableError: This machine cannot do it.
            _FailedError: It failed.
        """
        answer = self._answers.get(repr(variant))
        if answer is None:
            answer = self._answers[repr(variant)] = self._ask(variant)
        if isinstance(answer, Measured):
            return answer
        raise answer

    def _ask(self, variant: Variant) -> Measured | UnavailableError | _FailedError:
        """Run a job in a process of its own."""
        ours, theirs = self._context.Pipe()
        job_dir = self._folder / f"job-{len(self._answers)}"
        process = self._context.Process(target=_answer, args=(theirs, variant, self._folder / "dataset", job_dir))
        process.start()
        theirs.close()
        try:
            if not ours.poll(_TIMEOUT_S):
                return _FailedError(_("it took longer than {limit}", limit=duration(_TIMEOUT_S)))
            answer: Measured | UnavailableError | _FailedError = ours.recv()
        except EOFError:
            process.join()
            return _FailedError(_("its process died (exit status {status})", status=process.exitcode))
        finally:
            process.kill()
            process.join()
            ours.close()
            shutil.rmtree(job_dir, ignore_errors=True)
        return answer


class _FailedError(Exception):
    """A job failed; the message says why."""


def _fault(update: NDArray[np.float32], distance: float | None, limit: float) -> str:
    """Say what is wrong with an update; empty if nothing is."""
    if not np.isfinite(update).all():
        return _("its weights are no longer numbers")
    if not update.any():
        return _("its weights did not change")
    if distance is not None and not distance <= limit:
        return _("its weights changed otherwise than those of the reference")
    return ""


def _distance(update: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(update - reference) / np.linalg.norm(reference))


def _prepare(images: Path, dataset: Path) -> None:
    prepare([images], dataset)


def _write_images(folder: Path) -> None:
    """Write a few unlike images with captions; the same ones each time."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(_IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((_IMAGE_PX, _IMAGE_PX), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a pattern of colors, number {number}", encoding="utf-8")


# -- in the process of a job -------------------------------------------------------------------------------------------


def _answer(connection: Connection, variant: Variant, dataset: Path, job_dir: Path) -> None:
    """Measure a job and send the result."""
    answer: Measured | UnavailableError | _FailedError
    try:
        answer = measure(variant, dataset, job_dir)
    except Exception as error:  # noqa: BLE001 - any failure is a result
        if is_out_of_memory(error):
            answer = UnavailableError(_("does not fit into the memory"))
        elif "No viable backend" in str(error) or "No available kernel" in str(error):
            answer = UnavailableError(_("torch has none for this device"))
        else:
            is_ours = isinstance(error, TrainerError | SpecError)
            answer = _FailedError(str(error) if is_ours else first_line(error))
    connection.send(answer)


def measure(variant: Variant, dataset: Path, job_dir: Path) -> Measured:
    """Train a job for a few steps.

    Raises:
        TrainerError, RuntimeError: It cannot be trained.
    """
    defaults = {
        "training": {
            "batch_size": 2,
            "micro_batch_size": 2,
            "optimizer": OptimizerKind.SGD,
            "learning_rate": 0.5,
            "weight_decay": 0.0,
            "trigger": "xyz",
        }
    }
    fixed = {
        "base": {"source": variant.base},
        "dataset": str(dataset),
        "name": "selftest",
        "split": {"kind": SplitKind.ALL},
        "training": {"repeats": _COMPARED_STEPS + _TIMED_STEPS},
    }
    write_spec(job_dir, make_spec(merge(defaults, variant.settings, fixed)))
    allowed = sdpa_kernel([getattr(SDPBackend, variant.attention)]) if variant.attention else nullcontext()
    with StopRequest() as stop, Reporter(job_dir) as reporter, allowed:
        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        if variant.is_contiguous:
            assert isinstance(session.task, DiffusionTask)
            session.task.base.denoiser.to(memory_format=torch.contiguous_format)
        if (scaler := session.accelerator.scaler) is not None:
            # It starts so high that the first steps of a job are skipped, which is no fault.
            scaler.load_state_dict({**scaler.state_dict(), "scale": _LOSS_SCALE})
        return _measure_steps(session)


def _measure_steps(session: Session) -> Measured:
    steps = session.epoch_views(1)
    before = _weights(session)
    session.task.train_mode(True)
    for number in range(_COMPARED_STEPS):
        take_step(session, steps[number], number)
    update = _weights(session) - before
    seconds = []
    for number in range(_COMPARED_STEPS, _COMPARED_STEPS + _TIMED_STEPS):
        began = time.perf_counter()
        # Reading the loss waits for the device.
        take_step(session, steps[number], number).item()
        seconds.append(time.perf_counter() - began)
    return Measured(step_s=statistics.median(seconds), peak_bytes=peak_memory_bytes(session.task.device), update=update)


def _weights(session: Session) -> NDArray[np.float32]:
    """Return all trained weights as one vector."""
    parameters = [parameter for _name, parameter in session.task.trained.named_parameters()]
    flat: NDArray[np.float32] = torch.cat([each.detach().float().flatten().cpu() for each in parameters]).numpy().copy()
    return flat
