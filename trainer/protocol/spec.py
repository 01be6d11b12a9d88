"""What a job is: the one immutable `spec.json` that the bot (or `trainer new`) writes and `trainer run` reads.

A spec is complete: everything that changes the result stands in it. Unknown fields are refused, with the
nearest known name; every number has a range, and both stand in the schema that people are shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from trainer.protocol.augmentation import Augmentation
from trainer.protocol.mix import MixPart, MixRole, check_mix

SPEC_VERSION: Literal[1] = 1

Settings: TypeAlias = Mapping[str, Any]


class SpecError(ValueError):
    """Settings that cannot be trained with; the message is a sentence for a person."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Base(_Frozen):
    """The pretrained model to start from."""

    #: A folder in diffusers layout, a single `.safetensors` file, a hub name (`owner/name`), or `tiny`.
    source: str = Field(default="tiny", min_length=1, max_length=500)
    #: Hub revision (branch, tag or commit); only for hub names.
    revision: str | None = None
    #: A folder in diffusers layout whose configs describe a single-file `source`; None asks the hub.
    config: str | None = None


class Targets(StrEnum):
    """Which layers of the UNet get a LoRA."""

    #: q, k, v and output projections of every attention: the usual choice, 1x parameters.
    ATTENTION = "attention"
    #: Attention, feed-forward and projection layers.
    LINEAR = "linear"
    #: Every linear and convolutional layer of the transformer and residual blocks: learns new shapes best.
    ALL = "all"


class Adapter(_Frozen):
    """The LoRA that is trained (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A."""

    method: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=256)
    #: None means alpha = rank, a scale of 1.
    alpha: float | None = Field(default=None, gt=0, le=1024)
    dropout: float = Field(default=0.0, ge=0, le=0.9)
    targets: Targets = Targets.ATTENTION
    #: Train a LoRA on the text encoder too.
    text_encoder: bool = False

    @property
    def effective_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


class Schedule(StrEnum):
    """How the learning rate moves after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Precision(StrEnum):
    """`auto` takes bf16 where the GPU has it, fp16 on older GPUs, fp32 on a CPU."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Training(_Frozen):
    """The optimization: AdamW (Loshchilov & Hutter 2019) on the noise prediction error."""

    epochs: int = Field(default=20, ge=1, le=1000)
    #: How often each training picture is seen in one epoch.
    repeats: int = Field(default=1, ge=1, le=1000)
    #: Pictures for one optimizer step (the effective batch).
    batch_size: int = Field(default=4, ge=1, le=1024)
    #: Pictures in memory at once; the rest of `batch_size` comes by gradient accumulation. None: 4 at most.
    micro_batch_size: int | None = Field(default=None, ge=1, le=256)
    learning_rate: float = Field(default=1e-4, ge=1e-6, le=1e-2)
    #: None: half of `learning_rate`. Only used with `adapter.text_encoder`.
    text_encoder_learning_rate: float | None = Field(default=None, ge=1e-7, le=1e-2)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    schedule: Schedule = Schedule.COSINE
    #: Share of all steps over which the rate rises from 0.
    warmup_share: float = Field(default=0.05, ge=0, le=0.5)
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    #: Min-SNR-gamma loss weighting (Hang et al. 2023, arXiv:2303.09556); None weighs all timesteps alike.
    snr_gamma: float | None = Field(default=None, gt=0, le=100)
    #: Share of captions replaced by the empty one, so that classifier-free guidance keeps working.
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    #: A word put before each caption that does not hold it yet.
    trigger: str = Field(default="", max_length=50)
    #: Put the tags of a caption in another order each time; captions that are sentences stay as they are.
    tag_shuffle: bool = False
    #: Tags that stay in front, the trigger counted. Only used with `tag_shuffle`.
    keep_tags: int = Field(default=1, ge=0, le=75)
    #: What a class picture's loss counts beside a training picture's. Only used with a regularization part in `mix`.
    regularization_weight: float = Field(default=1.0, gt=0, le=10)
    #: Side of the square whose area a picture is brought to, px; None: the base's own size.
    resolution: int | None = Field(default=None, ge=64, le=2048, multiple_of=8)
    precision: Precision = Precision.AUTO
    seed: int = Field(default=0, ge=0, le=2**31 - 1)

    @property
    def effective_micro_batch_size(self) -> int:
        return min(self.micro_batch_size or 4, self.batch_size)


class Validation(_Frozen):
    """The honest loss: frozen (image, timestep, noise) triples, before the first step and after each epoch."""

    #: Timesteps for each picture, spread evenly over the noise schedule.
    timesteps: int = Field(default=4, ge=1, le=100)
    #: (timestep, noise) draws for each picture and timestep: more draws, less scatter.
    draws: int = Field(default=2, ge=1, le=64)
    #: Pictures of the validation split that are used, chosen once.
    max_images: int = Field(default=64, ge=1, le=10_000)
    seed: int = Field(default=555, ge=0, le=2**31 - 1)


class EarlyStopping(_Frozen):
    """Stop when the validation loss, as a ratio to the base model's, no longer falls."""

    enabled: bool = True
    #: Epochs without an improvement before the training stops.
    patience: int = Field(default=4, ge=1, le=1000)
    #: How much lower the ratio must be to count as an improvement (0.002 = 0.2 % of the base's loss).
    min_delta: float = Field(default=0.002, ge=0, le=1)
    #: Epochs that never stop the training.
    warmup_epochs: int = Field(default=2, ge=0, le=1000)


