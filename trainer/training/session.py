"""The state of one run: what the recipe's steps share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.dataset.split.mixing import Mixture, Repeats, plan_repeats
from trainer.device import Processes
from trainer.errors import CheckpointError
from trainer.protocol.events import Phase, PhaseBegan, PhaseProgress
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.protocol.spec import Spec
from trainer.protocol.text import _
from trainer.reporter import Reporter
from trainer.tasks.examples import Examples, ImageView
from trainer.tasks.task import FrozenLoss, Task
from trainer.training.averaging import Ema, averages_weights, evaluation_mode
from trainer.training.batch_size_finder import MemoryPlan
from trainer.training.batches import assign_views, epoch_steps
from trainer.training.checkpoints import EVALUATED, Checkpoints, TrainingState, by_module, continued, load_start
from trainer.training.fused_backward import state_in_fp32
from trainer.training.optimizers import make_optimizer
from trainer.training.run import StopRequest
from trainer.training.schedules import make_schedule
from trainer.training.stages import (
    StageRun,
    parameter_groups,
    plan_stages,
    set_trainable,
    stage_at,
    steps_per_epoch,
    warmup_steps,
)

#: Seconds between two events that count steps, or the parts of a phase: reading the loss synchronizes with the device,
#: too slow for every step.
PROGRESS_INTERVAL_S = 1.0


@dataclass(kw_only=True)
class Session:
    """One run of one job. Only the state, the examples and what belongs to the current stage change."""

    job_dir: Path
    spec: Spec
    reporter: Reporter
    stop: StopRequest
    accelerator: Accelerator
    processes: Processes
    task: Task
    checkpoints: Checkpoints
    memory_plan: MemoryPlan
    options: RunOptions
    state: TrainingState = field(default_factory=TrainingState)
    #: At the task's own resolution.
    examples: dict[Split, Examples] = field(default_factory=dict)
    #: Training images at the resolutions of the stages.
    train_by_resolution: dict[int, Examples] = field(default_factory=dict)
    #: Losses of the base model on the frozen triples, by evaluation set.
    base_losses: dict[str, list[FrozenLoss]] = field(default_factory=dict, repr=False)
    ema: Ema | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    #: Number of the stage for which `optimizer` and `schedule` were made.
    built_stage: int = field(init=False, default=0)
    #: Learning rate of each parameter group in the last step; the optimizer has that of the next one.
    step_rates: Sequence[float] = ()
    _phase: Phase = Phase.LOADING
    _counted_at: float = 0.0

    # -- the plan -----------------------------------------------------------------------------------------------------

    @property
    def mixture(self) -> Mixture:
        return self.task.mixture

    @cached_property
    def stages(self) -> tuple[StageRun, ...]:
        return plan_stages(self.spec.plan)

    @property
    def stage(self) -> StageRun:
        """The stage of the current epoch."""
        return stage_at(self.stages, self.state.epoch)

    @property
    def preview_examples(self) -> Examples:
        """The images whose captions are the sample prompts if the spec has none."""
        validation = self.examples[Split.VALIDATION]
        return validation if validation.images else self.examples[Split.TRAIN]

    def resolution_of(self, stage: StageRun) -> int:
        return stage.settings.resolution or self.task.resolution

    def train_examples(self, stage: StageRun) -> Examples:
        """Return the training images at the resolution of a stage."""
        return self.train_by_resolution[self.resolution_of(stage)]

    def repeats(self, stage: StageRun) -> Repeats:
        """Return how often each training image is seen in an epoch of a stage."""
        return plan_repeats(self.mixture, self.spec.training.seed, stage.settings.shares)

    def steps_per_epoch(self, stage: StageRun) -> int:
        """Return the number of optimizer steps of each epoch of a stage; the last one may have fewer images."""
        return steps_per_epoch(self.repeats(stage).views, self.spec.training.batch_size)

    def steps_of(self, stage: StageRun) -> int:
        """Return the number of optimizer steps of a stage; none of what is beyond `training.max_steps`."""
        planned, most = self._planned_steps(stage), self.spec.training.max_steps
        if most is None:
            return planned
        before = sum(self._planned_steps(each) for each in self.stages if each.number < stage.number)
        return max(0, min(planned, most - before))

    def _planned_steps(self, stage: StageRun) -> int:
        return stage.settings.epochs * self.steps_per_epoch(stage)

    @cached_property
    def epochs(self) -> int:
        """The last epoch: that of the last stage, or the one that reaches `training.max_steps`."""
        last = [stage for stage in self.stages if self.steps_of(stage)][-1]
        return last.first_epoch - 1 + ceil(self.steps_of(last) / self.steps_per_epoch(last))

    def warmup_steps(self, stage: StageRun) -> int:
        """Return the number of optimizer steps over which the rate of a stage rises."""
        return warmup_steps(stage.settings, self.steps_of(stage))

    @cached_property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole training."""
        return sum(map(self.steps_of, self.stages))

    @property
    def micro_batch_size(self) -> int:
        """The most images in memory at once: as the plan says, as this start allows, and as fitted so far."""
        limits = (self.memory_plan.micro_batch_size, self.options.micro_batch, self.state.micro_batch_limit)
        return min(limit for limit in limits if limit is not None)

    def epoch_views(self, epoch: int) -> list[tuple[ImageView, ...]]:
        """Return the steps of an epoch (from 1)."""
        stage = stage_at(self.stages, epoch)
        training, train = self.spec.training, self.train_examples(stage)
        steps = epoch_steps(
            train.sizes,
            repeats=self.repeats(stage).of_epoch(train.sizes, epoch),
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
        )
        left = self.steps_of(stage) - (epoch - stage.first_epoch) * len(steps)
        return assign_views(
            steps[:left],
            contents=train.contents,
            variants=train.variant_counts,
            captions=[len(orders) for orders in train.caption_orders],
            seed=training.seed,
            epoch=epoch,
        )

    # -- events and stop requests -------------------------------------------------------------------------------------

    def begin_phase(self, phase: Phase) -> None:
        self._phase = phase
        self.reporter.emit(PhaseBegan, phase=phase)

    def count(self, done: int, total: int) -> None:
        """Report how far the current phase is; also `check_stop`.

        Raises:
            StopRequestedError: This process was asked to stop.
        """
        self.report_count(done, total)
        self.check_stop()

    def report_count(self, done: int, total: int) -> None:
        """Emit how far the current phase is, about once a second."""
        now = time.monotonic()
        if total and now - self._counted_at >= PROGRESS_INTERVAL_S:
            self._counted_at = now
            self.reporter.emit(PhaseProgress, phase=self._phase, done=min(done, total), total=total)

    def check_stop(self) -> None:
        """Emit a keep-alive if due, and leave if a stop was requested. Call this between two pieces of long work.

        Raises:
            StopRequestedError: This process was asked to stop.
        """
        self.stop.check()
        self.reporter.keep_alive()

    # -- optimizer and weights ----------------------------------------------------------------------------------------

    def begin_stage(self) -> None:
        """Freeze and unfreeze for the current epoch; at the start of a stage, make its optimizer and schedule."""
        stage = self.stage
        if self.built_stage != stage.number:
            self._make_optimizer(stage)
        set_trainable(self.task.trained, stage.settings, epoch=stage.epoch_in_stage(self.state.epoch))

    def _make_optimizer(self, stage: StageRun) -> None:
        settings = stage.settings
        assert settings.optimizer is not None
        assert settings.schedule is not None
        optimizer = make_optimizer(
            settings.optimizer,
            parameter_groups(self.task.trained, settings),
            weight_decay=settings.weight_decay or 0.0,
            arguments=settings.optimizer_arguments or {},
        )
        self.schedule = make_schedule(
            settings.schedule,
            optimizer,
            steps=self.steps_of(stage),
            warmup_steps=self.warmup_steps(stage),
            arguments=settings.schedule_arguments or {},
        )
        # accelerate keeps every optimizer that it prepared: it would hold the moments of all past stages, and divide
        # the gradients by the loss scale once for each.
        self.accelerator.free_memory()
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.built_stage = stage.number

    @property
    def has_averaged_weights(self) -> bool:
        """True if evaluation uses averages of the weights: EMA or a schedule-free optimizer."""
        return self.ema is not None or averages_weights(self.optimizer)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Swap in the weights to validate, sample and export: averages if there are any."""
        if self.ema is not None:
            with self.ema.swapped():
                yield
        else:
            with evaluation_mode(self.optimizer):
                yield

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> Path:
        """Save the current state. Every rank must call this; rank 0 writes.

        Raises:
            FencedError: The job belongs to another attempt; its checkpoints are unchanged.
        """
        path = self.checkpoints.path(self.state.step)
        if self.processes.is_main:
            weights = self._trained_weights()
            if self.has_averaged_weights:
                with self.evaluation_weights():
                    averaged = {name: tensor.clone() for name, tensor in self._trained_weights().items()}
                differing = {n: t for n, t in averaged.items() if not torch.equal(t, weights[n])}
                weights |= {f"{EVALUATED}{name}": tensor for name, tensor in differing.items()}
            self.checkpoints.save(self.state, weights, self._optimizer_state(), before_commit=self.reporter.check_fence)
        self.processes.barrier()
        return path

    def load_checkpoint(self, path: Path) -> None:
        """Restore what `save_checkpoint` saved.

        Raises:
            CheckpointError: It is damaged or from another job.
        """
        self.state = continued(self.checkpoints.load_state(path), self.spec)
        weights = self.checkpoints.load_weights(path)
        self.task.trained.load(by_module({n: t for n, t in weights.items() if not n.startswith(EVALUATED)}))
        saved = self.checkpoints.load_optimizer(path)
        if self.ema is not None and "ema" in saved:
            self.ema.load_state_dict(saved["ema"])
        if self.accelerator.scaler is not None and "scaler" in saved:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        # At the end of a stage the saved optimizer is that of the stage; the next stage makes its own.
        self._make_optimizer(self.stages[saved["stage"] - 1])
        with state_in_fp32(self.parameters):
            self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])

    def load_best(self) -> None:
        """Load the best checkpoint's weights as they were validated, for the test and the export."""
        best = self.checkpoints.load_evaluated(self.checkpoints.path(self.state.best_step))
        self.task.trained.load(by_module(best))

    def load_start(self) -> None:
        """Load the weights of an earlier job or of a file that this job starts from, if there are any.

        Raises:
            CheckpointError: They are missing or damaged, or do not fit this job.
        """
        method, trained = self.spec.method, self.task.trained
        if method.start_sha256 is not None:
            tensors = load_start(self.job_dir, method.start_sha256)
            is_of_a_job = all(":" in name for name in tensors)
            trained.load(by_module(tensors) if is_of_a_job else trained.weights_from(tensors))
        elif method.start_from:
            raise CheckpointError(
                _("{path}, to start from, was not copied into the job folder.", path=method.start_from),
                _("Make the job with `python -m trainer new`."),
            )

    def _trained_weights(self) -> dict[str, Tensor]:
        modules = self.task.trained.state()
        return {f"{module}:{name}": tensor for module, tensors in modules.items() for name, tensor in tensors.items()}

    def _optimizer_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "stage": self.built_stage,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state
