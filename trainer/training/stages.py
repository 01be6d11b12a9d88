"""Stages of a training: which stage an epoch belongs to, what it trains, and at which learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn

from trainer.dataset.split.mixing import Mixture, plan_repeats
from trainer.errors import BadSpecError
from trainer.models.methods.layers import matches
from trainer.models.methods.trained import Trained
from trainer.protocol.events import TrainedPart
from trainer.protocol.spec import Spec, SpecError, allowed_range
from trainer.protocol.text import _
from trainer.protocol.training_settings import Stage
from trainer.training.schedules import check_warmup

#: Substrings of peft's parameter names: DoRA magnitudes and (IA)³ factors are not neutral at 0, where decay pulls them.
_SCALE_NAMES = ("lora_magnitude_vector", "ia3_l")


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage and its position in the training."""

    #: From 1.
    number: int
    settings: Stage
    #: Epoch of the training, from 1.
    first_epoch: int

    @property
    def last_epoch(self) -> int:
        return self.first_epoch + self.settings.epochs - 1

    @property
    def title(self) -> str:
        return self.settings.name or _("stage {n}", n=self.number)

    def epoch_in_stage(self, epoch: int) -> int:
        """Convert an epoch of the training to an epoch of the stage, from 1."""
        return epoch - self.first_epoch + 1

    def starts_or_unfreezes_at(self, epoch: int) -> bool:
        """True if the stage starts, or unfreezes blocks, with this epoch of the training."""
        return epoch == self.first_epoch or any(
            unfreeze.from_epoch == self.epoch_in_stage(epoch) for unfreeze in self.settings.unfreeze
        )


def plan_stages(plan: Sequence[Stage]) -> tuple[StageRun, ...]:
    """Number the stages and lay them out one after another."""
    runs: list[StageRun] = []
    for number, settings in enumerate(plan, 1):
        first = runs[-1].last_epoch + 1 if runs else 1
        runs.append(StageRun(number=number, settings=settings, first_epoch=first))
    return tuple(runs)


def stage_at(runs: Sequence[StageRun], epoch: int) -> StageRun:
    """Return the stage of an epoch; the last stage for epochs after the end."""
    return next((run for run in runs if epoch <= run.last_epoch), runs[-1])


def steps_per_epoch(views: int, batch_size: int) -> int:
    """Return the optimizer steps of an epoch of `views` images; the last one may have fewer than `batch_size`."""
    return ceil(views / batch_size)


def warmup_steps(stage: Stage, steps: int) -> int:
    """Return over how many of its `steps` the rate of a resolved stage rises."""
    return round((stage.warmup_share or 0.0) * steps) if stage.warmup_steps is None else stage.warmup_steps


def check_warmups(spec: Spec, mixture: Mixture) -> None:
    """Check that each warm-up is shorter than its stage.

    Raises:
        BadSpecError: One is not.
    """
    for stage in spec.plan:
        views = plan_repeats(mixture, spec.training.seed, stage.shares).views
        steps = stage.epochs * steps_per_epoch(views, spec.training.batch_size)
        if spec.training.max_steps is not None:
            steps = min(steps, spec.training.max_steps)
        check_warmup(warmup_steps(stage, steps), steps)


def with_epochs_for_steps(spec: Spec, mixture: Mixture) -> Spec:
    """Return the spec with as many epochs as `training.max_steps` take; unchanged without them, or with stages.

    Raises:
        SpecError: They are more epochs than a training may have.
    """
    most = spec.training.max_steps
    if most is None or spec.stages:
        return spec
    steps = steps_per_epoch(plan_repeats(mixture, spec.training.seed, ()).views, spec.training.batch_size)
    epochs, limit = ceil(most / steps), int(allowed_range("training.epochs")[1])
    if epochs > limit:
        raise SpecError(
            _(
                "training.max_steps {most} are {epochs} epochs of {steps} steps, and {limit} at most are possible; set "
                "training.repeats to {repeats}, so that an epoch is longer.",
                most=most,
                epochs=epochs,
                steps=steps,
                limit=limit,
                repeats=mixture.sources[0].repeats * ceil(epochs / limit),
            )
        )
    training = spec.training.model_copy(update={"epochs": epochs})
    return spec.model_copy(update={"training": training})


def check_patterns(trained: Trained, runs: Sequence[StageRun]) -> None:
    """Check the block patterns of the stages against the parameters of the method.

    Raises:
        BadSpecError: A pattern matches no block, or a stage would train nothing.
    """
    names = [name for name, _parameter in trained.named_parameters()]
    for run in runs:
        stage = run.settings
        for pattern in (*stage.train, *stage.freeze, *(unfreeze.blocks for unfreeze in stage.unfreeze)):
            if not any(matches(name, pattern) for name in names):
                blocks = [block for block in trained.blocks if any(matches(name, block) for name in names)]
                raise BadSpecError(
                    _(
                        "Stage {n} names {pattern!r}, but the method trains no such block.",
                        n=run.number,
                        pattern=pattern,
                    ),
                    _("Blocks: {blocks}.", blocks=", ".join(blocks)),
                )
        if not any(is_trained(name, stage, epoch=1) for name in names):
            raise BadSpecError(_("Stage {n} trains nothing in its first epoch.", n=run.number), _("Freeze less."))


