"""A sampling job, from top to bottom in the order of events.

    python -m trainer sample JOB_DIR

find the models -> load the base -> for each model and strength: apply it, draw its cells -> sheets. Each image is
written as soon as it is drawn; a run after a kill draws what is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from trainer.device import describe_device, is_out_of_memory, require_assigned_gpus
from trainer.errors import BadSpecError, FencedError, OutOfMemoryError
from trainer.exchange.files import atomic_write
from trainer.exchange.job_dir import read_sampling
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    ImageDrawn,
    Phase,
    PhaseBegan,
    PhaseProgress,
    SamplingFinished,
    SamplingStarted,
    Stopped,
)
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, RunOptions
from trainer.protocol.sampling import Cell, SamplingSpec, check_size
from trainer.protocol.settings import Base, Objective
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _
from trainer.report.grid_sheets import draw_grid_sheets
from trainer.reporter import Reporter
from trainer.tasks.base_sampler import BaseSampler
from trainer.tasks.drawing import SamplePlan
from trainer.training.failures import emit_failed
from trainer.training.run import KeptBase, StopRequest, StopRequestedError
from trainer.training.sampled_models import FoundModel, check_families, find_models, objective_of

#: Between two progress events.
_PROGRESS_INTERVAL_S = 1.0
#: What A1111 calls the samplers of the families.
_SAMPLERS = {"DPMSolverMultistepScheduler": "DPM++ 2M", "FlowMatchEulerDiscreteScheduler": "Euler"}


def sample(reporter: Reporter, stop: StopRequest, options: RunOptions, kept: KeptBase) -> int:
    """Draw the whole job, emit its terminal event, and return the exit status.

    Raises:
        FencedError: The job belongs to another attempt; no terminal event was emitted.
    """
    try:
        _draw_job(reporter, stop, options, kept)
    except StopRequestedError:
        drawn = sum(isinstance(event, ImageDrawn) for event in reporter.history)
        reporter.emit(Stopped, epoch=0, step=drawn, checkpoint=None)
        return EXIT_STOPPED
    except FencedError:
        raise
    except Exception as error:  # noqa: BLE001 - every failure becomes a terminal event
        # Whatever state it is in.
        kept.sampler = None
        if is_out_of_memory(error):
            error = OutOfMemoryError(
                _("The device ran out of memory, even with one image at once."), _("Draw smaller images.")
            )
        return emit_failed(reporter, error)
    return EXIT_FINISHED


def _draw_job(reporter: Reporter, stop: StopRequest, options: RunOptions, kept: KeptBase) -> None:
    began = time.monotonic()
    job_dir = reporter.job_dir
    try:
        spec = read_sampling(job_dir)
    except SpecError as error:
        raise BadSpecError(str(error), _("Correct sampling.json, or make the job again.")) from error
    if os.environ.get(NEEDS_GPU_VARIABLE):
        require_assigned_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    models = find_models(spec, job_dir)
    objective = objective_of(spec, models)
    was_warm = kept.sampler is not None and kept.sampler.fits(spec.base, objective)
    sampler = _load(kept, spec.base, objective)
    check_families(models, sampler.base)
    size = _size_of(spec, models, sampler)
    run = _GridRun(reporter=reporter, stop=stop, spec=spec, models=models, sampler=sampler, size=size)
    run.batch = sampler.largest_batch(size, options.micro_batch)
    stop.check()
    run.find_drawn()
    reporter.emit(
        SamplingStarted,
        device=describe_device(sampler.device),
        precision=sampler.precision.value,
        width=size[0],
        height=size[1],
        images=spec.images,
        already_drawn=len(run.drawn),
        was_warm=was_warm,
    )
    reporter.emit(PhaseBegan, phase=Phase.SAMPLING)
    run.draw()
    sampler.rest()
    sheets = draw_grid_sheets(job_dir, spec, size)
    reporter.emit(SamplingFinished, images=spec.images, sheets=sheets, seconds=time.monotonic() - began)


def _load(kept: KeptBase, base: Base, objective: Objective) -> BaseSampler:
    """Return the sampler of a base: the one that is kept, if it is of this base."""
    if kept.sampler is None or not kept.sampler.fits(base, objective):
        # Two bases may not fit into the memory.
        kept.sampler = None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kept.sampler = BaseSampler(base, objective, device)
    return kept.sampler


def _size_of(spec: SamplingSpec, models: Sequence[FoundModel], sampler: BaseSampler) -> Size:
    """Return the size of the images.

    Raises:
        BadSpecError: The base does not draw well at that size.
    """
    own = sampler.base.resolution
    trained = [model.spec.training.resolution or own for model in models if model.spec is not None]
    side = trained[0] if trained else own
    size = (spec.width or side, spec.height or side)
    try:
        check_size(size, [own, *trained])
    except SpecError as error:
        raise BadSpecError(str(error), "") from error
    return size


@dataclass(kw_only=True)
class _GridRun:
    """One run of a sampling job."""

    reporter: Reporter
    stop: StopRequest
    spec: SamplingSpec
    models: Sequence[FoundModel]
    sampler: BaseSampler
    size: Size
    #: Images drawn at once; halved if they do not fit.
    batch: int = 1
    #: Indices of the cells whose images are there.
    drawn: set[int] = field(default_factory=set)
    _reported_at: float = 0.0

    def find_drawn(self) -> None:
        """Find the images of earlier runs: a file that exists is whole."""
        for cell in self.spec.cells:
            if (self.reporter.job_dir / cell.path).is_file():
                self._record(cell)

    def draw(self) -> None:
        """Draw all cells that are missing."""
        missing = [cell for cell in self.spec.cells if cell.index not in self.drawn]
        for (model, strength), cells in groupby(missing, key=lambda cell: (cell.model, cell.strength)):
            left = list(cells)
            while left:
                try:
                    for cell, image in self._draw_cells(self.models[model], strength, left):
                        self._write(cell, image)
                except Exception as error:
                    if not is_out_of_memory(error) or self.batch == 1:
                        raise
                    self.batch //= 2
                    self.sampler.rest()
                left = [cell for cell in left if cell.index not in self.drawn]

    def _draw_cells(
        self, model: FoundModel, strength: float | None, cells: Sequence[Cell]
    ) -> Iterator[tuple[Cell, PILImage.Image]]:
        prompts = self.spec.prompts
        plan = [
            SamplePlan(prompt=prompts[cell.prompt].prompt, negative=prompts[cell.prompt].negative, seed=cell.seed)
            for cell in cells
        ]
        batches = self.sampler.draw(
            model.change,
            1.0 if strength is None else strength,
            plan,
            steps=self.spec.steps,
            guidance=self.spec.guidance,
            size=self.size,
            batch=self.batch,
            progress=self._count(len(self.drawn)),
        )
        position = 0
        with closing(batches):
            for images in batches:
                for image in images:
                    yield cells[position], image
                    position += 1

    def _count(self, before: int) -> Callable[[int], None]:
        def count(done: int) -> None:
            self.stop.check()
            self.reporter.keep_alive()
            now = time.monotonic()
            if now - self._reported_at >= _PROGRESS_INTERVAL_S:
                self._reported_at = now
                total = self.spec.images
                self.reporter.emit(PhaseProgress, phase=Phase.SAMPLING, done=min(before + done, total), total=total)

        return count

    def _write(self, cell: Cell, image: PILImage.Image) -> None:
        path = self.reporter.job_dir / cell.path
        path.parent.mkdir(exist_ok=True)
        info = PngInfo()
        info.add_text("parameters", self._parameters(cell))
        with atomic_write(path, durable=True) as partial:
            image.save(partial, format="PNG", pnginfo=info)
        self._record(cell)

    def _record(self, cell: Cell) -> None:
        self.drawn.add(cell.index)
        self.reporter.emit(ImageDrawn, cell=cell.index, path=cell.path)

    def _parameters(self, cell: Cell) -> str:
        """Describe an image as A1111 does (`create_infotext` of modules/processing.py), which others read, too."""
        model, prompt = self.models[cell.model], self.spec.prompts[cell.prompt]
        tag = f" <lora:{model.file_name}:{cell.strength:g}>" if model.file_name else ""
        sampler = type(self.sampler.base.sampler).__name__
        settings = {
            "Steps": self.spec.steps,
            "Sampler": _SAMPLERS.get(sampler, sampler),
            "CFG scale": f"{self.spec.guidance:g}",
            "Seed": cell.seed,
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model": Path(self.spec.base.source).stem,
            "Clip skip": self.spec.base.clip_skip if self.spec.base.clip_skip > 1 else None,
            "Trained model": model.label,
            "Strength": None if cell.strength is None else f"{cell.strength:g}",
            "Version": "Darkroom",
        }
        lines = [prompt.prompt + tag, f"Negative prompt: {prompt.negative}" if prompt.negative else ""]
        lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None))
        return "\n".join(line for line in lines if line)


def _quoted(value: object) -> str:
    """Quote a value as A1111 does (`quote` of modules/infotext_utils.py)."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
