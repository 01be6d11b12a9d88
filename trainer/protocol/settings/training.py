"""The optimization: optimizer, rates, schedule, batch, precision, and how captions are shown."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from pydantic import Field

from trainer.protocol.frozen import Frozen

#: Arguments of an optimizer or a schedule, under the names that its library gives them.
Arguments: TypeAlias = dict[str, bool | int | float | str | tuple[float, ...]]


class OptimizerKind(StrEnum):
    """Optimizers by name; `training/optimizers.py` says which library each comes from."""

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

    @property
    def finds_its_rate(self) -> bool:
        return self in {OptimizerKind.PRODIGY, OptimizerKind.DADAPT_ADAM}


class ScheduleKind(StrEnum):
    """How the learning rate moves after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    #: Smith & Topin 2017, arXiv:1708.07120; has a warm-up of its own.
    ONE_CYCLE = "one_cycle"
    #: Chen et al. 2021, arXiv:2107.04197: slow at first, fast at the end.
    REX = "rex"


class Precision(StrEnum):
    """`auto`: bf16 where the GPU has it, fp16 on older GPUs; on a CPU what a trial of a few steps finds faster."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Training(Frozen):
    """The optimization of all stages; a stage may have some of these otherwise."""

    #: With `stages`: theirs added up.
    epochs: int = Field(default=20, ge=1, le=1000)
    #: How often each training picture is seen in one epoch.
    repeats: int = Field(default=1, ge=1, le=1000)
    #: Pictures for one optimizer step (the effective batch).
    batch_size: int = Field(default=4, ge=1, le=1024)
    #: Pictures in memory at once; the rest of `batch_size` comes by gradient accumulation. None: what a trial step
    #: finds room for.
    micro_batch_size: int | None = Field(default=None, ge=1, le=256)
    #: Above 0.01 only for optimizers that find their own rate, and sgd.
    learning_rate: float = Field(default=1e-4, ge=1e-7, le=10.0)
    #: None: half of `learning_rate`. Only used with `method.text_encoder`.
    text_encoder_learning_rate: float | None = Field(default=None, ge=1e-8, le=10.0)
    #: Each block's rate over the next one's, from the output inwards: 1 for all alike, 0.8 to move the first less.
    layer_decay: float = Field(default=1.0, ge=0.1, le=1)
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    #: Further arguments of the optimizer by their names there: `betas`, `momentum`, `d_coef`, …
    optimizer_arguments: Arguments = Field(default_factory=dict)
    #: Not of norms and biases.
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    schedule: ScheduleKind = ScheduleKind.COSINE
    #: Further arguments of the schedule: `num_cycles`, `power`, `lr_end`, `pct_start`, …
    schedule_arguments: Arguments = Field(default_factory=dict)
    #: Share of a stage's steps over which the rate rises from 0.
    warmup_share: float = Field(default=0.05, ge=0, le=0.5)
    #: The same in steps; goes before `warmup_share`.
    warmup_steps: int | None = Field(default=None, ge=0, le=100_000)
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    #: Exponential moving average of the weights, which is then validated, sampled and exported; None: off.
    ema_decay: float | None = Field(default=None, ge=0.5, lt=1)
    #: Share of captions replaced by the empty one, so that classifier-free guidance keeps working.
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    #: A word put before each caption that does not hold it yet; the new word of textual_inversion.
    trigger: str = Field(default="", max_length=50)
    #: Put the tags of a caption in another order each time; captions that are sentences stay as they are.
    tag_shuffle: bool = False
    #: Tags that stay in front, the trigger counted. Only used with `tag_shuffle`.
    keep_tags: int = Field(default=1, ge=0, le=75)
    #: What a class picture's loss counts beside a training picture's. Only used with class pictures.
    regularization_weight: float = Field(default=1.0, gt=0, le=10)
    #: Side of the square whose area a picture is brought to, px; None: the base's own size.
    resolution: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    precision: Precision = Precision.AUTO
    #: TensorFloat-32 for what is computed in fp32, on GPUs that have it.
    tf32: bool = True
    #: Compute activations again in the backward pass: about half the speed, a fraction of the memory.
    gradient_checkpointing: bool = False
    #: `torch.compile` the denoiser: minutes before the first step. On two CPU cores it was never seen to end.
    compile: bool = False
    #: Keep the checkpoint of every n-th epoch, beside the last and the best; None: only those.
    keep_every_epochs: int | None = Field(default=None, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