def is_trained(name: str, stage: Stage, *, epoch: int) -> bool:
    """True if a parameter is trained in this epoch of the stage (from 1); until it is unfrozen, it is not."""
    joins = [unfreeze.from_epoch for unfreeze in stage.unfreeze if matches(name, unfreeze.blocks)]
    if joins:
        return epoch >= min(joins)
    is_chosen = not stage.train or any(matches(name, pattern) for pattern in stage.train)
    return is_chosen and not any(matches(name, pattern) for pattern in stage.freeze)


def set_trainable(trained: Trained, stage: Stage, *, epoch: int) -> None:
    """Freeze and unfreeze parameters for an epoch of the stage (from 1)."""
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(is_trained(name, stage, epoch=epoch))


def parameter_groups(trained: Trained, stage: Stage) -> list[dict[str, Any]]:
    """Group all parameters that the stage trains by learning rate, weight decay and the epoch in which they join."""
    chosen = [(n, p) for n, p in trained.named_parameters() if is_trained(n, stage, epoch=stage.epochs)]
    decayed = decayed_parameters(chosen, trained.modules.values())
    # Read once: each access walks all modules, 0.15 s over all parameters of a LoRA on SD 1.
    blocks = trained.blocks
    groups: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
    for name, parameter in chosen:
        joins = next(epoch for epoch in range(1, stage.epochs + 1) if is_trained(name, stage, epoch=epoch))
        key = (rate_of(name, blocks, stage), name in decayed, joins)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": (stage.weight_decay or 0.0) if is_decayed else 0.0}
        for (rate, is_decayed, _epoch), parameters in groups.items()
    ]


def rate_of(name: str, blocks: Sequence[str], stage: Stage) -> float:
    """Return the learning rate of a parameter.

    Text encoders have their own rates, and so has a LoRA's B. With `layer_decay` (discriminative rates, Howard & Ruder
    2018, arXiv:1801.06146) the rate of a block is the rate of the next block, towards the output, times the decay.
    """
    rate = stage.learning_rate or 0.0
    if name.startswith("text_encoder"):
        rate = rate / 2 if stage.text_encoder_learning_rate is None else stage.text_encoder_learning_rate
    if name.startswith("text_encoder_2.") and stage.text_encoder_2_learning_rate is not None:
        rate = stage.text_encoder_2_learning_rate
    if name.endswith(".lora_B"):
        rate *= stage.lora_plus_ratio or 1.0
    if stage.layer_decay in {None, 1.0}:
        return rate
    # A text encoder is a chain of its own; everything else is one chain, with a head after its backbone.
    chain = name.split(".")[0] if name.startswith("text_encoder") else ""
    own = [b for b in blocks if (b.split(".")[0] == chain if chain else not b.startswith("text_encoder"))]
    depth = next((index for index, block in enumerate(own) if matches(name, block)), len(own) - 1)
    return float(rate * (stage.layer_decay or 1.0) ** (len(own) - 1 - depth))


def decayed_parameters(named: Iterable[tuple[str, nn.Parameter]], modules: Iterable[nn.Module]) -> set[str]:
    """Return the names of the parameters that get weight decay.

    Not norms, biases and other one-dimensional parameters, embeddings (which includes a new word), magnitudes and
    factors. `modules` contain the parameters and tell which are embeddings.
    """
    embeddings = {
        id(parameter)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    }
    return {
        name
        for name, parameter in named
        if id(parameter) not in embeddings and parameter.ndim > 1 and not any(part in name for part in _SCALE_NAMES)
    }


def trained_parts(trained: Trained) -> Iterator[TrainedPart]:
    """Yield, per block, how many of its weights are trainable now."""
    blocks = trained.blocks
    totals = _weights_by_block(trained, blocks)
    counts = dict.fromkeys(totals, 0)
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            block = _block_of(name, blocks)
            counts[block] = counts.get(block, 0) + parameter.numel()
    for block, count in counts.items():
        yield TrainedPart(name=block, trainable=count, total=max(totals.get(block, 0), count))


def _weights_by_block(trained: Trained, blocks: Sequence[str]) -> dict[str, int]:
    totals = dict.fromkeys(blocks, 0)
    for prefix, module in trained.modules.items():
        for name, parameter in module.named_parameters():
            block = _block_of(f"{prefix}.{name}", blocks)
            totals[block] = totals.get(block, 0) + parameter.numel()
    return totals


def _block_of(name: str, blocks: Sequence[str]) -> str:
    return next((block for block in blocks if matches(name, block)), name.split(".")[0])
