"""All settings of a job, in groups. Each has its range here; `spec.py` puts the groups together."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, field_validator, model_validator

from trainer.protocol.frozen import Frozen
from trainer.protocol.text import _

#: Arguments of an optimizer or a schedule, by the names that its library gives them.
Arguments: TypeAlias = dict[str, bool | int | float | str | tuple[float, ...]]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
#: A block by its dotted name or the beginning of it, with `*` and `?`: `unet.up_blocks`, `up_blocks.1`,
#: `text_encoder`, `*.attn2`, `head`.
BlockPattern = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


#: The small model that ships: 64 px, simple shapes, for the demo and for tests.
TINY = "tiny"


class TaskKind(StrEnum):
    """What kind of model is trained."""

    DIFFUSION = "diffusion"
    CLASSIFICATION = "classification"


# -- the model and what is trained of it ---------------------------------------------------------------------------


class Quantization(StrEnum):
    """How frozen weights are kept in memory: in fewer bits, a little less exact, somewhat slower. Needs torchao."""

    #: 8 bits, with a scale for each output.
    INT8 = "int8"
    #: 8 bits of floating point (e4m3), with a scale for each output.
    FP8 = "fp8"
    #: 4 bits (Dettmers et al. 2023, arXiv:2305.14314).
    NF4 = "nf4"


class Base(Frozen):
    """The pretrained model to start from."""

    #: A folder in diffusers layout, a single `.safetensors` file, a hub name (`owner/name`), or `tiny`.
    #: For a classifier: a folder or hub name of `transformers`, such as `microsoft/resnet-18`.
    source: str = Field(default=TINY, min_length=1, max_length=500)
    #: Hub revision (branch, tag or commit); only for hub names.
    revision: str | None = None
    #: A folder in diffusers layout (or hub name) whose configs and tokenizers describe a single-file `source`; not
    #: set: those of Stability's models, which ship.
    config: str | None = None
    #: A VAE in place of the base's own: a `.safetensors` file, a folder in diffusers layout, or a hub name.
    vae: str | None = None
    #: Layer of the CLIP text encoders to read, counted from the end as in A1111: 1 is the model's own, 2 the one before
    #: the last. That is SDXL's and SD 3's own, where 1 and 2 are the same.
    clip_skip: int = Field(default=1, ge=1, le=12)
    #: Tokens of a caption that CLIP reads, in chunks of 75, as A1111, ComfyUI and kohya's scripts do. SD 3 reads 75 by
    #: CLIP whatever it says, and 256 by T5.
    max_token_length: Literal[75, 150, 225] = 225
    #: Keep the frozen weights of the UNet (or transformer) in fewer bits, to save memory; the exported files are for
    #: the base as it is. Not set: 16 bits, or 32. Not for full.
    quantization: Quantization | None = None


class MethodKind(StrEnum):
    """How a model is changed."""

    #: Hu et al. 2021, arXiv:2106.09685: W + alpha / rank * B A.
    LORA = "lora"
    #: Liu et al. 2024, arXiv:2402.09353: LoRA for the direction, a vector for the magnitude.
    DORA = "dora"
    #: Hadamard product of two low-rank products (Hyeon-Woo et al. 2021, arXiv:2108.06098; LyCORIS, arXiv:2309.14859).
    LOHA = "loha"
    #: Kronecker product (LyCORIS, arXiv:2309.14859): very small files.
    LOKR = "lokr"
    #: Liu et al. 2022, arXiv:2205.05638: one factor for each feature, tiny and quick.
    IA3 = "ia3"
    #: Qiu et al. 2023, arXiv:2306.07280: rotates weights, keeps the angles between neurons.
    OFT = "oft"
    #: Every weight of the chosen layers.
    FULL = "full"
    #: Gal et al. 2022, arXiv:2208.01618: the model stays the same and learns a new word.
    TEXTUAL_INVERSION = "textual_inversion"

    @property
    def is_adapter(self) -> bool:
        """True if it adds small weights beside the model's own."""
        return self not in {MethodKind.FULL, MethodKind.TEXTUAL_INVERSION}

    @property
    def has_rank(self) -> bool:
        return self in {MethodKind.LORA, MethodKind.DORA, MethodKind.LOHA, MethodKind.LOKR}

    @property
    def adapter_name(self) -> str:
        """What people call an adapter of this kind, in every language; empty: it is none."""
        return _ADAPTER_NAMES.get(self, "")


_ADAPTER_NAMES = {
    MethodKind.LORA: "LoRA",
    MethodKind.DORA: "DoRA",
    MethodKind.LOHA: "LoHa",
    MethodKind.LOKR: "LoKr",
    MethodKind.IA3: "(IA)³",
    MethodKind.OFT: "OFT",
}


