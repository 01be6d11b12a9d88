"""Settings that contradict each other are refused; those that do nothing, or that seldom do any good, are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.mix import MixRole, check_mix
from trainer.protocol.settings import (
    Classifier,
    EarlyStopping,
    Method,
    MethodKind,
    Objective,
    OptimizerKind,
    Prediction,
    Prior,
    SplitChoice,
    SplitKind,
    Stage,
    Targets,
    TaskKind,
    Training,
    Validation,
)

if TYPE_CHECKING:
    from trainer.protocol.spec import Spec

#: The highest rate for optimizers that do not find their own.
MAX_RATE, MAX_SGD_RATE = 0.01, 1.0


def check_together(spec: Spec) -> None:
    """Raises: ValueError: settings contradict each other; the sentence says what to set instead."""
    check_mix(spec.dataset, spec.mix)
    _check_method(spec)
    _check_objective(spec.objective)
    _check_stages(spec)
    for stage in spec.plan:
        _check_rate(stage)


def _check_method(spec: Spec) -> None:
    method, kind = spec.method, spec.method.kind
    if spec.task is TaskKind.CLASSIFICATION and kind is not MethodKind.FULL:
        raise ValueError(f"a classifier is not trained by {kind}; set method.kind to full.")
    if (method.targets is Targets.PATTERN) != bool(method.pattern):
        raise ValueError("method.targets pattern and method.pattern go together; give both or neither.")
    if kind is MethodKind.TEXTUAL_INVERSION and not spec.training.trigger:
        raise ValueError("textual_inversion teaches a word; set training.trigger to it.")
    if kind is MethodKind.TEXTUAL_INVERSION and method.text_encoder:
        raise ValueError("textual_inversion leaves the text encoder as it is; set method.text_encoder to false.")


def _check_objective(objective: Objective) -> None:
    if objective.debiased and objective.snr_gamma is not None:
        raise ValueError("objective.debiased and objective.snr_gamma are two weights for the same; give one of them.")
    if objective.debiased and objective.prediction is Prediction.V_PREDICTION:
        raise ValueError("objective.debiased is for epsilon; with v_prediction set objective.snr_gamma instead.")
    if objective.noise_offset and objective.pyramid_noise is not None:
        raise ValueError("objective.noise_offset and objective.pyramid_noise do the same; give one of them.")
    if objective.zero_terminal_snr and objective.prediction is Prediction.EPSILON:
        raise ValueError(
            "objective.zero_terminal_snr leaves no signal to tell noise from; set objective.prediction to v_prediction."
        )


def _check_stages(spec: Spec) -> None:
    total = sum(stage.epochs for stage in spec.stages)
    if spec.stages and spec.training.epochs != total:
        raise ValueError(
            f"training.epochs {spec.training.epochs} contradicts the stages, which have {total} epochs together; leave "
            f"it away, or change their epochs."
        )
    for number, stage in enumerate(spec.stages, 1):
        for unfreeze in stage.unfreeze:
            if unfreeze.from_epoch > stage.epochs:
                raise ValueError(
                    f"stage {number} has {stage.epochs} epochs and unfreezes {unfreeze.blocks} in its epoch "
                    f"{unfreeze.from_epoch}; take {stage.epochs} at most."
                )
        if stage.shares and len(stage.shares) != 1 + len(spec.mix):
            raise ValueError(
                f"stage {number} has {len(stage.shares)} shares for {1 + len(spec.mix)} datasets; give one for each."
            )
        if stage.shares and abs(sum(stage.shares) - 1) > 1e-6:
            raise ValueError(f"the shares of stage {number} add up to {sum(stage.shares):g}; they must add up to 1.")


def _check_rate(stage: Stage) -> None:
    kind = stage.optimizer or OptimizerKind.ADAMW
    if kind.finds_its_rate:
        return
    most = MAX_SGD_RATE if kind is OptimizerKind.SGD else MAX_RATE
    for name, rate in (
        ("learning_rate", stage.learning_rate),
        ("text_encoder_learning_rate", stage.text_encoder_learning_rate),
    ):
        if rate is not None and rate > most:
            raise ValueError(f"{name} {rate:g} is too high for {kind}; take {most:g} at most.")


def idle_settings(spec: Spec) -> Iterator[str]:
    """A sentence for each setting that was changed and does nothing, because what it belongs to is off."""
    yield from _idle_data(spec)
    yield from _idle_method(spec)
    yield from _idle_training(spec)
    yield from _idle_task(spec)


def doubtful_settings(spec: Spec) -> Iterator[str]:
    """A sentence for each setting that works, and that people seldom mean."""
    if spec.objective.zero_terminal_snr and spec.objective.snr_gamma is not None:
        yield "objective.snr_gamma gives the last timestep, which zero_terminal_snr adds, no weight: it is not learnt."
    for stage in spec.plan:
        if stage.optimizer is None or stage.learning_rate is None:
            continue
        if stage.optimizer.finds_its_rate and stage.learning_rate < 0.1:
            yield (
                f"{stage.optimizer} finds its own rate and learning_rate {stage.learning_rate:g} scales it down; "
                "1 is usual."
            )
        if stage.optimizer is OptimizerKind.SCHEDULE_FREE_ADAMW and stage.schedule != "constant":
            yield f"schedule_free_adamw needs no schedule, and {stage.schedule} slows it down; constant is usual."
        if stage.optimizer is OptimizerKind.SCHEDULE_FREE_ADAMW and spec.training.ema_decay is not None:
            yield "schedule_free_adamw averages by itself; training.ema_decay averages once more."
        if stage.optimizer is OptimizerKind.ADAM and stage.weight_decay:
            yield (
                f"weight_decay {stage.weight_decay:g} of adam is added to the gradient and pulls hard; adamw keeps it "
                "apart, or set it to 0."
            )
        if stage.optimizer is OptimizerKind.LION and stage.learning_rate > 5e-5:
            yield f"learning_rate {stage.learning_rate:g} is high for lion; a third to a tenth of adamw's is usual."
        full = spec.method.kind is MethodKind.FULL and spec.task is TaskKind.DIFFUSION
        if full and stage.optimizer is OptimizerKind.ADAMW and stage.learning_rate > 5e-5:
            yield f"learning_rate {stage.learning_rate:g} is high for a full fine-tune; 1e-6 to 1e-5 is usual."


def _idle_data(spec: Spec) -> Iterator[str]:
    training, augmentation = spec.training, spec.augmentation
    has_class_pictures = spec.prior.is_on or any(part.role is MixRole.REGULARIZATION for part in spec.mix)
    if not augmentation.is_on and augmentation != Augmentation():
        yield "augmentation.variants and augmentation.flip do nothing with the preset none."
    if not training.tag_shuffle and training.keep_tags != Training().keep_tags:
        yield "training.keep_tags does nothing without training.tag_shuffle."
    if training.regularization_weight != 1 and not has_class_pictures:
        yield "training.regularization_weight does nothing without class pictures (in mix, or prior.class_prompt)."
    if not spec.prior.is_on and spec.prior != Prior():
        yield "prior.images and the rest of prior do nothing without prior.class_prompt."
    if spec.split.kind is not SplitKind.FOLD and (spec.split.fold, spec.split.folds) != (
        SplitChoice().fold,
        SplitChoice().folds,
    ):
        yield "split.fold and split.folds do nothing without split.kind fold."
    if spec.split.kind is SplitKind.ALL and spec.early_stopping.enabled:
        yield "early_stopping does nothing with split.kind all: no picture is left that would be an honest measure."


def _idle_method(spec: Spec) -> Iterator[str]:
    method, default = spec.method, Method()
    inversion = method.kind is MethodKind.TEXTUAL_INVERSION
    if not method.kind.has_rank and (method.rank, method.alpha) != (default.rank, default.alpha):
        yield f"method.rank and method.alpha do nothing for {method.kind}."
    if method.dropout and not method.kind.has_rank:
        yield f"method.dropout does nothing for {method.kind}."
    if method.block_size != default.block_size and method.kind is not MethodKind.OFT:
        yield f"method.block_size does nothing for {method.kind}; it is for oft."
    if method.factor is not None and method.kind is not MethodKind.LOKR:
        yield f"method.factor does nothing for {method.kind}; it is for lokr."
    if method.targets is not None and inversion:
        yield "method.targets does nothing for textual_inversion, which trains a word only."
    if not inversion and (method.vectors, method.initial_word) != (default.vectors, default.initial_word):
        yield f"method.vectors and method.initial_word do nothing for {method.kind}; they are for textual_inversion."


def _idle_training(spec: Spec) -> Iterator[str]:
    training, objective = spec.training, spec.objective
    if training.text_encoder_learning_rate is not None and not spec.method.text_encoder:
        yield "training.text_encoder_learning_rate does nothing without method.text_encoder."
    if training.warmup_steps is not None and training.warmup_share != Training().warmup_share:
        yield "training.warmup_share does nothing beside training.warmup_steps, which goes before it."
    if objective.huber_delta != Objective().huber_delta and objective.loss not in {"huber", "smooth_l1"}:
        yield f"objective.huber_delta does nothing for the loss {objective.loss}."
    if objective.mask_floor and not objective.masked:
        yield "objective.mask_floor does nothing without objective.masked."
    early = spec.early_stopping
    # The budget of time holds by itself.
    if not early.enabled and early.model_copy(update={"enabled": True, "max_hours": None}) != EarlyStopping():
        yield "early_stopping.patience and the rest do nothing while early_stopping.enabled is false."


def _idle_task(spec: Spec) -> Iterator[str]:
    if spec.task is TaskKind.CLASSIFICATION:
        if spec.objective != Objective():
            yield "objective does nothing for a classifier, which is trained by cross-entropy."
        if spec.prior != Prior():
            yield "prior does nothing for a classifier."
        if spec.training.caption_dropout != Training().caption_dropout or spec.training.tag_shuffle:
            yield "training.caption_dropout and training.tag_shuffle do nothing for a classifier: it reads no captions."
        if spec.method.targets is not None:
            yield "method.targets does nothing for a classifier; stages say which blocks are trained."
        if (spec.validation.timesteps, spec.validation.draws) != (Validation().timesteps, Validation().draws):
            yield "validation.timesteps and validation.draws do nothing for a classifier: nothing is noised."
        if spec.samples.prompts:
            yield "samples.prompts does nothing for a classifier, which draws no pictures."
    elif spec.classifier != Classifier():
        yield "classifier does nothing for a diffusion model."
