"""Models that choose tags: image classifiers with a yes or no for each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

#: Probability from which a tag is given; where WD14's and its followers' authors put it.
THRESHOLD = 0.35
#: Tags a caption, the surest: about what 75 tokens hold.
MAX_TAGS = 25


@dataclass(frozen=True, kw_only=True)
class Tagger:
    """A multi-label classifier."""

    name: str
    model: Any
    processor: Any

    def write(self, pictures: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            probabilities_BL = self.model(**inputs).logits.float().sigmoid()
        labels: dict[int, str] = self.model.config.id2label
        return [", ".join(_tags(row.tolist(), labels)) for row in probabilities_BL]


def _tags(probabilities: Sequence[float], labels: dict[int, str]) -> list[str]:
    """The surest first; `long_hair` as `long hair`; no ratings, which say who may look and not what is there."""
    ranked = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    sure = [labels[index] for index in ranked if probabilities[index] >= THRESHOLD]
    return [label.replace("_", " ").strip() for label in sure if not label.startswith("rating:")][:MAX_TAGS]
