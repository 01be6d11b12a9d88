"""The settings of the optimization: optimizers by name, rates, schedules, precision, and the stages of a training."""

from __future__ import annotations

import re
from enum import StrEnum
from math import ceil
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from trainer.protocol.frozen import Frozen
from trainer.protocol.settings import Arguments, BlockPattern
from trainer.protocol.text import _


class OptimizerKind(StrEnum):
    """Optimizers by name; `training/optimizers.py` lists the library of each."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"
    #: AdamW with its state in 8 bits (Dettmers et al. 2021, arXiv:2110.02861); needs bitsandbytes and a GPU.
    ADAMW_8BIT = "adamw_8bit"
    ADAFACTOR = "adafactor"
    LION = "lion"
    #: Finds its own rate; `learning_rate` is a factor, usually 1 (Mishchenko & Defazio 2023, arXiv:2306.06101).
    PRODIGY = "prodigy"
    #: As prodigy (Defazio & Mishchenko 2023, arXiv:2301.07733).
    DADAPT_ADAM = "dadapt_adam"
    CAME = "came"
    #: Needs no schedule (Defazio et al. 2024, arXiv:2405.15682).
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"


#: The optimizers with a name of our own.
OWN_OPTIMIZERS = frozenset(OptimizerKind)


#: A class of another library by its name: `torch.RAdam`, `pytorch_optimizer.AdaBelief`, `bitsandbytes.Lion8bit`.
_LIBRARY_OPTIMIZER = re.compile(r"(torch|pytorch_optimizer|bitsandbytes)\.(optim\.)?[A-Za-z]\w*", re.ASCII)


def _check_optimizer(name: str) -> str:
    """Return a known optimizer as OptimizerKind and a class of a library as it is; whether that exists is seen when it
    is made."""
    if name in OWN_OPTIMIZERS:
        return OptimizerKind(name)
    if _LIBRARY_OPTIMIZER.fullmatch(name) is None:
        raise ValueError(
            _(
                "“{name}” is not one of {known}; name another with its library: torch.RAdam, "
                "pytorch_optimizer.AdaBelief, bitsandbytes.Lion8bit.",
                name=name,
                known=", ".join(OptimizerKind),
            )
        )
    return name


OptimizerName = Annotated[str, StringConstraints(max_length=80), AfterValidator(_check_optimizer)]


def finds_its_rate(optimizer: str) -> bool:
    """True for Prodigy, D-Adaptation and their kin, whose `learning_rate` is a factor."""
    if optimizer in OWN_OPTIMIZERS:
        return optimizer in {OptimizerKind.PRODIGY, OptimizerKind.DADAPT_ADAM}
    return optimizer.rpartition(".")[2].lower().startswith(("prodigy", "dadapt"))


class ScheduleKind(StrEnum):
    """How the learning rate changes after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    #: Smith & Topin 2017, arXiv:1708.07120; has its own warm-up.
    ONE_CYCLE = "one_cycle"
    #: Chen et al. 2021, arXiv:2107.04197: slow at first, fast at the end.
    REX = "rex"


