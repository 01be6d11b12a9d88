"""One run of one job: everything that the recipe hands from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.dataset.split.mixing import Mixture, plan_repeats
from trainer.dataset.split.repeats import Repeats
from trainer.protocol.events import Phase, PhaseBegan
from trainer.protocol.report import Split
from trainer.protocol.settings import OptimizerKind
from trainer.protocol.spec import Spec
from trainer.reporter import Reporter
from trainer.tasks.examples import Examples, View
from trainer.tasks.task import FrozenLoss, Task
from trainer.training.batches import deal_views, epoch_steps, steps_per_epoch
from trainer.training.checkpoints import Checkpoints, TrainingState
from trainer.training.ema import Ema
from trainer.training.fitting import Fit
from trainer.training.optimizers import evaluation_mode, make_optimizer
from trainer.training.processes import Processes
from trainer.training.schedules import make_schedule
from trainer.training.stages import StageRun, lay_out, parameter_groups, set_trainable, stage_at
from trainer.training.start import Start
from trainer.training.stop import StopRequest


@dataclass(kw_only=True)
class Session:
    """Mutable only in `state`, `examples` and what a stage trains with."""

    job_dir: Path
    spec: Spec
    reporter: Reporter
    stop: StopRequest
    accelerator: Accelerator
    processes: Processes
    task: Task
    checkpoints: Checkpoints
    #: Precision and micro-batch on this machine.
    fit: Fit
    #: What whoever started this run asked for.
    start: Start
    state: TrainingState = field(default_factory=TrainingState)
    #: At the task's own resolution.
    examples: dict[Split, Examples] = field(default_factory=dict)
    #: Training pictures at the resolutions of the stages.
    train_at: dict[int, Examples] = field(default_factory=dict)
    #: The base model's losses on frozen triples, by what is measured.
    base_losses: dict[str, list[FrozenLoss]] = field(default_factory=dict, repr=False)
    ema: Ema | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    #: Number of the stage that optimizer and schedule are of.
    built_stage: int = field(init=False, default=0)

    @property
    def mixture(self) -> Mixture:
        return self.task.mixture

    @cached_property
    def stages(self) -> tuple[StageRun, ...]:
        return lay_out(self.spec.plan)

    @property
    def stage(self) -> StageRun:
        """The stage of the epoch that is being trained."""
        return stage_at(self.stages, self.state.epoch)

    def resolution_of(self, stage: StageRun) -> int:
        return stage.settings.resolution or self.task.resolution

    def train_examples(self, stage: StageRun) -> Examples:
        """The training pictures at the resolution of a stage."""
        return self.train_at[self.resolution_of(stage)]

    def repeats(self, stage: StageRun) -> Repeats:
        """How often each training picture is seen in an epoch of a stage."""
        return plan_repeats(self.mixture, self.spec.training.seed, stage.settings.shares)

    def steps_per_epoch(self, stage: StageRun) -> int:
        training, repeats = self.spec.training, self.repeats(stage)
        return steps_per_epoch(
            repeats.most_by_size(self.train_examples(stage).sizes),
            views=repeats.views,
            batch_size=training.batch_size,
            micro_batch_size=self.fit.micro_batch_size,
        )

    def warmup_steps(self, stage: StageRun) -> int:
        """Optimizer steps over which the rate of a stage rises."""
        settings, steps = stage.settings, stage.settings.epochs * self.steps_per_epoch(stage)
        return round((settings.warmup_share or 0.0) * steps) if settings.warmup_steps is None else settings.warmup_steps

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return sum(stage.settings.epochs * self.steps_per_epoch(stage) for stage in self.stages)

    def views_of(self, epoch: int) -> list[tuple[tuple[View, ...], ...]]:
        """The steps of an epoch, from 1: what each looks at, micro-batch by micro-batch."""
        stage = stage_at(self.stages, epoch)
        training, train = self.spec.training, self.train_examples(stage)
        steps = epoch_steps(
            train.sizes,
            repeats=self.repeats(stage).of_epoch(train.sizes, epoch),
            batch_size=training.batch_size,
            micro_batch_size=self.fit.micro_batch_size,
            seed=training.seed,
            epoch=epoch,
            number=self.steps_per_epoch(stage),
        )
        return deal_views(
            steps,
            contents=train.contents,
            variants=train.variant_counts,
            captions=[len(orders) for orders in train.caption_orders],
            seed=training.seed,
            epoch=epoch,
        )

    def begin_stage(self) -> None:
        """Freeze and unfreeze for the current epoch; a new stage gets an optimizer and a schedule of its own."""
        stage = self.stage
        if self.built_stage != stage.number:
            self._build(stage)
        set_trainable(self.task.trained, stage.settings, epoch=stage.epoch_of(self.state.epoch))

    def _build(self, stage: StageRun) -> None:
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
            steps=settings.epochs * self.steps_per_epoch(stage),
            warmup_steps=self.warmup_steps(stage),
            arguments=settings.schedule_arguments or {},
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.built_stage = stage.number

    @property
    def stage_averages(self) -> bool:
        """Whether the optimizer keeps averages that are judged instead of what it trains with."""
        return self.stages[self.built_stage - 1].settings.optimizer is OptimizerKind.SCHEDULE_FREE_ADAMW

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that the optimizer holds."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def begin(self, phase: Phase) -> None:
        self.reporter.say(PhaseBegan, phase=phase)

    def check(self) -> None:
        """To be called between two pieces of long work: it says that the work goes on, and is where a stop is heard.

        Raises:
            StopRequestedError: somebody asked this process to stop.
        """
        self.stop.check()
        self.reporter.say_working()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The weights that are validated, sampled and exported: averaged ones where the settings ask for them."""
        if self.ema is not None:
            with self.ema.swapped():
                yield
        else:
            with evaluation_mode(self.optimizer):
                yield

    def save_checkpoint(self) -> Path:
        """Keep the state as it is now, resumable; every process must call it, the main one writes.

        Raises:
            FencedError: the job belongs to another attempt; its checkpoints are as they were.
        """
        path = self.checkpoints.path(self.state.step)
        if self.processes.is_main:
            weights = _flat(self.task.trained.state())
            if self.ema is not None or self.stage_averages:
                with self.evaluated():
                    averaged = {name: tensor.clone() for name, tensor in _flat(self.task.trained.state()).items()}
                differing = {n: t for n, t in averaged.items() if not torch.equal(t, weights[n])}
                weights |= {f"{EVALUATED}{name}": tensor for name, tensor in differing.items()}
            optimizer: dict[str, Any] = {
                "stage": self.built_stage,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            if self.ema is not None:
                optimizer["ema"] = self.ema.state_dict()
            if self.accelerator.scaler is not None:
                optimizer["scaler"] = self.accelerator.scaler.state_dict()
            self.checkpoints.save(self.state, weights, optimizer, before_it_counts=self.reporter.check_fence)
        self.processes.wait()
        return path

    def load_checkpoint(self, path: Path) -> None:
        """Go on exactly where `save_checkpoint` left.

        Raises:
            CheckpointError: it is damaged or of another job.
        """
        self.state = self.checkpoints.load_state(path)
        weights = self.checkpoints.load_weights(path)
        self.task.trained.load(_nested({n: t for n, t in weights.items() if not n.startswith(EVALUATED)}))
        kept = self.checkpoints.load_optimizer(path)
        if self.ema is not None and "ema" in kept:
            self.ema.load_state_dict(kept["ema"])
        if self.accelerator.scaler is not None and "scaler" in kept:
            self.accelerator.scaler.load_state_dict(kept["scaler"])
        # At the end of a stage the kept optimizer is of the stage before: the next begins with one of its own.
        self._build(self.stages[kept["stage"] - 1])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])

    def load_best(self) -> None:
        """Only the weights of the best checkpoint, as they were validated: for the test and the export."""
        weights = self.checkpoints.load_weights(self.checkpoints.path(self.state.best_step))
        evaluated = {n.removeprefix(EVALUATED): t for n, t in weights.items() if n.startswith(EVALUATED)}
        trained = {name: tensor for name, tensor in weights.items() if not name.startswith(EVALUATED)}
        self.task.trained.load(_nested(trained | evaluated))


#: Before the names of weights that were validated, where they are not those that are trained.
EVALUATED = "evaluated:"


def _flat(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{module}:{name}": tensor for module, tensors in weights.items() for name, tensor in tensors.items()}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    nested: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in flat.items():
        module, _, name = full_name.partition(":")
        nested.setdefault(module, {})[name] = tensor
    return nested