class Samples(_Frozen):
    """The pictures that show how far the training is: the same prompts and seeds each time, the base's first."""

    #: Empty: captions of the validation split.
    prompts: tuple[Prompt, ...] = Field(default=(), max_length=8)
    negative_prompt: str = Field(default="", max_length=500)
    every_epochs: int = Field(default=1, ge=1, le=1000)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    seed: int = Field(default=1234, ge=0, le=2**31 - 1)


class Spec(_Frozen):
    """One training job, complete."""

    version: Literal[1] = SPEC_VERSION
    name: str = Field(default="lora", pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")
    #: A folder that `trainer prepare` wrote.
    dataset: str = Field(min_length=1)
    #: The preset that the settings started from, for the record.
    preset: str = "lora"
    base: Base = Base()
    adapter: Adapter = Adapter()
    training: Training = Training()
    validation: Validation = Validation()
    early_stopping: EarlyStopping = EarlyStopping()
    samples: Samples = Samples()
    augmentation: Augmentation = Augmentation()
    #: Further datasets that are trained on beside `dataset`.
    mix: tuple[MixPart, ...] = Field(default=(), max_length=16)

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        check_mix(self.dataset, self.mix)
        return self

    def write(self, job_dir: Path) -> Path:
        """Write `spec.json` into `job_dir` by rename, and return its path."""
        job_dir.mkdir(parents=True, exist_ok=True)
        path = job_dir / "spec.json"
        part = path.with_suffix(".json.part")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)
        return path


def read_spec(job_dir: Path) -> Spec:
    """The spec of a job folder.

    Raises:
        SpecError: `spec.json` is missing, is not JSON, or holds settings that cannot be trained with.
    """
    path = job_dir / "spec.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{job_dir} has no spec.json; write one with `python -m trainer new`.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} does not hold a JSON object.")
    if raw.get("version", SPEC_VERSION) != SPEC_VERSION:
        raise SpecError(f"{path} is of version {raw['version']}; this trainer reads version {SPEC_VERSION}.")
    return make_spec(raw)


def make_spec(settings: Settings) -> Spec:
    """A spec from nested settings.

    Raises:
        SpecError: one sentence that names every problem, with the nearest known name or the allowed range.
    """
    try:
        return Spec.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        raise SpecError(" ".join(_sentences(error))) from error


def merge(settings: Settings, *overrides: Settings) -> dict[str, Any]:
    """`settings` with each of `overrides` laid over it, group by group."""
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()
    }
    for override in overrides:
        for key, value in override.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def known_settings(model: type[BaseModel] = Spec, prefix: str = "") -> Iterator[str]:
    """Every dotted name that a spec knows: `training.epochs`, `adapter.rank`, …"""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def allowed_range(dotted_name: str) -> tuple[float, float]:
    """The smallest and largest value of a numeric setting: `allowed_range("training.epochs") == (1, 1000)`.

    A setting of a list's item goes by the item's place: `mix.0.repeats`.
    """
    *groups, name = dotted_name.split(".")
    bounds: dict[str, float] = {}
    for constraint in _model_of(groups).model_fields[name].metadata:
        for key in ("ge", "gt", "le", "lt"):
            if (value := getattr(constraint, key, None)) is not None:
                bounds["low" if key in {"ge", "gt"} else "high"] = value
    return bounds["low"], bounds["high"]


def idle_settings(spec: Spec) -> Iterator[str]:
    """A sentence for each setting that was changed and does nothing, because what it belongs to is off."""
    training, augmentation = spec.training, spec.augmentation
    if not augmentation.is_on and augmentation != Augmentation():
        yield "augmentation.variants and augmentation.flip do nothing with the preset none."
    if not training.tag_shuffle and training.keep_tags != Training().keep_tags:
        yield "training.keep_tags does nothing without training.tag_shuffle."
    if training.regularization_weight != 1 and not any(part.role is MixRole.REGULARIZATION for part in spec.mix):
        yield "training.regularization_weight does nothing without a regularization dataset in mix."
    if training.text_encoder_learning_rate is not None and not spec.adapter.text_encoder:
        yield "training.text_encoder_learning_rate does nothing without adapter.text_encoder."


def _model_of(groups: Sequence[str]) -> type[BaseModel]:
    """The model that a dotted path leads to; places in a list lead to what the list holds."""
    model: type[BaseModel] = Spec
    for group in groups:
        if not group.isdigit():
            annotation = model.model_fields[group].annotation
            found = next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)), None)
            assert found is not None
            assert issubclass(found, BaseModel)
            model = found
    return model


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                *groups, _ = map(str, problem["loc"])
                is_in_list = any(group.isdigit() for group in groups)
                known = known_settings(_model_of(groups), ".".join([*groups, ""])) if is_in_list else known_settings()
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                yield f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ".")
            case "missing":
                yield f"{name} is missing."
            case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
                low, high = allowed_range(name)
                yield f"{name} {problem['input']} is outside {low:g} – {high:g}."
            case "enum" | "literal_error":
                expected = (problem.get("ctx") or {})["expected"]
                yield f"{name} {problem['input']!r} is not one of {expected}."
            case "value_error":
                sentence = str((problem.get("ctx") or {})["error"])
                yield f"{name}: {sentence}" if name else sentence[0].upper() + sentence[1:]
            case "string_pattern_mismatch" if name == "name":
                yield (
                    f"name {problem['input']!r} must be 1–40 small letters, digits, '.', '-' or '_', and begin with a "
                    "letter or digit."
                )
            case _:
                yield f"{name} {problem['input']!r}: {problem['msg'].lower()}."