class Precision(StrEnum):
    """`auto`: bf16 if the GPU supports it, fp16 on older GPUs; on a CPU whichever is faster in a short trial."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


#: Images that an epoch shows at least if the repeats of a dataset are chosen for it: validation and samples take less
#: than a quarter of the time of such an epoch (docs/adr/0018).
MIN_EPOCH_IMAGES = 350


class Training(Frozen):
    """The optimization of all stages; a stage may override some of these."""

    #: With `stages`: the sum of their epochs.
    epochs: int = Field(default=20, ge=1, le=1000)
    #: Optimizer steps after which the training ends, within an epoch if need be, and the schedule with it; not set:
    #: with the epochs. `trainer new` sets `epochs` to as many as they take, unless it is given, too.
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    #: How often each training image is seen in one epoch; 0: as often as it takes to show 350 images in all, and those
    #: of `mix` as often as that more.
    repeats: int = Field(default=1, ge=0, le=1000)
    #: Images per optimizer step (the effective batch).
    batch_size: int = Field(default=4, ge=1, le=1024)
    #: Images in memory at once; gradient accumulation makes up the rest of `batch_size`. Not set: as many as fit, found
    #: by trial steps.
    micro_batch_size: int | None = Field(default=None, ge=1, le=256)
    #: Above 0.01 only for optimizers that find their own rate, and sgd.
    learning_rate: float = Field(default=1e-4, ge=1e-7, le=10.0)
    #: Not set: half of `learning_rate`. Only used with `method.text_encoder`.
    text_encoder_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    #: Of the second CLIP encoder, of SDXL and SD 3; not set: as the first.
    text_encoder_2_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    #: Factor of the rate of a LoRA's B, which starts at 0, over that of its A (LoRA+, Hayou et al. 2024,
    #: arXiv:2402.12354; 16 there); of lora and dora.
    lora_plus_ratio: float = Field(default=1.0, ge=1, le=64)
    #: Factor between the rates of a block and the next one, from the output inwards: 1 gives all the same rate, 0.8
    #: moves the first blocks less.
    layer_decay: float = Field(default=1.0, ge=0.1, le=1)
    #: A name of docs/optimizers.md, or a class of torch, pytorch_optimizer or bitsandbytes, such as `torch.RAdam`.
    optimizer: OptimizerName = OptimizerKind.ADAMW
    #: More arguments of the optimizer by its own names: `betas`, `momentum`, `d_coef`, …
    optimizer_arguments: Arguments = Field(default_factory=dict)
    #: Not applied to norms and biases.
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    schedule: ScheduleKind = ScheduleKind.COSINE
    #: More arguments of the schedule: `num_cycles`, `power`, `lr_end`, `pct_start`, …
    schedule_arguments: Arguments = Field(default_factory=dict)
    #: Share of a stage's steps over which the rate rises from 0.
    warmup_share: float = Field(default=0.05, ge=0, le=0.5)
    #: The same in steps; takes precedence over `warmup_share`.
    warmup_steps: int | None = Field(default=None, ge=0, le=100_000)
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    #: Exponential moving average of the weights, which is then validated, sampled and exported; not set: off.
    ema_decay: float | None = Field(default=None, ge=0.5, lt=1)
    #: Share of captions replaced by the empty one, so that classifier-free guidance keeps working.
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    #: Trigger word put before each caption that does not contain it; the new word of textual_inversion.
    trigger: str = Field(default="", max_length=50)
    #: Shuffle the tags of a caption each time it is used; captions that are sentences stay as they are.
    tag_shuffle: bool = False
    #: Tags that stay in front, the trigger included. Only used with `tag_shuffle` or `tag_dropout`.
    keep_tags: int = Field(default=1, ge=0, le=75)
    #: Share of the tags of a caption that are left out each time it is used, except those that stay in front; captions
    #: that are sentences stay as they are.
    tag_dropout: float = Field(default=0.0, ge=0, le=0.9)
    #: Weight of the loss of a class image, relative to a training image. Only used with class images.
    regularization_weight: float = Field(default=1.0, gt=0, le=10)
    #: Side of the square whose area each image is resized to, px; not set: the base's own size.
    resolution: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    precision: Precision = Precision.AUTO
    #: Use TensorFloat-32 for fp32 computations, on GPUs that support it.
    tf32: bool = True
    #: Recompute activations in the backward pass: about half the speed, a fraction of the memory.
    gradient_checkpointing: bool = False
    #: Step each weight as soon as its gradient is known, so that the gradients of a full fine-tune are never in memory
    #: together. Gradients are then limited one by one: `max_grad_norm` applies to each weight instead of to all. On one
    #: GPU, with adamw, adam, sgd, adamw_8bit or adafactor; saves memory only if `batch_size` images fit at once.
    fused_backward: bool = False
    #: Keep the weights that full trains in bf16, rounded at random so that small steps are not lost: half the memory.
    #: Needs `fused_backward`; not with `ema_decay`.
    bf16_weights: bool = False
    #: `torch.compile` the equal blocks of the denoiser, once for all of them (SD 3: the whole one): a minute or more
    #: before the first step. Not seen on a GPU.
    compile: bool = False
    #: Keep the checkpoint of every n-th epoch, beside the last and the best; not set: only those.
    keep_every_epochs: int | None = Field(default=None, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)

    def repeats_of(self, images: float) -> int:
        """Return how often so many training images are seen in an epoch."""
        return self.repeats or max(1, ceil(MIN_EPOCH_IMAGES / max(1, images)))


class Unfreeze(Frozen):
    """Blocks that are trained from a later epoch on."""

    blocks: BlockPattern
    #: Epoch of the stage, from 1.
    from_epoch: int = Field(ge=1, le=1000)


class Stage(Frozen):
    """One part of a training, with its own epochs, rates and frozen layers. What is not set is as in `training`."""

    name: str = Field(default="", max_length=40)
    epochs: int = Field(ge=1, le=1000)
    learning_rate: float | None = Field(default=None, ge=1e-7, le=10.0)
    text_encoder_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    text_encoder_2_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    lora_plus_ratio: float | None = Field(default=None, ge=1, le=64)
    layer_decay: float | None = Field(default=None, ge=0.1, le=1)
    optimizer: OptimizerName | None = None
    optimizer_arguments: Arguments | None = None
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    schedule: ScheduleKind | None = None
    schedule_arguments: Arguments | None = None
    warmup_share: float | None = Field(default=None, ge=0, le=0.5)
    warmup_steps: int | None = Field(default=None, ge=0, le=100_000)
    #: Side of the training images, px; validation stays at `training.resolution`, so that epochs can be compared.
    resolution: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    #: Of the blocks that the method trains, only these; empty: all.
    train: tuple[BlockPattern, ...] = Field(default=(), max_length=64)
    #: Of those, all but these.
    freeze: tuple[BlockPattern, ...] = Field(default=(), max_length=64)
    #: Blocks that are added at a later epoch of the stage.
    unfreeze: tuple[Unfreeze, ...] = Field(default=(), max_length=64)
    #: Share of an epoch for each dataset, the main one first, then those of `mix`; 0 leaves one out. Empty: as `mix`.
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(), max_length=17)


#: Settings of a stage that `training` has too. Each spec that is parsed asks for them, and pydantic takes its time.
_INHERITED = tuple(name for name in Stage.model_fields if name in Training.model_fields)


def resolved(stage: Stage, training: Training) -> Stage:
    """Return the stage with its open values filled from `training`; `resolution` may stay open."""
    values = {name: getattr(training, name) for name in _INHERITED if getattr(stage, name) is None}
    if stage.warmup_share is not None and stage.warmup_steps is None:
        # The stage sets a share: the steps of `training` would take precedence over it.
        values["warmup_steps"] = None
    if stage.optimizer not in {None, training.optimizer} and stage.optimizer_arguments is None:
        values["optimizer_arguments"] = {}
    if stage.schedule not in {None, training.schedule} and stage.schedule_arguments is None:
        values["schedule_arguments"] = {}
    return stage.model_copy(update=values)
