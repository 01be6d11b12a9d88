"""Stages: parts of a training, one after another, each with its own epochs, rates and frozen layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from trainer.protocol.frozen import Frozen
from trainer.protocol.settings.training import Arguments, OptimizerKind, ScheduleKind, Training

#: A block by its dotted name or the beginning of it, with `*` and `?`: `unet.up_blocks`, `up_blocks.1`,
#: `text_encoder`, `*.attn2`, `head`.
BlockPattern = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Unfreeze(Frozen):
    """Blocks that are trained from a later epoch on."""

    blocks: BlockPattern
    #: Epoch of the stage, from 1.
    from_epoch: int = Field(ge=1, le=1000)


class Stage(Frozen):
    """One part of a training. What is None is as in `training`."""

    name: str = Field(default="", max_length=40)
    epochs: int = Field(ge=1, le=1000)
    learning_rate: float | None = Field(default=None, ge=1e-7, le=10.0)
    text_encoder_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    layer_decay: float | None = Field(default=None, ge=0.1, le=1)
    optimizer: OptimizerKind | None = None
    optimizer_arguments: Arguments | None = None
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    schedule: ScheduleKind | None = None
    schedule_arguments: Arguments | None = None
    warmup_share: float | None = Field(default=None, ge=0, le=0.5)
    warmup_steps: int | None = Field(default=None, ge=0, le=100_000)
    #: Side of the training pictures, px; validation stays at `training.resolution`, so that epochs can be compared.
    resolution: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    #: Of what the method trains, only these blocks; empty: all.
    train: tuple[BlockPattern, ...] = Field(default=(), max_length=64)
    #: Of those, not these.
    freeze: tuple[BlockPattern, ...] = Field(default=(), max_length=64)
    #: Blocks that join at a later epoch of the stage.
    unfreeze: tuple[Unfreeze, ...] = Field(default=(), max_length=64)
    #: Share of an epoch for each dataset, the main one first, then those of `mix`; 0 leaves one out. Empty: as `mix`.
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(), max_length=17)


def resolved(stage: Stage, training: Training) -> Stage:
    """The stage with what it leaves open filled from `training`; `resolution` stays open where both leave it."""
    values = {
        name: getattr(training, name)
        for name in Stage.model_fields
        if name in Training.model_fields and getattr(stage, name) is None
    }
    if stage.warmup_share is not None and stage.warmup_steps is None:
        # The stage asks for a share: the steps of `training` would go before it.
        values["warmup_steps"] = None
    if stage.optimizer not in {None, training.optimizer} and stage.optimizer_arguments is None:
        values["optimizer_arguments"] = {}
    if stage.schedule not in {None, training.schedule} and stage.schedule_arguments is None:
        values["schedule_arguments"] = {}
    return stage.model_copy(update=values)
