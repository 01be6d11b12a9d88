"""The pretrained model: loaded from a folder, a single file, a hub name, or `tiny`, the one that ships."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.logging import disable_progress_bar
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from trainer.errors import MissingModelError
from trainer.protocol.spec import Base

TINY = "tiny"


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The parts of a Stable Diffusion 1.x / 2.x, in fp32 on the CPU, frozen and in eval mode."""

    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    #: The noise schedule it was trained with.
    noise_schedule: DDPMScheduler
    #: Scheduler class and settings that it samples with.
    sampler: Any

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        prediction: Literal["epsilon", "v_prediction"] = self.noise_schedule.config.prediction_type
        return prediction

    @property
    def vae_scale(self) -> int:
        """Pixels for each latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """The side that it was trained at, px."""
        return int(self.unet.config.sample_size) * self.vae_scale

    @property
    def family(self) -> Literal["sd1", "sd2"]:
        """SD 2.x reads OpenCLIP text embeddings of 1024 numbers; everything else here is laid out as SD 1.x."""
        return "sd2" if self.unet.config.cross_attention_dim == 1024 else "sd1"


def load_base(base: Base) -> BaseModel:
    """The base model of a job, by the real `from_pretrained` / `from_single_file`.

    Raises:
        MissingModelError: it is not there, cannot be reached, needs a licence, is damaged, or is not SD 1.x / 2.x.
    """
    pipeline = _load_pipeline(base)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        # Files may be fp16; what a trainer computes with is its own decision.
        part.float().requires_grad_(False).eval()
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    if schedule.config.prediction_type not in {"epsilon", "v_prediction"}:
        raise MissingModelError(
            f"{base.source} predicts {schedule.config.prediction_type!r}.", "Only epsilon and v_prediction are trained."
        )
    return BaseModel(
        source=base.source,
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        noise_schedule=schedule,
        sampler=pipeline.scheduler,
    )


def _load_pipeline(base: Base) -> StableDiffusionPipeline:
    source = str(tiny_folder()) if base.source == TINY else base.source
    options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    path = Path(source).expanduser()
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        if path.is_file():
            return StableDiffusionPipeline.from_single_file(str(path), config=base.config, **options)
        if path.is_dir():
            _check_kind(base.source, json.loads((path / "model_index.json").read_text(encoding="utf-8")))
            return StableDiffusionPipeline.from_pretrained(path, **options)
        if path.is_absolute() or path.suffix or source.count("/") != 1:
            raise MissingModelError(
                f"There is no model at {base.source}.",
                "Give a folder in diffusers layout, a .safetensors file, or a hub name such as owner/name.",
            )
        index = StableDiffusionPipeline.load_config(source, revision=base.revision)
        _check_kind(base.source, index)
        return StableDiffusionPipeline.from_pretrained(source, revision=base.revision, **options)
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(base.source, error) from error


def _check_kind(source: str, index: dict[str, Any]) -> None:
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise MissingModelError(
            f"{source} is a {kind}; this version trains StableDiffusionPipeline models (SD 1.x and 2.x).",
            "Choose such a base.",
        )


def _explain(source: str, error: Exception) -> MissingModelError:
    text = f"{type(error).__name__}: {error}"
    causes = " ".join(_causes(error))
    if "gated" in text.lower() or "401" in text or "403" in text:
        return MissingModelError(
            f"{source} is gated or private.", "Accept its licence on the hub and log in with `hf auth login`."
        )
    if "LocalEntryNotFound" in causes or "offline" in text.lower() or "connect" in text.lower():
        return MissingModelError(
            f"{source} is not on this machine and the hub cannot be reached.",
            "Check the network, or download it once and give its folder.",
        )
    first_line = text.splitlines()[0][:300]
    return MissingModelError(f"{source} cannot be loaded ({first_line}).", "Is it a whole Stable Diffusion 1.x / 2.x?")


def _causes(error: BaseException | None) -> Iterator[str]:
    """Names of an exception and of what led to it: the loaders hide a network error behind an OSError."""
    while error is not None:
        yield type(error).__name__
        error = error.__cause__ or error.__context__


def tiny_folder() -> Path:
    """Where the small Stable Diffusion lies that ships with the package (64 px, made by `recipes/tiny`)."""
    return Path(str(resources.files("trainer.models") / "tiny"))


def fingerprint(*modules: nn.Module) -> str:
    """SHA-256 over the weights of `modules`: caches made with other weights have another name."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
