"""Settings of an image classifier."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from trainer.protocol.frozen import Frozen


class TaskKind(StrEnum):
    """What is trained."""

    DIFFUSION = "diffusion"
    CLASSIFICATION = "classification"


class ClassWeights(StrEnum):
    NONE = "none"
    #: A class with few pictures counts as much as one with many.
    BALANCED = "balanced"


class Classifier(Frozen):
    """A pretrained image classifier with a new head for the dataset's classes, trained by cross-entropy."""

    #: Share of the target that is spread over all classes (Szegedy et al. 2015, arXiv:1512.00567).
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: ClassWeights = ClassWeights.NONE
    #: Of the features before the head.
    dropout: float = Field(default=0.0, ge=0, le=0.9)