class Targets(StrEnum):
    """Which layers of the UNet (or transformer) are trained."""

    #: q, k, v and output projections of every attention: the usual choice, 1x parameters.
    ATTENTION = "attention"
    #: Attention, feed-forward and projection layers.
    LINEAR = "linear"
    #: Convolutions of the residual blocks, down- and upsamplers.
    CONV = "conv"
    #: Every linear and convolutional layer of the transformer and residual blocks: learns new shapes best.
    ALL = "all"
    #: Layers whose name matches `pattern`.
    PATTERN = "pattern"


class LoraInit(StrEnum):
    """The weights that a LoRA starts from."""

    #: A is random and B zero (Hu et al. 2021).
    GAUSSIAN = "gaussian"
    #: A and B have the largest singular values of the base's weight.
    PISSA = "pissa"


class BlockRank(Frozen):
    """The rank of the layers of some blocks."""

    blocks: BlockPattern
    #: 0 leaves them out.
    rank: int = Field(ge=0, le=256)
    #: Not set: alpha = rank.
    alpha: float | None = Field(default=None, gt=0, le=1024)


class Method(Frozen):
    """What is trained, and how large it is."""

    kind: MethodKind = MethodKind.LORA
    #: Of lora, dora, loha and lokr.
    rank: int = Field(default=16, ge=1, le=256)
    #: Not set: alpha = rank, a scale of 1.
    alpha: float | None = Field(default=None, gt=0, le=1024)
    #: Of convolutions larger than one pixel (kohya's `conv_dim`); not set: as `rank` and `alpha`.
    conv_rank: int | None = Field(default=None, ge=1, le=256)
    #: Not set: alpha = `conv_rank`. Only used with `conv_rank`.
    conv_alpha: float | None = Field(default=None, gt=0, le=1024)
    #: Ranks of blocks of their own (kohya's `block_dims`); the first that matches a layer counts, also a convolution.
    block_ranks: tuple[BlockRank, ...] = Field(default=(), max_length=64)
    #: Scale by alpha / sqrt(rank) instead of alpha / rank, so that a high rank learns as fast as a low one (rsLoRA,
    #: Kalajdzievski 2023, arXiv:2312.03732); of lora and dora.
    rank_stabilized: bool = False
    #: What a lora starts from. pissa: the strongest directions of the base's own weights, in place of random ones; its
    #: files have twice the rank (Meng et al. 2024, arXiv:2404.02948).
    init: LoraInit = LoraInit.GAUSSIAN
    #: Of lora and dora: drops inputs of a layer; of loha and lokr: drops whole layers.
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    #: Side of the rotated blocks of oft; a layer whose width it does not divide gets the nearest size that does.
    block_size: int = Field(default=32, ge=2, le=1024)
    #: Size of the smaller factor of lokr; not set: the divisor of a layer's width nearest to its square root.
    factor: int | None = Field(default=None, ge=2, le=1024)
    #: Not set: attention for adapters, every weight for full.
    targets: Targets | None = None
    #: Names of layers with `*` and `?`, such as `up_blocks.*.attn2.*`; only with the targets pattern.
    pattern: str = Field(default="", max_length=200)
    #: Train the text encoders too, by the same kind.
    text_encoder: bool = False
    #: Tokens that the new word of textual_inversion takes in a prompt.
    vectors: int = Field(default=1, ge=1, le=75)
    #: Word whose meaning the new word starts from; only for textual_inversion.
    initial_word: str = Field(default="", max_length=50)
    #: Weights to start from: a finished job's folder, or an exported file or folder of the same kind, of any format.
    #: `trainer new` copies them into the job folder, and takes the rank from a file unless it is given.
    start_from: str = Field(default="", max_length=500)
    #: SHA-256 of the weights that the training starts from (`start.safetensors` in the job folder, which `trainer new`
    #: makes of `start_from`, or with `--from` of a finished job); not set: from the base alone.
    start_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")

    @property
    def effective_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def exported(self) -> Method:
        """The method of the exported files: for a PiSSA an ordinary LoRA of twice the rank and the same scale."""
        if self.init is not LoraInit.PISSA:
            return self

        def alpha(rank: int, own: float | None) -> float:
            own = float(rank) if own is None else own
            return 2 * own * (rank**0.5 if self.rank_stabilized else 1)

        twice: dict[str, object] = {
            "init": LoraInit.GAUSSIAN,
            "rank_stabilized": False,
            "rank": 2 * self.rank,
            "alpha": alpha(self.rank, self.alpha),
            "block_ranks": tuple(
                each.model_copy(update={"rank": 2 * each.rank, "alpha": alpha(each.rank, each.alpha) or None})
                for each in self.block_ranks
            ),
        }
        if self.conv_rank is not None:
            twice |= {"conv_rank": 2 * self.conv_rank, "conv_alpha": alpha(self.conv_rank, self.conv_alpha)}
        return self.model_copy(update=twice)


