"""Refuses settings of different groups that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from trainer.protocol.settings import (
    Base,
    LoraInit,
    Method,
    MethodKind,
    MixPart,
    Objective,
    Prediction,
    Targets,
    TaskKind,
)
from trainer.protocol.text import _
from trainer.protocol.training_settings import (
    OWN_OPTIMIZERS,
    OptimizerKind,
    Precision,
    Stage,
    Training,
    finds_its_rate,
)

#: The highest rate of optimizers that do not find their own.
MAX_RATE, MAX_SGD_RATE = 0.01, 1.0
#: Those that keep nothing for several weights together, and count steps for each.
FUSABLE_OPTIMIZERS = frozenset(
    {
        OptimizerKind.ADAMW,
        OptimizerKind.ADAM,
        OptimizerKind.SGD,
        OptimizerKind.ADAMW_8BIT,
        OptimizerKind.ADAFACTOR,
    }
)


class ConflictError(ValueError):
    """A value that another setting does not allow."""

    def __init__(self, message: str, *, setting: str, nearest: float) -> None:
        #: Its dotted name, and the nearest value that is allowed.
        self.setting, self.nearest = setting, nearest
        super().__init__(message)


def check_method(method: Method, task: TaskKind, training: Training) -> None:
    """Raise ValueError, with what to set instead, if the method contradicts the task or the training."""
    kind = method.kind
    if task is TaskKind.CLASSIFICATION and kind is not MethodKind.FULL:
        raise ValueError(_("a classifier is not trained by {kind}; set method.kind to full.", kind=kind))
    if (method.targets is Targets.PATTERN) != bool(method.pattern):
        raise ValueError(_("method.targets pattern and method.pattern go together; give both or neither."))
    if kind is MethodKind.TEXTUAL_INVERSION and not training.trigger:
        raise ValueError(_("textual_inversion teaches a word; set training.trigger to it."))
    if kind is MethodKind.TEXTUAL_INVERSION and method.text_encoder:
        raise ValueError(_("textual_inversion does not train the text encoder; set method.text_encoder to false."))
    if method.init is LoraInit.PISSA:
        _check_pissa(method)


def _check_pissa(method: Method) -> None:
    if method.kind is not MethodKind.LORA:
        raise ValueError(_("method.init pissa is for lora; leave it out, or set method.kind to lora."))
    if method.start_from:
        raise ValueError(
            _(
                "method.init pissa starts from the base's own weights, and method.start_from from a file; leave out "
                "one of them."
            )
        )
    try:
        Method.model_validate(method.exported.model_dump())
    except ValidationError:
        raise ValueError(
            _(
                "method.init pissa writes files of twice the rank and alpha; set method.rank to 128 and method.alpha "
                "to 512 at most."
            )
        ) from None


def check_memory_settings(
    base: Base, method: Method, task: TaskKind, training: Training, plan: Sequence[Stage]
) -> None:
    """Raise ValueError, with what to set instead, if settings that save memory contradict the others."""
    if base.quantization is not None and (method.kind is MethodKind.FULL or task is TaskKind.CLASSIFICATION):
        raise ValueError(
            _(
                "base.quantization is for weights that are not trained, and full trains them; set "
                "training.fused_backward and training.bf16_weights instead, or method.kind to lora."
            )
        )
    if training.bf16_weights and not training.fused_backward:
        raise ValueError(_("training.bf16_weights needs training.fused_backward; set it to true, too."))
    if training.bf16_weights and training.precision in {Precision.FP32, Precision.FP16}:
        raise ValueError(_("training.bf16_weights needs bf16; set training.precision to bf16 or auto."))
    if training.bf16_weights and training.ema_decay is not None:
        raise ValueError(_("training.ema_decay needs weights in fp32; leave it out, or training.bf16_weights."))
    if not training.fused_backward:
        return
    if training.precision is Precision.FP16:
        raise ValueError(_("training.fused_backward cannot scale the loss of fp16; set training.precision to bf16."))
    for kind in (stage.optimizer or OptimizerKind.ADAMW for stage in plan):
        if kind not in FUSABLE_OPTIMIZERS and not kind.startswith("torch."):
            raise ValueError(
                _(
                    "training.fused_backward needs an optimizer that changes each weight by itself, and {kind} does "
                    "not; choose {known}.",
                    kind=kind,
                    known=", ".join(sorted(FUSABLE_OPTIMIZERS)),
                )
            )


def check_objective(objective: Objective) -> None:
    """Raise ValueError, with what to set instead, if settings of the objective contradict each other."""
    if objective.debiased and objective.snr_gamma is not None:
        raise ValueError(_("objective.debiased and objective.snr_gamma both weight the timesteps; give one of them."))
    if objective.debiased and objective.prediction is Prediction.V_PREDICTION:
        raise ValueError(_("objective.debiased is for epsilon; with v_prediction set objective.snr_gamma instead."))
    if objective.noise_offset and objective.pyramid_noise is not None:
        raise ValueError(_("objective.noise_offset and objective.pyramid_noise do the same; give one of them."))
    if objective.zero_terminal_snr and objective.prediction is Prediction.EPSILON:
        raise ValueError(
            _(
                "objective.zero_terminal_snr leaves no signal in the last step, from which epsilon learns nothing; "
                "set objective.prediction to v_prediction."
            )
        )


def check_mix(dataset: str, mix: Sequence[MixPart]) -> None:
    """Raise ValueError if a dataset occurs twice or the weights leave no share to the main one."""
    names = [dataset, *(part.dataset for part in mix)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(_("{name} occurs twice; set its repeats instead.", name=name))
    total = sum(part.weight or 0 for part in mix)
    if total >= 1:
        raise ValueError(
            _(
                "the weights of mix add up to {total:g}; they must leave a share to {dataset}.",
                total=total,
                dataset=dataset,
            )
        )


def check_stages(stages: Sequence[Stage], training: Training, *, datasets: int) -> None:
    """Raise ValueError, with what to set instead, if stages contradict their epochs or the number of datasets."""
    total = sum(stage.epochs for stage in stages)
    if stages and training.epochs != total:
        raise ValueError(
            _(
                "training.epochs {epochs} contradicts the stages, which have {total} epochs together; leave it out, or "
                "change their epochs.",
                epochs=training.epochs,
                total=total,
            )
        )
    for number, stage in enumerate(stages, 1):
        for unfreeze in stage.unfreeze:
            if unfreeze.from_epoch > stage.epochs:
                raise ValueError(
                    _(
                        "stage {number} has {epochs} epochs but unfreezes {blocks} in its epoch {from_epoch}; "
                        "use {epochs} at most.",
                        number=number,
                        epochs=stage.epochs,
                        blocks=unfreeze.blocks,
                        from_epoch=unfreeze.from_epoch,
                    )
                )
        if stage.shares and len(stage.shares) != datasets:
            raise ValueError(
                _(
                    "stage {number} has {shares} shares for {datasets} datasets; give one for each.",
                    number=number,
                    shares=len(stage.shares),
                    datasets=datasets,
                )
            )
        if stage.shares and abs(sum(stage.shares) - 1) > 1e-6:
            raise ValueError(
                _(
                    "the shares of stage {number} add up to {total:g}; they must add up to 1.",
                    number=number,
                    total=sum(stage.shares),
                )
            )


def check_rate(stage: Stage, group: str) -> None:
    """Raise ConflictError if a learning rate of a resolved stage is too high for its optimizer.

    Args:
        stage: A stage with its open values filled.
        group: The group of settings that its rates stand in: `training`, or `stages.0`.
    """
    kind = stage.optimizer or OptimizerKind.ADAMW
    if finds_its_rate(kind):
        return
    # A library's class may be like SGD.
    highest = MAX_SGD_RATE if kind == OptimizerKind.SGD or kind not in OWN_OPTIMIZERS else MAX_RATE
    for name in ("learning_rate", "text_encoder_learning_rate", "text_encoder_2_learning_rate"):
        rate = getattr(stage, name)
        if rate is not None and rate > highest:
            raise ConflictError(
                _(
                    "{name} {rate:g} is too high for {kind}; use {highest:g} at most.",
                    name=f"{group}.{name}",
                    rate=rate,
                    kind=kind,
                    highest=highest,
                ),
                setting=f"{group}.{name}",
                nearest=highest,
            )
