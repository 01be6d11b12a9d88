"""Models that write sentences: BLIP, BLIP-2 and GIT are only shown the picture, Florence-2 is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from trainer.captioning.captioner import Detail
from trainer.captioning.cleaning import cleaned

#: Beams that Florence-2's and BLIP's authors generate with.
_BEAMS = 3
#: Tokens of the model's own vocabulary.
_MAX_NEW_TOKENS = {Detail.SHORT: 40, Detail.DETAILED: 100}
_TASKS = {Detail.SHORT: "<CAPTION>", Detail.DETAILED: "<DETAILED_CAPTION>"}


@dataclass(frozen=True, kw_only=True)
class Describer:
    """A BLIP, BLIP-2 or GIT."""

    name: str
    model: Any
    processor: Any
    detail: Detail

    def write(self, pictures: Sequence[Image.Image]) -> list[str]:
        inputs = self.processor(images=list(pictures), return_tensors="pt")
        return _generate(self.model, self.processor, inputs, self.detail)


@dataclass(frozen=True, kw_only=True)
class Florence:
    """A Florence-2."""

    name: str
    model: Any
    processor: Any
    detail: Detail

    def write(self, pictures: Sequence[Image.Image]) -> list[str]:
        tasks = [_TASKS[self.detail]] * len(pictures)
        inputs = self.processor(images=list(pictures), text=tasks, padding=True, return_tensors="pt")
        return _generate(self.model, self.processor, inputs, self.detail)


def _generate(model: Any, processor: Any, inputs: Any, detail: Detail) -> list[str]:
    """Greedy over beams: the same picture gets the same caption each time."""
    inputs = inputs.to(model.device, model.dtype)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, do_sample=False, num_beams=_BEAMS, max_new_tokens=_MAX_NEW_TOKENS[detail], no_repeat_ngram_size=3
        )
    return [cleaned(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]
