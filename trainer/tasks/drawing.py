"""Draws images with a diffusion model: samples for an epoch, and class images for prior preservation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from PIL import Image as PILImage
from torch import Tensor

from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import MixSource, Mixture
from trainer.dataset.split.overlap import thumbnail_path
from trainer.exchange.files import atomic_write
from trainer.models.base import LoadedBase
from trainer.models.widening import stand_ins, widened
from trainer.protocol.bucket_shapes import Size
from trainer.protocol.report import Counts, DatasetReport, Image, Split
from trainer.protocol.settings import MixRole, Prior, Samples
from trainer.tasks.task import DrawnSample

#: A contact sheet with fewer images says too little: short prompt lists are drawn with several seeds.
MIN_SAMPLES = 4
#: Images drawn in one call of the pipeline; a kill loses at most these.
BATCH = 4


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """A sample to draw."""

    prompt: str
    seed: int
    negative: str = ""


def plan_samples(prompts: Sequence[str], settings: Samples) -> tuple[SamplePlan, ...]:
    """Plan each prompt once; few prompts get several seeds, so that there are at least MIN_SAMPLES images."""
    rounds = -(-MIN_SAMPLES // len(prompts))
    return tuple(
        SamplePlan(prompt=prompt, seed=settings.seed + index, negative=settings.negative_prompt)
        for index, prompt in enumerate([prompt for prompt in prompts for _ in range(rounds)])
    )


def draw_samples(
    base: LoadedBase,
    plan: Sequence[SamplePlan],
    settings: Samples,
    *,
    resolution: int,
    embed: Callable[[list[str]], Mapping[str, Tensor]],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PILImage.Image]:
    """Draw the images of `plan` in squares of `resolution`; see `draw_batches`.

    `progress` is called after each step with the images that are done and all.
    """
    images: list[PILImage.Image] = []
    batches = draw_batches(
        base,
        plan,
        steps=settings.steps,
        guidance=settings.guidance,
        size=(resolution, resolution),
        embed=embed,
        device=device,
        progress=lambda done: progress(done, len(plan)),
    )
    for batch in batches:
        images.extend(batch)
    return images


@torch.no_grad()
def draw_batches(
    base: LoadedBase,
    plan: Sequence[SamplePlan],
    *,
    steps: int,
    guidance: float,
    size: Size,
    embed: Callable[[list[str]], Mapping[str, Tensor]],
    device: torch.device,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
) -> Generator[list[PILImage.Image], None, None]:
    """Draw the images of `plan` by the base's sampler with classifier-free guidance, `batch` at once; yield each batch.

    An image's noise depends on its seed (and its size) only, not on the rest of the batch. `progress` is called after
    each step with the images that are done: those of a batch one after another, as its steps pass.
    """
    pipeline = base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    done = 0

    def after_step(_pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        progress(done + len(part) * (step + 1) // steps)
        return values

    # Decoded one at a time: at 1024 px an image takes some GB in fp32.
    base.vae.enable_slicing()
    with widened(base.vae, device):
        for start in range(0, len(plan), batch):
            part = plan[start : start + batch]
            arguments = base.sampling_arguments(
                embed([sample.prompt for sample in part]), embed([sample.negative for sample in part])
            )
            # The encoders do not run; their stored dtype must not become that of the latents.
            with stand_ins(base.text_encoders.values()):
                result = pipeline(
                    **arguments,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    height=size[1],
                    width=size[0],
                    generator=[torch.Generator("cpu").manual_seed(sample.seed) for sample in part],
                    callback_on_step_end=after_step,
                )
            done += len(part)
            yield result.images


#: Draws an image for each (prompt, seed); each depends on its own prompt and seed only.
Draw: TypeAlias = Callable[[Sequence[tuple[str, int]]], Sequence[PILImage.Image]]

#: Subfolder of the drawn class images.
_IMAGES = "images"


def prior_source(
    prior: Prior,
    *,
    folder: Path,
    fingerprint: str,
    resolution: int,
    draw: Draw,
    between_batches: Callable[[int, int], None] = lambda done, total: None,
) -> MixSource:
    """Draw the class images and return them as a regularization dataset; images in `folder` are not drawn again.

    Args:
        folder: Cache of class images; jobs may share it.
        fingerprint: Identifies all weights that the images depend on, including the denoiser's.
        resolution: Side of an image, px.
        between_batches: Called with done and total before each batch. It may raise to stop; what is drawn is kept.
    """
    own = folder / prior_name(prior, fingerprint=fingerprint, resolution=resolution)
    (own / _IMAGES).mkdir(parents=True, exist_ok=True)
    names = [f"{_IMAGES}/{number:04d}.png" for number in range(1, prior.images + 1)]
    images = [_read(own, name, prior) for name in names]
    missing = [index for index, image in enumerate(images) if image is None]
    for start in range(0, len(missing), BATCH):
        between_batches(prior.images - len(missing) + start, prior.images)
        indices = missing[start : start + BATCH]
        pil_images = draw([(prior.class_prompt, derive_seed("prior", prior.seed, index)) for index in indices])
        for index, pil_image in zip(indices, pil_images, strict=True):
            # Durable: a file that exists is whole, also after a power cut.
            with atomic_write(own / names[index], durable=True) as partial:
                pil_image.convert("RGB").save(partial)
            images[index] = _read(own, names[index], prior)
    report = _report(prior, [image for image in images if image is not None])
    return MixSource(folder=own, report=report, role=MixRole.REGULARIZATION, weight=prior.weight)


def prior_name(prior: Prior, *, fingerprint: str, resolution: int) -> str:
    """Name of the folder: the prompt, which users see in tables, and a hash of all that an image depends on."""
    key = [fingerprint, prior.class_prompt, prior.steps, prior.guidance, prior.seed, resolution]
    words = re.sub(r"[^a-z0-9]+", "-", prior.class_prompt.lower())[:40].strip("-")
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return f"{words or 'class'}-{digest}"


def _read(folder: Path, name: str, prior: Prior) -> Image | None:
    """Read a class image that was drawn before; None if it is missing or damaged."""
    try:
        with PILImage.open(folder / name) as opened:
            pil_image = opened.convert("RGB")
    except OSError:
        return None
    return Image(
        source=name,
        status="kept",
        split=Split.TRAIN,
        caption=prior.class_prompt,
        # As the preparation of a dataset hashes it, so that equal images are found.
        pixels_sha256=hashlib.sha256(
            f"{pil_image.width}x{pil_image.height}:".encode() + pil_image.tobytes()
        ).hexdigest(),
        width=pil_image.width,
        height=pil_image.height,
        path=name,
    )


def _report(prior: Prior, images: Sequence[Image]) -> DatasetReport:
    number = len(images)
    content = [(image.pixels_sha256, image.caption) for image in images]
    return DatasetReport(
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        counts=Counts(
            images=number, kept=number, dropped=0, refused=0, train=number, validation=0, test=0, captioned=number
        ),
        summary=f"{number} images of “{prior.class_prompt}”, drawn by the base model.",
        images=tuple(images),
    )


def one_of_each_prompt(drawn: Sequence[DrawnSample]) -> list[DrawnSample]:
    """Order samples so that each prompt comes once before further seeds."""
    first = {each.prompt: each for each in reversed(drawn)}.values()
    return [*(each for each in drawn if each in first), *(each for each in drawn if each not in first)]


def learned_images(mixture: Mixture, prompts: Sequence[str]) -> list[PILImage.Image]:
    """Return a training image for each prompt: one with this caption if there is one, else evenly chosen."""
    learned = [each for each in mixture.of(Split.TRAIN) if mixture.source_of(each).role is MixRole.TRAIN]
    images = []
    for index, prompt in enumerate(prompts):
        spread = learned[index * len(learned) // len(prompts)]
        member = next((each for each in learned if prompt and each.image.caption == prompt), spread)
        with TemporaryDirectory() as scratch:
            folder = mixture.source_of(member).folder
            with PILImage.open(thumbnail_path(member.image, folder, Path(scratch) / "small.png")) as opened:
                images.append(opened.convert("RGB"))
    return images
