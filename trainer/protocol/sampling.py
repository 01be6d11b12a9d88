"""A sampling job: images that trained models draw of the same prompts and seeds (`sampling.json`).

The bot (or `trainer sample --job`) writes it, and `trainer sample JOB_DIR` draws it. The images are one grid: models x
strengths x prompts x seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, field_validator, model_validator

from trainer.protocol.bucket_shapes import Size, bucket_shapes
from trainer.protocol.frozen import Frozen, RelativePath
from trainer.protocol.settings import Base, Prediction, Prompt
from trainer.protocol.spec import SpecError, validated
from trainer.protocol.text import _, ngettext

#: Images of one sampling job.
MAX_IMAGES = 256
#: Sides of images are multiples of this, px: the VAE's scale.
SIDE_STEP = 8
#: Area over that of the base's own square; beyond it Stable Diffusion repeats its subject.
_MOST_AREA = 1.5

#: What a model is called on sheets and in messages: `epoch 12`, `momo #7`.
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]


class SampledBase(Frozen):
    """The base alone; it has no strength."""

    kind: Literal["base"] = "base"
    label: Label = "base"


class SampledJob(Frozen):
    """What a training job has learned, at its end or after an epoch."""

    kind: Literal["job"] = "job"
    label: Label
    #: The folder of the training job, finished or running.
    job_dir: str = Field(min_length=1, max_length=4096)
    #: An epoch with a kept checkpoint or an exported file; None: the result (the best epoch so far, if it still runs).
    epoch: int | None = Field(default=None, ge=1)


class SampledFile(Frozen):
    """An adapter from elsewhere: a `.safetensors` file that was put into the sampling job's own folder."""

    kind: Literal["file"] = "file"
    label: Label
    path: RelativePath


SampledModel: TypeAlias = Annotated[SampledBase | SampledJob | SampledFile, Field(discriminator="kind")]
Strength = Annotated[float, Field(ge=0, le=1.5)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class SampledPrompt(Frozen):
    """What is drawn, and what is not wanted."""

    prompt: Prompt
    negative: str = Field(default="", max_length=500)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of the grid; the numbers are indices into the spec's lists."""

    #: Its index in the whole grid, from 0: the file is `samples/0000.png`.
    index: int
    model: int
    #: None: the base, which has none.
    strength: float | None
    prompt: int
    seed: int

    @property
    def path(self) -> str:
        """Its file, relative to the job folder."""
        return f"samples/{self.index:04d}.png"


class SamplingSpec(Frozen):
    """One sampling job, complete."""

    version: Literal[1] = 1
    #: As in the spec of the jobs that are sampled.
    base: Base = Base()
    #: What the base predicts, where neither its files nor a job's spec say.
    prediction: Prediction = Prediction.AUTO
    models: tuple[SampledModel, ...] = Field(max_length=64)
    prompts: tuple[SampledPrompt, ...] = Field(max_length=16)
    #: Each prompt is drawn once with each seed; the noise depends on nothing else.
    seeds: tuple[Seed, ...] = Field(default=(1234,), max_length=16)
    #: How strongly a model changes the base: 0 is the base, 1 is as trained.
    strengths: tuple[Strength, ...] = Field(default=(1.0,), max_length=16)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    #: Of the images, px; None: the square that the first job was trained at, or the base's own.
    width: int | None = Field(default=None, ge=64, le=2048, multiple_of=SIDE_STEP)
    height: int | None = Field(default=None, ge=64, le=2048, multiple_of=SIDE_STEP)

    @field_validator("seeds", "strengths", "prompts", mode="after")
    @classmethod
    def _drop_repeated(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError(_("choose at least one model to draw with."))
        if not self.prompts:
            raise ValueError(_("say what to draw: there is no prompt."))
        if not (self.seeds and self.strengths):
            raise ValueError(_("give at least one seed and one strength."))
        labels = [model.label for model in self.models]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(_("two models are called {label}; give each a name of its own.", label=twice))
        if (self.width is None) != (self.height is None):
            raise ValueError(_("give both a width and a height, or neither."))
        if self.images > MAX_IMAGES:
            images = ngettext("{n} image", "{n} images", self.images)
            raise ValueError(
                _(
                    "that is {images}; at most {most} are drawn at once. Choose fewer models, prompts, strengths or "
                    "seeds.",
                    images=images,
                    most=MAX_IMAGES,
                )
            )
        return self

    @property
    def images(self) -> int:
        """How many images the grid has."""
        columns = sum(1 if model.kind == "base" else len(self.strengths) for model in self.models)
        return columns * len(self.prompts) * len(self.seeds)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every image of the grid in the order of drawing: the weights change as seldom as possible."""
        combinations = [
            (number, strength, prompt, seed)
            for number, model in enumerate(self.models)
            for strength in ((None,) if model.kind == "base" else self.strengths)
            for prompt in range(len(self.prompts))
            for seed in self.seeds
        ]
        return tuple(
            Cell(index=index, model=model, strength=strength, prompt=prompt, seed=seed)
            for index, (model, strength, prompt, seed) in enumerate(combinations)
        )


def make_sampling_spec(settings: dict[str, Any]) -> SamplingSpec:
    """Validate nested settings, in their JSON form.

    Raises:
        SpecError: One sentence for each problem, with the allowed range.
    """
    return validated(SamplingSpec, settings)


def sampling_sizes(resolution: int) -> tuple[Size, ...]:
    """Return common sizes of images for a base of this resolution: square, then portrait and landscape."""
    shapes = bucket_shapes(resolution, max(SIDE_STEP, resolution // 8))
    square = min(shapes, key=lambda size: (abs(size[0] - size[1]), -size[0]))
    wanted = (3 / 4, 2 / 3, 4 / 3, 3 / 2, 16 / 9)
    nearest = [min(shapes, key=lambda size: abs(size[0] / size[1] - aspect)) for aspect in wanted]
    return tuple(dict.fromkeys([square, *nearest]))


def check_size(size: Size, resolutions: Sequence[int]) -> None:
    """Check a size of images against the resolutions of the base and of what was trained on it, px.

    Raises:
        SpecError: It is too small or too large to give good images, with what fits.
    """
    low, high = min(resolutions), max(resolutions)
    if (
        min(size) < low // 2
        or max(size) > 2 * high
        or size[0] * size[1] > _MOST_AREA * high**2
        or any(side % SIDE_STEP for side in size)
    ):
        fitting = ", ".join(f"{width}×{height}" for width, height in sampling_sizes(high))
        raise SpecError(
            _(
                "This base draws images of about {resolution} px well, not {width}×{height}. Sizes that fit: {sizes}.",
                resolution=high,
                width=size[0],
                height=size[1],
                sizes=fitting,
            )
        )


class AdapterFacts(Frozen):
    """What the header of an adapter file says, as `python -m trainer adapter FILE` prints it."""

    #: `sd1`, `sd2`, `sdxl` or `sd3`.
    family: str
    #: `lora`, `dora`, `loha`, `lokr`, `ia3`, `difference` for whole differences of weights, or `textual_inversion`.
    method: str
    #: The ranks of its layers, ascending; empty where the kind has none.
    ranks: tuple[int, ...]
    layers: int
    #: The modules that it changes: `unet`, `text_encoder`, …
    modules: tuple[str, ...]
    bytes: int
    #: Its name and its trigger, where the header has them; a word has one always.
    title: str = ""
    trigger: str = ""
    #: Tokens of a word; 0: it is none.
    vectors: int = 0
