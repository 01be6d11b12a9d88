"""The stages of a training: which one an epoch belongs to, what it trains, and at which rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainer.errors import BadSpecError
from trainer.models.methods.blocks import matches
from trainer.models.methods.trained import Trained
from trainer.protocol.events import TrainedPart
from trainer.protocol.settings import Stage
from trainer.training.weight_decay import split_decay


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """A stage and its place in the training."""

    #: From 1.
    number: int
    settings: Stage
    #: Epochs of the whole training, from 1.
    first_epoch: int

    @property
    def last_epoch(self) -> int:
        return self.first_epoch + self.settings.epochs - 1

    @property
    def title(self) -> str:
        return self.settings.name or f"stage {self.number}"

    def epoch_of(self, epoch: int) -> int:
        """The epoch of the stage, from 1, that an epoch of the training is."""
        return epoch - self.first_epoch + 1

    def begins_anew(self, epoch: int) -> bool:
        """Whether what is trained changes with this epoch: the stage begins, or blocks join it."""
        return epoch == self.first_epoch or any(
            unfreeze.from_epoch == self.epoch_of(epoch) for unfreeze in self.settings.unfreeze
        )


def lay_out(plan: Sequence[Stage]) -> tuple[StageRun, ...]:
    """The stages one after another."""
    runs: list[StageRun] = []
    for number, settings in enumerate(plan, 1):
        first = runs[-1].last_epoch + 1 if runs else 1
        runs.append(StageRun(number=number, settings=settings, first_epoch=first))
    return tuple(runs)


def stage_at(runs: Sequence[StageRun], epoch: int) -> StageRun:
    """The stage of an epoch; after the last one, the last."""
    return next((run for run in runs if epoch <= run.last_epoch), runs[-1])


def check_patterns(trained: Trained, runs: Sequence[StageRun]) -> None:
    """Look for what the stages name before anything is trained.

    Raises:
        BadSpecError: a pattern names no block, or a stage would train nothing at all.
    """
    names = [name for name, _ in trained.named_parameters()]
    for run in runs:
        stage = run.settings
        for pattern in (*stage.train, *stage.freeze, *(unfreeze.blocks for unfreeze in stage.unfreeze)):
            if not any(matches(name, pattern) for name in names):
                blocks = [block for block in trained.blocks if any(matches(name, block) for name in names)]
                raise BadSpecError(
                    f"Stage {run.number} names {pattern!r}, and the method trains no such block.",
                    f"Blocks: {', '.join(blocks)}.",
                )
        if not any(is_trained(name, stage, epoch=1) for name in names):
            raise BadSpecError(f"Stage {run.number} trains nothing in its first epoch.", "Freeze less.")


def is_trained(name: str, stage: Stage, *, epoch: int) -> bool:
    """Whether a parameter is trained in an epoch of the stage (from 1); what unfreezes later is frozen until then."""
    joins = [unfreeze.from_epoch for unfreeze in stage.unfreeze if matches(name, unfreeze.blocks)]
    if joins:
        return epoch >= min(joins)
    is_chosen = not stage.train or any(matches(name, pattern) for pattern in stage.train)
    return is_chosen and not any(matches(name, pattern) for pattern in stage.freeze)


def set_trainable(trained: Trained, stage: Stage, *, epoch: int) -> None:
    """Freeze and unfreeze for an epoch of the stage."""
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(is_trained(name, stage, epoch=epoch))


def parameter_groups(trained: Trained, stage: Stage) -> list[dict[str, Any]]:
    """Everything that the stage trains sooner or later, by rate, weight decay and the epoch at which it joins.

    Text encoders have a rate of their own. With `layer_decay` (discriminative rates, Howard & Ruder 2018,
    arXiv:1801.06146) a block's rate is that of the next one, towards the output, times the decay.
    """
    chosen = [(n, p) for n, p in trained.named_parameters() if is_trained(n, stage, epoch=stage.epochs)]
    decayed = {name for name, _ in split_decay(chosen, trained.modules.values())[0]}
    # Asked for once: each time it goes through all modules, 0.15 s for all parameters of a LoRA of SD 1.
    blocks = trained.blocks
    groups: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
    for name, parameter in chosen:
        joins = next(epoch for epoch in range(1, stage.epochs + 1) if is_trained(name, stage, epoch=epoch))
        key = (rate_of(name, blocks, stage), name in decayed, joins)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": (stage.weight_decay or 0.0) if is_decayed else 0.0}
        for (rate, is_decayed, _), parameters in groups.items()
    ]


def rate_of(name: str, blocks: Sequence[str], stage: Stage) -> float:
    """The learning rate of a parameter."""
    rate = stage.learning_rate or 0.0
    if name.startswith("text_encoder"):
        rate = rate / 2 if stage.text_encoder_learning_rate is None else stage.text_encoder_learning_rate
    if stage.layer_decay in {None, 1.0}:
        return rate
    # A text encoder is deep by itself; all else is one chain, a head after its backbone.
    chain = name.split(".")[0] if name.startswith("text_encoder") else ""
    own = [b for b in blocks if (b.split(".")[0] == chain if chain else not b.startswith("text_encoder"))]
    place = next((place for place, block in enumerate(own) if matches(name, block)), len(own) - 1)
    return float(rate * (stage.layer_decay or 1.0) ** (len(own) - 1 - place))


def trained_parts(trained: Trained) -> Iterator[TrainedPart]:
    """What is trained of each block just now, and of how much."""
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
