"""A local CLIP or DINO: pictures (and, with CLIP, prompts) as unit vectors whose product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from trainer.errors import MissingModelError

_CLIP = "clip"
#: DINO (Caron et al. 2021, arXiv:2104.14294) is a plain ViT; DINOv2 is arXiv:2304.07193.
_DINO = frozenset({"dinov2", "dinov2_with_registers", "dinov3_vit", "vit"})
_HINT = "Set samples.similarity_model to a folder of transformers that holds a CLIP or a DINO with its preprocessor."
#: Pictures that go through the model at once.
_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model that tells how alike pictures are."""

    folder: str
    model: Any
    processor: Any
    #: None: it reads no text.
    tokenizer: Any
    device: torch.device

    @torch.no_grad()
    def pictures(self, paths: Sequence[Path], check: Callable[[], None] = lambda: None) -> Tensor:
        """Pictures of any size as unit vectors, [N, D] on the CPU; `check` is called between batches."""
        parts = []
        for start in range(0, len(paths), _TOGETHER):
            check()
            pixels = self.processor(images=[_open(path) for path in paths[start : start + _TOGETHER]])["pixel_values"]
            pixels_BCHW = torch.stack([torch.as_tensor(each) for each in pixels]).to(self.device)
            if self.tokenizer is None:
                parts.append(self.model(pixel_values=pixels_BCHW).last_hidden_state[:, 0])
            else:
                parts.append(self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output)
        return normalize(torch.cat(parts).float().cpu(), dim=1)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor | None:
        """Prompts as unit vectors, [N, D] on the CPU; None of a model that reads no text."""
        if self.tokenizer is None:
            return None
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return normalize(self.model.get_text_features(**tokens).pooler_output.float().cpu(), dim=1)


def load_embedder(folder: str, device: torch.device) -> Embedder:
    """The model of a local folder, in eval mode and fp32; the hub is never asked.

    Raises:
        MissingModelError: it is not there, is damaged, or is neither CLIP nor DINO.
    """
    location = Path(folder).expanduser()
    if not (location / "config.json").is_file():
        raise MissingModelError(f"There is no similarity model in {folder}.", _HINT)
    try:
        config = AutoConfig.from_pretrained(location, local_files_only=True, trust_remote_code=False)
        if config.model_type not in {_CLIP, *_DINO}:
            raise MissingModelError(f"{folder} is a {config.model_type} model, neither CLIP nor DINO.", _HINT)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModel.from_pretrained(location, dtype=torch.float32, use_safetensors=True, **options)
        # Pillow gives the same pixels with and without torchvision, which this project does without.
        processor = AutoImageProcessor.from_pretrained(location, backend="pil", **options)
        tokenizer = AutoTokenizer.from_pretrained(location, **options) if config.model_type == _CLIP else None
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to OSError.
        first_line = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        raise MissingModelError(f"The similarity model {folder} cannot be loaded ({first_line}).", _HINT) from error
    model = model.to(device).eval().requires_grad_(False)
    return Embedder(folder=folder, model=model, processor=processor, tokenizer=tokenizer, device=device)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")