class ClassWeights(StrEnum):
    NONE = "none"
    #: A class with few images counts as much as one with many.
    BALANCED = "balanced"


class Classifier(Frozen):
    """A pretrained image classifier with a new head for the dataset's classes, trained by cross-entropy."""

    #: Share of the target that is spread over all classes (Szegedy et al. 2015, arXiv:1512.00567).
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: ClassWeights = ClassWeights.NONE
    #: Of the features before the head.
    dropout: float = Field(default=0.0, ge=0, le=0.9)


# -- the loss ------------------------------------------------------------------------------------------------------


class LossKind(StrEnum):
    """How the difference between prediction and target counts."""

    MSE = "mse"
    L1 = "l1"
    #: Quadratic within `huber_delta`, linear beyond; scaled so that delta -> infinity is mse.
    HUBER = "huber"
    #: Huber divided by its delta: l1 beyond `huber_delta`, rounded off within.
    SMOOTH_L1 = "smooth_l1"


class Prediction(StrEnum):
    """What the denoiser predicts."""

    #: The base's own prediction type.
    AUTO = "auto"
    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class SizeConditioning(StrEnum):
    """The original size and the crop that SDXL is conditioned on."""

    #: The image's own size before scaling, and what was cropped: a small image does not teach that images are blurred,
    #: a cropped one not that heads are cut (Podell et al. 2023, arXiv:2307.01952, section 2.2).
    ORIGINAL = "original"
    #: The size in training, not cropped, as when images are drawn.
    TARGET = "target"


class Objective(Frozen):
    """The loss of a diffusion model: its kind, its weight over timesteps, and the noise."""

    loss: LossKind = LossKind.MSE
    huber_delta: float = Field(default=0.1, gt=0, le=10)
    #: Min-SNR-gamma loss weighting (Hang et al. 2023, arXiv:2303.09556); not set: all timesteps weigh alike.
    snr_gamma: float | None = Field(default=None, gt=0, le=100)
    #: Weight 1 / sqrt(SNR), for epsilon (Yu et al. 2023, arXiv:2310.08442).
    debiased: bool = False
    prediction: Prediction = Prediction.AUTO
    #: Rescale the noise schedule so that its last step is pure noise (Lin et al. 2023, arXiv:2305.08891).
    zero_terminal_snr: bool = False
    #: Noise with an offset for each channel, so that very dark and very bright images can be learned.
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    #: Noise with coarser noise added, each scale smaller by this factor; not set: off. 0.3 is usual.
    pyramid_noise: float | None = Field(default=None, gt=0, lt=1)
    #: Noise added to the noise of the input only (Ning et al. 2023, arXiv:2301.11706); 0.1 is the paper's.
    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    size_conditioning: SizeConditioning = SizeConditioning.ORIGINAL
    #: Weight the loss by the image's mask (its alpha channel, or a mask file beside it).
    masked: bool = False
    #: Weight outside the mask.
    mask_floor: float = Field(default=0.0, ge=0, le=1)


# -- the data ------------------------------------------------------------------------------------------------------


class Prior(Frozen):
    """Class images that the base model draws, so that it does not forget the class (DreamBooth, Ruiz et al. 2022,
    arXiv:2208.12242). They train under the class prompt, weighted by `training.regularization_weight`."""

    #: The class of the subject: `a photo of a dog`. Empty: no class images.
    class_prompt: str = Field(default="", max_length=500)
    #: Images to draw, once for a base and a prompt.
    images: int = Field(default=100, ge=1, le=2000)
    #: Share of an epoch that is class images.
    weight: float = Field(default=0.5, gt=0, lt=1)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    seed: int = Field(default=99, ge=0, le=2**31 - 1)

    @property
    def is_on(self) -> bool:
        return bool(self.class_prompt)


class SplitKind(StrEnum):
    """Which split a job uses."""

    #: The one of the prepared dataset.
    REPORT = "report"
    #: One fold of k: its images validate, those of the other folds train; the test images stay apart.
    FOLD = "fold"
    #: Training and validation images all train, and a share of them is measured for the curve. No early stopping; the
    #: last epoch is kept. The test images stay apart.
    ALL = "all"


