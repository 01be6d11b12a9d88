"""A base that is loaded to draw images, with one trained model applied to it at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.device import autocast, choose_precision, dtype_of, to_device, total_memory_bytes
from trainer.errors import BadSpecError
from trainer.models.base import LoadedBase, load_base
from trainer.models.families.model import encoders_running, stack_captions
from trainer.models.methods.applying import Change, ChangeableWeights, WordChange
from trainer.models.widening import release_pages
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.settings import Base, Objective
from trainer.protocol.text import _
from trainer.protocol.text import size as in_bytes
from trainer.protocol.training_settings import Precision
from trainer.tasks.drawing import BATCH, SamplePlan, draw_batches
from trainer.tasks.memory_prediction import StepSettings, predict_sampling

log = logging.getLogger(__name__)

_Row: TypeAlias = Mapping[str, Tensor]

#: Memory of the libraries, bytes.
_LIBRARIES = 0.7 * 2**30
#: Weights below this share of the memory always fit with all that drawing takes; a prediction takes seconds.
_SMALL_SHARE = 1 / 12


class BaseSampler:
    """Draws with a base and with models that were trained on it; the base stays loaded between them.

    Raises:
        MissingModelError: The base is missing, damaged, or of no supported family.
        BadSpecError: The base does not tell what it predicts.
    """

    def __init__(self, settings: Base, objective: Objective, device: torch.device) -> None:
        self.settings = settings
        self.objective = objective
        self.device = device
        self.base: LoadedBase = load_base(settings, objective, as_stored=True)
        self.precision = self._choose_precision()
        self._weights: ChangeableWeights | None = None
        #: Of the base's own text encoders.
        self._embedded: dict[str, _Row] = {}

    def __repr__(self) -> str:
        return f"<BaseSampler {self.settings.source} on {self.device}>"

    def fits(self, settings: Base, objective: Objective) -> bool:
        """True if it is what `load_base` would load."""
        return (self.settings, self.objective) == (settings, objective)

    def largest_batch(self, size: Size, limit: int | None) -> int:
        """Return how many images of this size may be drawn at once.

        Raises:
            BadSpecError: Not even one fits into the memory of the device.
        """
        batch = min(BATCH, limit or BATCH)
        memory, weights = total_memory_bytes(self.device), self._bytes_of_weights()
        if weights < _SMALL_SHARE * memory:
            return batch
        while (needed := self._predict(size, batch) + _LIBRARIES) > memory and batch > 1:
            batch //= 2
        if needed > memory:
            raise BadSpecError(
                _(
                    "Drawing one image of {width}×{height} needs about {needed} of memory, and this device has "
                    "{memory}.",
                    width=size[0],
                    height=size[1],
                    needed=in_bytes(needed),
                    memory=in_bytes(memory),
                ),
                _("Draw smaller images, or choose a smaller base."),
            )
        return batch

    def draw(
        self,
        change: Change | None,
        strength: float,
        plan: Sequence[SamplePlan],
        *,
        steps: int,
        guidance: float,
        size: Size,
        batch: int,
        progress: Callable[[int], None],
    ) -> Generator[list[PILImage.Image], None, None]:
        """Yield the images of `plan` in batches; see `draw_batches`.

        Args:
            change: What a model changes of the base; None: the base alone.
            strength: How much of it.

        Raises:
            CheckpointError, BadSpecError: The model does not fit the base.
        """
        if self._weights is None:
            # Not before it is known that it fits.
            self._weights = ChangeableWeights(self.base, self.device, dtype_of(self.precision))
        self._weights.apply(None if isinstance(change, WordChange) else change, strength)
        texts = {text for each in plan for text in (each.prompt, each.negative)}
        rows = self._embed(texts, change, strength)

        def embed(captions: list[str]) -> Mapping[str, Tensor]:
            own = [rows[caption] for caption in captions]
            stacked = {"caption_BTD": stack_captions([row["caption_BTD"][0] for row in own])}
            if "pooled_BD" in own[0]:
                stacked["pooled_BD"] = torch.cat([row["pooled_BD"] for row in own])
            return {name: to_device(tensor, self.device) for name, tensor in stacked.items()}

        batches = draw_batches(
            self.base,
            plan,
            steps=steps,
            guidance=guidance,
            size=size,
            embed=embed,
            device=self.device,
            batch=batch,
            progress=progress,
        )
        with autocast(self.device, self.precision), closing(batches):
            yield from batches

    def rest(self) -> None:
        """Take the model off the base, and free memory that is not needed until the next job."""
        if self._weights is not None:
            self._weights.apply(None, 0)
        vae_and_encoders = (self.base.vae, *self.base.text_encoders.values())
        release_pages(parameter.data for part in vae_and_encoders for parameter in part.parameters())
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _embed(self, texts: Iterable[str], change: Change | None, strength: float) -> Mapping[str, _Row]:
        assert self._weights is not None
        if isinstance(change, WordChange) and strength > 0:
            with change.known(self.base) as word:
                learned = self._encode(texts)
                if strength == 1:
                    return learned
                with word.base_only():
                    plain = self._encode(texts)
            return {text: _between(plain[text], learned[text], strength) for text in learned}
        if self._weights.changes_text():
            return self._encode(texts)
        self._embedded |= self._encode(set(texts) - self._embedded.keys())
        return self._embedded

    @torch.no_grad()
    def _encode(self, texts: Iterable[str]) -> dict[str, _Row]:
        texts = sorted(texts)
        if not texts:
            return {}
        with encoders_running(self.base, self.device):
            # One by one: captions of another number of chunks have embeddings of another length.
            return {
                text: {name: tensor.cpu() for name, tensor in self.base.encode_text([text]).items()} for text in texts
            }

    def _choose_precision(self) -> Precision:
        """On a CPU fp32, as images are drawn while training, unless the weights would take half of its memory."""
        precision = choose_precision(Precision.AUTO)
        if precision is Precision.AUTO:
            is_large = 4 * self._count_weights() > total_memory_bytes(self.device) / 2
            precision = Precision.BF16 if is_large else Precision.FP32
        return precision

    def _count_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.base.denoiser.parameters())

    def _bytes_of_weights(self) -> int:
        return dtype_of(self.precision).itemsize * self._count_weights()

    def _predict(self, size: Size, images: int) -> float:
        side = math.ceil(math.sqrt(size[0] * size[1]) / self.base.vae_scale) * self.base.vae_scale
        settings = StepSettings(precision=self.precision, resolution=side)
        try:
            return self._bytes_of_weights() + predict_sampling(self.base, settings, images=images)
        except (RuntimeError, NotImplementedError):
            # An operation that fake tensors lack; a prediction is no reason to refuse a job.
            log.warning("the memory of %r cannot be predicted", self, exc_info=True)
            return self._bytes_of_weights()


def _between(plain: _Row, learned: _Row, strength: float) -> _Row:
    """Interpolate the embeddings of a prompt without (`plain`) and with the learned word; strength 1 is with it."""
    blended = {}
    for name, tensor in plain.items():
        other = learned[name]
        if tensor.shape != other.shape:
            # The word has more tokens than its letters, and the prompt needs another chunk.
            tensor, other = (each[None] for each in stack_captions([tensor[0], other[0]]))
        blended[name] = torch.lerp(tensor, other, strength)
    return blended
