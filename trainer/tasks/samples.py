"""Sample pictures from a diffusion model: the same prompts and seeds each time, decoded to PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.models.base import BaseModel
from trainer.protocol.settings import Samples

#: A contact sheet with fewer pictures says too little: short prompt lists are drawn with several seeds.
MIN_SAMPLES = 4
#: Pictures that are drawn at once.
_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """One picture to draw."""

    prompt: str
    seed: int


def plan_samples(prompts: Sequence[str], settings: Samples) -> tuple[SamplePlan, ...]:
    """Each prompt once, or, for few prompts, with several seeds, MIN_SAMPLES pictures in all."""
    rounds = -(-MIN_SAMPLES // len(prompts))
    return tuple(
        SamplePlan(prompt=prompt, seed=settings.seed + index)
        for index, prompt in enumerate([prompt for prompt in prompts for _ in range(rounds)])
    )


@torch.no_grad()
def draw_samples(
    base: BaseModel,
    plan: Sequence[SamplePlan],
    settings: Samples,
    *,
    resolution: int,
    embed: Callable[[list[str]], Mapping[str, Tensor]],
    device: torch.device,
    between_steps: Callable[[], None] = lambda: None,
) -> list[Image.Image]:
    """The pictures of `plan`, by the base's sampler with classifier-free guidance.

    The noise of a picture depends on its seed alone, so a picture does not change with the others beside it.
    """
    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    base.vae.to(device)

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        between_steps()
        return values

    pictures: list[Image.Image] = []
    for start in range(0, len(plan), _TOGETHER):
        part = plan[start : start + _TOGETHER]
        text = embed([sample.prompt for sample in part])
        negative = embed([settings.negative_prompt] * len(part))
        result = pipeline(
            **base.sampling_arguments(text, negative),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            height=resolution,
            width=resolution,
            generator=[torch.Generator("cpu").manual_seed(sample.seed) for sample in part],
            callback_on_step_end=after_step,
        )
        pictures.extend(result.images)
    base.vae.to("cpu")
    return pictures
