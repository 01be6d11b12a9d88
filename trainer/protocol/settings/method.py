"""What is trained of a model: an adapter of some kind, all of it, or a new word."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from trainer.protocol.frozen import Frozen


class Base(Frozen):
    """The pretrained model to start from."""

    #: A folder in diffusers layout, a single `.safetensors` file, a hub name (`owner/name`), or `tiny`.
    #: For a classifier: a folder or hub name of `transformers`, such as `microsoft/resnet-18`.
    source: str = Field(default="tiny", min_length=1, max_length=500)
    #: Hub revision (branch, tag or commit); only for hub names.
    revision: str | None = None
    #: A folder in diffusers layout whose configs describe a single-file `source`; None asks the hub.
    config: str | None = None
    #: Which layer of the CLIP text encoders is read, from the end: 1 the last, 2 the one before (as in A1111).
    clip_skip: int = Field(default=1, ge=1, le=12)


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
    #: Gal et al. 2022, arXiv:2208.01618: the model stays as it is and learns a new word.
    TEXTUAL_INVERSION = "textual_inversion"

    @property
    def is_adapter(self) -> bool:
        """Whether it adds small weights beside the model's own."""
        return self not in {MethodKind.FULL, MethodKind.TEXTUAL_INVERSION}

    @property
    def has_rank(self) -> bool:
        return self in {MethodKind.LORA, MethodKind.DORA, MethodKind.LOHA, MethodKind.LOKR}


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


class Method(Frozen):
    """What is trained, and how large it is."""

    kind: MethodKind = MethodKind.LORA
    #: Of lora, dora, loha and lokr.
    rank: int = Field(default=16, ge=1, le=256)
    #: None means alpha = rank, a scale of 1.
    alpha: float | None = Field(default=None, gt=0, le=1024)
    #: Of lora and dora: of a layer's inputs; of loha and lokr: of whole layers.
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    #: Side of the rotated blocks of oft; layers whose width it does not divide get the nearest size that does.
    block_size: int = Field(default=32, ge=2, le=1024)
    #: Size of the smaller factor of lokr; None: as near to the square root of a layer's width as it divides.
    factor: int | None = Field(default=None, ge=2, le=1024)
    #: None: attention for adapters, every weight for full.
    targets: Targets | None = None
    #: Names of layers with `*` and `?`, such as `up_blocks.*.attn2.*`; only with the targets pattern.
    pattern: str = Field(default="", max_length=200)
    #: Train the text encoders too, by the same kind.
    text_encoder: bool = False
    #: Tokens that the new word of textual_inversion takes in a prompt.
    vectors: int = Field(default=1, ge=1, le=32)
    #: Word whose meaning the new one starts from; only for textual_inversion.
    initial_word: str = Field(default="", max_length=50)

    @property
    def effective_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


class Prior(Frozen):
    """Class pictures that the base model draws, so that it does not forget the class (DreamBooth, Ruiz et al. 2022,
    arXiv:2208.12242). They train under the class prompt, and count `training.regularization_weight`."""

    #: What the subject is one of: `a photo of a dog`. Empty: no class pictures.
    class_prompt: str = Field(default="", max_length=500)
    #: Pictures that are drawn, once for a base and a prompt.
    images: int = Field(default=100, ge=1, le=2000)
    #: Share of an epoch that is of class pictures.
    weight: float = Field(default=0.5, gt=0, lt=1)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    seed: int = Field(default=99, ge=0, le=2**31 - 1)

    @property
    def is_on(self) -> bool:
        return bool(self.class_prompt)
