"""Advice about a valid spec: settings that have no effect, and settings that are probably a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.settings import (
    Classifier,
    EarlyStopping,
    Method,
    MethodKind,
    MixRole,
    Objective,
    Prior,
    SplitChoice,
    SplitKind,
    TaskKind,
    Validation,
)
from trainer.protocol.spec import Spec
from trainer.protocol.text import _
from trainer.protocol.training_settings import OptimizerKind, Stage, Training, finds_its_rate

#: Above this rate AdamW usually destroys a fully trained model, and Lion an adapter.
_HIGH_RATE = 5e-5


def idle_settings(spec: Spec) -> Iterator[str]:
    """Yield a sentence for each changed setting that has no effect because the setting it belongs to is off."""
    yield from _idle_data(spec)
    yield from _idle_method(spec)
    yield from _idle_training(spec)
    yield from _idle_task(spec)


def doubtful_settings(spec: Spec) -> Iterator[str]:
    """Yield a sentence for each setting that works but is rarely intended."""
    if spec.objective.zero_terminal_snr and spec.objective.snr_gamma is not None:
        yield _("objective.snr_gamma gives no weight to the last timestep, which zero_terminal_snr adds.")
    for stage in spec.plan:
        if stage.optimizer is None or stage.learning_rate is None:
            continue
        yield from _doubtful_rate(spec, stage, stage.optimizer, stage.learning_rate)
        if stage.optimizer == OptimizerKind.SCHEDULE_FREE_ADAMW and stage.schedule != "constant":
            yield _(
                "schedule_free_adamw needs no schedule, and {schedule} slows it down; constant is usual.",
                schedule=stage.schedule,
            )
        if stage.optimizer == OptimizerKind.SCHEDULE_FREE_ADAMW and spec.training.ema_decay is not None:
            yield _("schedule_free_adamw averages the weights itself; training.ema_decay averages them again.")
        if stage.optimizer == OptimizerKind.ADAM and stage.weight_decay:
            yield _(
                "weight_decay {decay:g} of adam is added to the gradient and pulls hard; use adamw, which applies it "
                "separately, or set it to 0.",
                decay=stage.weight_decay,
            )


def _doubtful_rate(spec: Spec, stage: Stage, optimizer: str, rate: float) -> Iterator[str]:
    if finds_its_rate(optimizer) and rate < 0.1:
        yield _(
            "{optimizer} finds its own rate, and learning_rate {rate:g} scales it down; 1 is usual.",
            optimizer=optimizer,
            rate=rate,
        )
    if optimizer == OptimizerKind.LION and rate > _HIGH_RATE:
        yield _("learning_rate {rate:g} is high for lion; a third to a tenth of adamw's is usual.", rate=rate)
    is_full = spec.method.kind is MethodKind.FULL and spec.task is TaskKind.DIFFUSION
    if is_full and optimizer == OptimizerKind.ADAMW and rate > _HIGH_RATE:
        yield _("learning_rate {rate:g} is high for a full fine-tune; 1e-6 to 1e-5 is usual.", rate=rate)


def _idle_data(spec: Spec) -> Iterator[str]:
    training, augmentation, split = spec.training, spec.augmentation, spec.split
    has_class_images = spec.prior.is_on or any(part.role is MixRole.REGULARIZATION for part in spec.mix)
    if not augmentation.is_on and augmentation != Augmentation():
        yield _("augmentation.variants and augmentation.flip have no effect with the preset none.")
    if not training.tag_shuffle and not training.tag_dropout and training.keep_tags != Training().keep_tags:
        yield _("training.keep_tags has no effect without training.tag_shuffle or training.tag_dropout.")
    if training.regularization_weight != 1 and not has_class_images:
        yield _("training.regularization_weight has no effect without class images (in mix, or prior.class_prompt).")
    if not spec.prior.is_on and spec.prior != Prior():
        yield _("prior.images and the rest of prior have no effect without prior.class_prompt.")
    if split.kind is not SplitKind.FOLD and (split.fold, split.folds) != (SplitChoice().fold, SplitChoice().folds):
        yield _("split.fold and split.folds have no effect without split.kind fold.")
    if split.kind is SplitKind.ALL and spec.early_stopping.enabled:
        yield _("early_stopping has no effect with split.kind all: no image is left for an honest measure.")


def _idle_method(spec: Spec) -> Iterator[str]:
    method, default = spec.method, Method()
    is_inversion = method.kind is MethodKind.TEXTUAL_INVERSION
    if not method.kind.has_rank and (method.rank, method.alpha) != (default.rank, default.alpha):
        yield _("method.rank and method.alpha have no effect for {kind}.", kind=method.kind)
    if not method.kind.has_rank and (method.conv_rank is not None or method.block_ranks):
        yield _("method.conv_rank and method.block_ranks have no effect for {kind}.", kind=method.kind)
    if method.conv_alpha is not None and method.conv_rank is None:
        yield _("method.conv_alpha has no effect without method.conv_rank.")
    if method.rank_stabilized and method.kind not in {MethodKind.LORA, MethodKind.DORA}:
        yield _("method.rank_stabilized has no effect for {kind}; it is for lora and dora.", kind=method.kind)
    if method.dropout and not method.kind.has_rank:
        yield _("method.dropout has no effect for {kind}.", kind=method.kind)
    if method.block_size != default.block_size and method.kind is not MethodKind.OFT:
        yield _("method.block_size has no effect for {kind}; it is for oft.", kind=method.kind)
    if method.factor is not None and method.kind is not MethodKind.LOKR:
        yield _("method.factor has no effect for {kind}; it is for lokr.", kind=method.kind)
    if method.targets is not None and is_inversion:
        yield _("method.targets has no effect for textual_inversion, which trains only a word.")
    if not is_inversion and (method.vectors, method.initial_word) != (default.vectors, default.initial_word):
        yield _(
            "method.vectors and method.initial_word have no effect for {kind}; they are for textual_inversion.",
            kind=method.kind,
        )


def _idle_training(spec: Spec) -> Iterator[str]:
    training, objective, early_stopping = spec.training, spec.objective, spec.early_stopping
    if training.text_encoder_learning_rate is not None and not spec.method.text_encoder:
        yield _("training.text_encoder_learning_rate has no effect without method.text_encoder.")
    if training.text_encoder_2_learning_rate is not None and not spec.method.text_encoder:
        yield _("training.text_encoder_2_learning_rate has no effect without method.text_encoder.")
    if training.lora_plus_ratio != 1 and spec.method.kind not in {MethodKind.LORA, MethodKind.DORA}:
        yield _("training.lora_plus_ratio has no effect for {kind}; it is for lora and dora.", kind=spec.method.kind)
    is_full = spec.method.kind is MethodKind.FULL
    if training.fused_backward and not is_full:
        yield _(
            "training.fused_backward saves nothing for {kind}: its gradients are small. It is for full.",
            kind=spec.method.kind,
        )
    if training.bf16_weights and (not is_full or spec.task is TaskKind.CLASSIFICATION):
        yield _("training.bf16_weights has no effect here; it is for full fine-tunes that draw images.")
    if training.warmup_steps is not None and training.warmup_share != Training().warmup_share:
        yield _("training.warmup_share has no effect beside training.warmup_steps, which takes precedence.")
    if objective.huber_delta != Objective().huber_delta and objective.loss not in {"huber", "smooth_l1"}:
        yield _("objective.huber_delta has no effect for the loss {loss}.", loss=objective.loss)
    if objective.mask_floor and not objective.masked:
        yield _("objective.mask_floor has no effect without objective.masked.")
    # `max_hours` works whether or not early stopping is enabled.
    enabled = early_stopping.model_copy(update={"enabled": True, "max_hours": None})
    if not early_stopping.enabled and enabled != EarlyStopping():
        yield _("early_stopping.patience and the rest have no effect while early_stopping.enabled is false.")


def _idle_task(spec: Spec) -> Iterator[str]:
    if spec.task is not TaskKind.CLASSIFICATION:
        if spec.classifier != Classifier():
            yield _("classifier has no effect for a diffusion model.")
        return
    if spec.objective != Objective():
        yield _("objective has no effect for a classifier, which is trained by cross-entropy.")
    if spec.prior != Prior():
        yield _("prior has no effect for a classifier.")
    training = spec.training
    if training.caption_dropout != Training().caption_dropout or training.tag_shuffle or training.tag_dropout:
        yield _(
            "training.caption_dropout, tag_shuffle and tag_dropout have no effect for a classifier: it has no captions."
        )
    if spec.method.targets is not None:
        yield _("method.targets has no effect for a classifier; stages choose the blocks that are trained.")
    if (spec.validation.timesteps, spec.validation.draws) != (Validation().timesteps, Validation().draws):
        yield _("validation.timesteps and validation.draws have no effect for a classifier: nothing is noised.")
    if spec.samples.prompts:
        yield _("samples.prompts has no effect for a classifier, which draws no images.")
