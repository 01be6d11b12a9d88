"""Captions as the denoiser reads them: embedded once and kept, or, where a text encoder is trained, anew each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainer.models.base import BaseModel
from trainer.tasks.cache import cache_key, cached

#: Captions that go through the text encoders at once.
_BATCH = 32


@dataclass(kw_only=True)
class CaptionEmbeddings:
    """The embeddings of all captions of a job, on the CPU, memory-mapped."""

    base: BaseModel
    #: The cache of the main dataset.
    folder: Path
    #: Of the weights that embeddings depend on.
    fingerprint: str
    device: torch.device
    #: A text encoder is trained: what was embedded before is not true any more.
    is_trained: bool
    _known: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def add(self, captions: Iterable[str], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Embed what is not known yet, and keep it; the empty caption is always among it.

        `progress` is told done and total before each few captions that are embedded.
        """
        texts = sorted({*captions, ""} - self._known.keys())
        if self.is_trained or not texts:
            return
        key = cache_key(self.fingerprint, [*texts])
        stored = cached(self.folder, "captions", key, lambda: self._embed_all(texts, progress))
        for place, text in enumerate(texts):
            self._known[text] = {name: tensor[place] for name, tensor in stored.items()}

    def embed(self, captions: list[str]) -> Mapping[str, Tensor]:
        """`caption_BTD` and whatever else the base reads of captions, on the device."""
        if self.is_trained:
            return self.base.encode_text(captions)
        self.add(captions)
        rows = [self._known[caption] for caption in captions]
        return {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}

    @torch.no_grad()
    def _embed_all(self, texts: list[str], progress: Callable[[int, int], None]) -> dict[str, Tensor]:
        encoders = self.base.text_encoders.values()
        for encoder in encoders:
            encoder.to(self.device)
        parts = []
        for start in range(0, len(texts), _BATCH):
            progress(start, len(texts))
            parts.append(self.base.encode_text(texts[start : start + _BATCH]))
        for encoder in encoders:
            encoder.to("cpu")
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
