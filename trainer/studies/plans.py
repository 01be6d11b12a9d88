"""The specs of a study's runs: what a child differs in from the job that it belongs to."""

from __future__ import annotations

from fractions import Fraction

from trainer.protocol.settings import EarlyStopping, SplitChoice, SplitKind, Stage, Unfreeze
from trainer.protocol.spec import Spec, make_spec


def child_spec(spec: Spec) -> Spec:
    """For a run that is only measured: no look at the test pictures, and samples at its end alone."""
    validation = spec.validation.model_copy(update={"test": False})
    samples = spec.samples.model_copy(update={"every_epochs": spec.training.epochs, "unrelated_prompts": ()})
    return _checked(spec, validation=validation, samples=samples)


def fold_spec(spec: Spec, fold: int, folds: int) -> Spec:
    """The run that validates with one fold of k, from 1, and trains with all others."""
    return _checked(child_spec(spec), split=SplitChoice(kind=SplitKind.FOLD, fold=fold, folds=folds))


def final_spec(spec: Spec, epochs: int) -> Spec:
    """The run on all pictures, as long as the folds say; its test is the only one.

    Stages and the epochs of their unfreezing are scaled, and the schedules with them: the rate of a run of 7 epochs
    has fallen by its seventh, where a fold's, planned for 20, had not.
    """
    stages = scaled(spec.stages, epochs)
    training = spec.training.model_copy(update={"epochs": sum(stage.epochs for stage in stages) if stages else epochs})
    return _checked(
        spec,
        training=training,
        stages=stages,
        split=SplitChoice(kind=SplitKind.ALL),
        early_stopping=EarlyStopping(enabled=False),
    )


def scaled(stages: tuple[Stage, ...], epochs: int) -> tuple[Stage, ...]:
    """The stages with `epochs` in all, shared out as before by largest remainders; each keeps at least one epoch."""
    if not stages:
        return ()
    total = sum(stage.epochs for stage in stages)
    shares = [Fraction(stage.epochs * max(epochs, len(stages)), total) for stage in stages]
    lengths = [max(1, int(share)) for share in shares]
    while sum(lengths) < max(epochs, len(stages)):
        behind = max(range(len(stages)), key=lambda place: shares[place] - lengths[place])
        lengths[behind] += 1
    while sum(lengths) > max(epochs, len(stages)):
        ahead = min(
            (place for place in range(len(stages)) if lengths[place] > 1),
            key=lambda place: shares[place] - lengths[place],
        )
        lengths[ahead] -= 1
    return tuple(_with_epochs(stage, length) for stage, length in zip(stages, lengths, strict=True))


def _with_epochs(stage: Stage, epochs: int) -> Stage:
    unfreeze = tuple(
        Unfreeze(
            blocks=one.blocks,
            # The first epoch stays the first; later ones move in proportion.
            from_epoch=min(epochs, 1 + round((one.from_epoch - 1) * epochs / stage.epochs)),
        )
        for one in stage.unfreeze
    )
    return stage.model_copy(update={"epochs": epochs, "unfreeze": unfreeze})


def _checked(spec: Spec, **changes: object) -> Spec:
    """The spec with some groups replaced; raises SpecError where they contradict each other."""
    return make_spec(spec.model_copy(update=changes).model_dump(mode="json"))
