"""One run of one job: everything that the recipe hands from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.dataset.mixing import Mixture
from trainer.dataset.repeats import Repeats
from trainer.models.lora import load_lora_state, lora_state
from trainer.protocol.events import Phase, PhaseBegan
from trainer.protocol.report import Split
from trainer.protocol.spec import Spec
from trainer.reporter import Reporter
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.examples import Examples, View
from trainer.training.batches import deal_views, epoch_steps, steps_per_epoch
from trainer.training.checkpoints import Checkpoints, TrainingState
from trainer.training.stop import StopRequest


@dataclass(kw_only=True)
class Session:
    """Mutable only in `state`, `examples` and the optimizer."""

    job_dir: Path
    spec: Spec
    mixture: Mixture
    repeats: Repeats
    reporter: Reporter
    stop: StopRequest
    accelerator: Accelerator
    task: DiffusionTask
    checkpoints: Checkpoints
    #: End the training with the current epoch, whatever the settings say (`run --finish`).
    is_finishing: bool
    state: TrainingState = field(default_factory=TrainingState)
    examples: dict[Split, Examples] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: torch.optim.lr_scheduler.LRScheduler = field(init=False)

    @property
    def steps_per_epoch(self) -> int:
        training = self.spec.training
        return steps_per_epoch(
            self.repeats.most_by_size(self.examples[Split.TRAIN].sizes),
            views=self.repeats.views,
            batch_size=training.batch_size,
            micro_batch_size=training.effective_micro_batch_size,
        )

    def views_of(self, epoch: int) -> list[tuple[tuple[View, ...], ...]]:
        """The steps of an epoch, from 1: what each looks at, micro-batch by micro-batch."""
        training, train = self.spec.training, self.examples[Split.TRAIN]
        steps = epoch_steps(
            train.sizes,
            repeats=self.repeats.of_epoch(train.sizes, epoch),
            batch_size=training.batch_size,
            micro_batch_size=training.effective_micro_batch_size,
            seed=training.seed,
            epoch=epoch,
            number=self.steps_per_epoch,
        )
        return deal_views(
            steps,
            contents=[image.pixels_sha256 or image.source for image in train.images],
            variants=train.variant_counts,
            captions=[len(orders) for orders in train.caption_orders],
            seed=training.seed,
            epoch=epoch,
        )

    @property
    def total_steps(self) -> int:
        return self.spec.training.epochs * self.steps_per_epoch

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def begin(self, phase: Phase) -> None:
        self.reporter.say(PhaseBegan, phase=phase)

    def save_checkpoint(self) -> Path:
        """Keep the state as it is now, resumable."""
        weights = {name: lora_state(model) for name, model in self.task.trained_models.items()}
        optimizer = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        if self.accelerator.scaler is not None:
            optimizer["scaler"] = self.accelerator.scaler.state_dict()
        return self.checkpoints.save(self.state, weights, optimizer)

    def load_checkpoint(self, path: Path) -> None:
        """Go on exactly where `save_checkpoint` left.

        Raises:
            CheckpointError: it is damaged or of another job.
        """
        self.state = self.checkpoints.load_state(path)
        self.load_weights(path)
        optimizer = self.checkpoints.load_optimizer(path)
        self.optimizer.load_state_dict(optimizer["optimizer"])
        self.schedule.load_state_dict(optimizer["schedule"])
        if self.accelerator.scaler is not None and "scaler" in optimizer:
            self.accelerator.scaler.load_state_dict(optimizer["scaler"])

    def load_weights(self, path: Path) -> None:
        """Only the weights of a checkpoint: the best one, for the test and the export."""
        for name, model in self.task.trained_models.items():
            load_lora_state(model, self.checkpoints.load_weights(path, name))