class SplitChoice(Frozen):
    """The split of the main dataset and of those mixed in; duplicates always stay together."""

    kind: SplitKind = SplitKind.REPORT
    #: The fold that validates, from 1; only for `fold`.
    fold: int = Field(default=1, ge=1, le=20)
    folds: int = Field(default=5, ge=2, le=20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fold > self.folds:
            raise ValueError(_("there is no fold {fold} of {folds}.", fold=self.fold, folds=self.folds))
        return self


class MixRole(StrEnum):
    """What another dataset of a job is for."""

    #: Learned like the main dataset; its validation and test images are measured too.
    TRAIN = "train"
    #: Images of the subject's class, seen so that the model does not forget the class (prior preservation, Ruiz et al.
    #: 2022, arXiv:2208.12242). All of them train, unaugmented and under their own captions.
    REGULARIZATION = "regularization"


class MixPart(Frozen):
    """Another dataset of a job. Without `repeats` and `weight`, each of its images is seen once in an epoch."""

    #: A folder that `trainer prepare` wrote.
    dataset: str = Field(min_length=1)
    #: How often each of its training images is seen in one epoch.
    repeats: int | None = Field(default=None, ge=1, le=1000)
    #: Share of all images of an epoch that come from this dataset.
    weight: float | None = Field(default=None, gt=0, lt=1)
    role: MixRole = MixRole.TRAIN
    #: A word put before each of its captions that does not contain it.
    trigger: str = Field(default="", max_length=50)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.repeats is not None and self.weight is not None:
            raise ValueError(_("repeats and weight both set how often its images are seen; give one of them."))
        if self.trigger and self.role is MixRole.REGULARIZATION:
            raise ValueError(_("a regularization dataset keeps its own captions; remove its trigger."))
        return self


# -- how a training is judged --------------------------------------------------------------------------------------


class Validation(Frozen):
    """The validation loss: frozen (image, timestep, noise) triples, before the first step and after each epoch."""

    #: Timesteps for each image, spread evenly over the noise schedule.
    timesteps: int = Field(default=4, ge=1, le=100)
    #: Noise draws for each image and timestep: more draws, less scatter.
    draws: int = Field(default=2, ge=1, le=64)
    #: Upper limit of the validation images that are used, chosen once.
    max_images: int = Field(default=64, ge=1, le=10_000)
    #: Training images that are measured in the same way, so that overfitting shows as a gap; 0: none.
    train_images: int = Field(default=32, ge=0, le=10_000)
    #: Also validate every so many steps, for the curve; decisions are made at the end of an epoch. Not set: off.
    every_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=555, ge=0, le=2**31 - 1)
    #: Evaluate the test split at the end, and export; false for the runs of a study, of which one is chosen.
    test: bool = True


class EarlyStopping(Frozen):
    """Stop when the validation loss, as a ratio to the base model's, no longer falls."""

    enabled: bool = True
    #: Epochs without an improvement before the training stops.
    patience: int = Field(default=4, ge=1, le=1000)
    #: How much lower the ratio must be to count as an improvement (0.002 = 0.2 % of the base's loss).
    min_delta: float = Field(default=0.002, ge=0, le=1)
    #: Epochs that never stop the training.
    warmup_epochs: int = Field(default=2, ge=0, le=1000)
    #: Exponential smoothing of the ratio: the weight of the epochs before; 0: none.
    smoothing: float = Field(default=0.3, ge=0, lt=1)
    #: Hours after which the training ends with the epoch, whatever the loss; they begin again when the job is extended.
    #: Not set: no limit.
    max_hours: float | None = Field(default=None, gt=0, le=10_000)


class Samples(Frozen):
    """Images that the model draws during training: the same prompts and seeds each time, the base's first."""

    #: Empty: captions of the validation split.
    prompts: tuple[Prompt, ...] = Field(default=(), max_length=8)
    #: Prompts unrelated to the data, drawn before and after, which show what the model forgot.
    unrelated_prompts: tuple[Prompt, ...] = Field(
        default=("a mountain lake in the morning", "a bowl of fruit on a table"), max_length=8
    )
    negative_prompt: str = Field(default="", max_length=500)
    every_epochs: int = Field(default=1, ge=1, le=1000)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    seed: int = Field(default=1234, ge=0, le=2**31 - 1)
    #: A local CLIP or DINO model (folder of transformers) that compares samples to prompts and training images.
    similarity_model: str | None = Field(default=None, max_length=500)

    @field_validator("prompts", "unrelated_prompts", mode="before")
    @classmethod
    def _accept_one(cls, prompts: object) -> object:
        return (prompts,) if isinstance(prompts, str) else prompts


class Exports(Frozen):
    """The files for other programs; those of the best epoch are always written."""

    #: Also a small file of every n-th epoch, to compare epochs; not set: of the last epoch, if another is the best. Of
    #: adapters and new words.
    every_epochs: int | None = Field(default=None, ge=1, le=1000)
    #: How many files of epochs are kept, and how large they may be together (MiB); the oldest are deleted.
    keep: int = Field(default=20, ge=1, le=1000)
    keep_mib: int = Field(default=512, ge=1, le=1_000_000)
    #: Also write full differences where few programs read the small file: of dora, ia3 and oft. As large as the
    #: changed layers in fp16: SDXL's attention takes 1.9 GB.
    differences: bool = True
    #: Written into the files as their author.
    author: str = Field(default="", max_length=100)
