"""How a training is judged: the honest loss, when to stop, and the pictures that show how far it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from trainer.protocol.frozen import Frozen

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Validation(Frozen):
    """The honest loss: frozen (image, timestep, noise) triples, before the first step and after each epoch."""

    #: Timesteps for each picture, spread evenly over the noise schedule.
    timesteps: int = Field(default=4, ge=1, le=100)
    #: (timestep, noise) draws for each picture and timestep: more draws, less scatter.
    draws: int = Field(default=2, ge=1, le=64)
    #: Pictures of the validation split that are used, chosen once.
    max_images: int = Field(default=64, ge=1, le=10_000)
    #: Training pictures that are measured in the same way, so that overfitting is seen as a gap; 0: none.
    train_images: int = Field(default=32, ge=0, le=10_000)
    #: Validate every so many steps too, for the curve; decisions are made at the end of an epoch. None: only there.
    every_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=555, ge=0, le=2**31 - 1)
    #: Look at the test split at the end, and export; false for the runs of a study, of which one is looked at and kept.
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
    #: How much of the ratio that is looked at is that of the epochs before (exponential smoothing); 0: none.
    smoothing: float = Field(default=0.3, ge=0, lt=1)
    #: Hours after which the training ends with the epoch, whatever the loss; None: no limit.
    max_hours: float | None = Field(default=None, gt=0, le=10_000)


class Samples(Frozen):
    """The pictures that show how far the training is: the same prompts and seeds each time, the base's first."""

    #: Empty: captions of the validation split.
    prompts: tuple[Prompt, ...] = Field(default=(), max_length=8)
    #: Prompts that have nothing to do with the data, drawn before and after: what did the model forget?
    unrelated_prompts: tuple[Prompt, ...] = Field(
        default=("a mountain lake in the morning", "a bowl of fruit on a table"), max_length=8
    )
    negative_prompt: str = Field(default="", max_length=500)
    every_epochs: int = Field(default=1, ge=1, le=1000)
    steps: int = Field(default=25, ge=1, le=200)
    guidance: float = Field(default=7.0, ge=0, le=30)
    seed: int = Field(default=1234, ge=0, le=2**31 - 1)
    #: A local CLIP or DINO model (folder of transformers): likeness of samples to prompts and training pictures.
    similarity_model: str | None = Field(default=None, max_length=500)
