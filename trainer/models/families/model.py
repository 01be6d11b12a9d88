"""A loaded base model of any family: its modules, text encoding, noising, prediction and sampling.

Shapes: B batch, C latent channels, H and W latent sides, T caption tokens, D embedding width. Timesteps run from 0
(least noise) to `schedule_steps` - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from trainer.models.widening import widened_layers

#: What the denoiser predicts: the noise, the velocity (Salimans & Ho 2022), or noise - image (flow matching).
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "flow"]
#: An embedded caption: `caption_BTD`, and `pooled_BD` for the families that read it. For SDXL also `size_B6`: height
#: and width of the original image, what was cropped at its top and left, and height and width in training, px.
Text: TypeAlias = Mapping[str, Tensor]


class Family(StrEnum):
    """Models with the same layout."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SD3 = "sd3"


class Architecture(Protocol):
    """The modules of a family and how they are called."""

    @property
    def family(self) -> Family: ...

    @property
    def denoiser(self) -> Any: ...

    @property
    def denoiser_name(self) -> str: ...

    @property
    def vae(self) -> Any: ...

    @property
    def text_encoders(self) -> dict[str, Any]: ...

    @property
    def tokenizers(self) -> dict[str, Any]: ...

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]: ...

    def chunk_counts(self, captions: list[str]) -> list[int]:
        """Count the chunks in which CLIP reads each caption."""

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """Predict; `timestep_B` comes from `Noising.read_timestep`."""

    def pipeline(self, scheduler: Any) -> Any: ...


class Noising(Protocol):
    """How noise is added to latents, and what the denoiser must predict."""

    @property
    def schedule(self) -> Any: ...

    @property
    def prediction_type(self) -> PredictionType: ...

    @property
    def steps(self) -> int: ...

    def read_timestep(self, timestep_B: Tensor) -> Tensor:
        """Convert timesteps to what the denoiser reads."""

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor: ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor: ...

    def snr(self, timestep_B: Tensor) -> Tensor: ...

    def draw_timestep(self, seed: int) -> int: ...

    def sampling_arguments(self) -> dict[str, Any]:
        """Arguments that a pipeline needs for this noise."""


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A whole pretrained model; when loaded it is frozen, in eval mode and on the CPU.

    Modules of diffusers and transformers are `Any`: those libraries are untyped.
    """

    #: Its name in the spec.
    source: str
    architecture: Architecture
    noising: Noising
    #: The scheduler for sampling; each pipeline gets a copy.
    sampler: Any

    @property
    def family(self) -> Family:
        return self.architecture.family

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer that is trained."""
        return self.architecture.denoiser

    @property
    def denoiser_name(self) -> str:
        """Its name in a pipeline, in files and in the names of parameters: `unet` or `transformer`."""
        return self.architecture.denoiser_name

    @property
    def vae(self) -> Any:
        return self.architecture.vae

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The modules by name: `text_encoder`, `text_encoder_2`, `text_encoder_3`, as far as they exist."""
        return self.architecture.text_encoders

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizers, by the name of their text encoder."""
        return self.architecture.tokenizers

    @property
    def clip_encoders(self) -> dict[str, Any]:
        """The text encoders that can be trained. Not T5: it is larger than the denoiser, and no program reads an
        adapter of it."""
        return {name: encoder for name, encoder in self.text_encoders.items() if name != "text_encoder_3"}

    def module(self, name: str) -> Any:
        """A module by its name in files: `unet`, `transformer`, `text_encoder`, …"""
        return self.denoiser if name == self.denoiser_name else self.text_encoders[name]

    @property
    def unet(self) -> Any:
        """The denoiser of SD 1, 2 and XL."""
        assert self.denoiser_name == "unet", f"{self.family} has no UNet"
        return self.denoiser

    @property
    def text_encoder(self) -> Any:
        """The first text encoder: the only one of SD 1 and 2."""
        return self.text_encoders["text_encoder"]

    @property
    def tokenizer(self) -> Any:
        return self.tokenizers["text_encoder"]

    @property
    def noise_schedule(self) -> Any:
        """The schedule it was trained with; its timesteps are never set."""
        return self.noising.schedule

    @property
    def prediction_type(self) -> PredictionType:
        return self.noising.prediction_type

    @property
    def schedule_steps(self) -> int:
        return self.noising.steps

    @property
    def vae_scale(self) -> int:
        """Pixels per latent along a side."""
        return vae_scale(self.vae)

    @property
    def resolution(self) -> int:
        """Side of the images it was trained on, px."""
        return int(self.denoiser.config.sample_size) * self.vae_scale

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """Embed captions as `caption_BTD`, and `pooled_BD` where the denoiser reads it; on the encoders' device,
        differentiable."""
        return self.architecture.encode_text(captions)

    def chunk_counts(self, captions: list[str]) -> list[int]:
        """Count the chunks in which CLIP reads each caption: captions with as many have embeddings of one length."""
        return self.architecture.chunk_counts(captions)

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """The denoiser's prediction, [B, C, H, W]."""
        return self.architecture.predict(noisy_BCHW, self.noising.read_timestep(timestep_B), text)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """Noisy latents at the timesteps, [B, C, H, W]."""
        return self.noising.add_noise(latents_BCHW, noise_BCHW, timestep_B)

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """The prediction target, [B, C, H, W]."""
        return self.noising.target(latents_BCHW, noise_BCHW, timestep_B)

    def snr(self, timestep_B: Tensor) -> Tensor:
        """Signal-to-noise ratio in power, [B]."""
        return self.noising.snr(timestep_B)

    def draw_timestep(self, seed: int) -> int:
        """Draw a training timestep from the family's distribution; a function of the seed."""
        return self.noising.draw_timestep(seed)

    def encode_pixels(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode images (-1 to 1) to latents: the posterior's mode, shifted and scaled for the denoiser."""
        return encode_latents(self.vae, pixels_BCHW)

    def pipeline(self) -> Any:
        """Make a diffusers pipeline that shares these modules and has its own scheduler."""
        return self.architecture.pipeline(type(self.sampler).from_config(self.sampler.config))

    def sampling_arguments(self, text: Text, negative: Text) -> dict[str, Any]:
        """Keyword arguments for calling `pipeline()` with embedded captions."""
        longest = math.lcm(text["caption_BTD"].shape[1], negative["caption_BTD"].shape[1])
        embeds = {
            "prompt_embeds": _repeated(text["caption_BTD"], longest),
            "negative_prompt_embeds": _repeated(negative["caption_BTD"], longest),
        }
        if "pooled_BD" in text:
            embeds["pooled_prompt_embeds"] = text["pooled_BD"]
            embeds["negative_pooled_prompt_embeds"] = negative["pooled_BD"]
        return {**embeds, **self.noising.sampling_arguments()}


@contextmanager
def encoders_running(base: LoadedBase, device: torch.device) -> Iterator[None]:
    """Embed captions on a device for a while, by CLIP in fp32 whatever its weights are stored in, and T5 as stored."""
    t5 = base.text_encoders.get("text_encoder_3")
    if t5 is not None:
        t5.to(device)
    try:
        with widened_layers(device, *base.clip_encoders.values()):
            yield
    finally:
        if t5 is not None:
            t5.to("cpu")


def stack_captions(captions_TD: Sequence[Tensor]) -> Tensor:
    """Stack embedded captions, [B, T, D]; those of another length are repeated to a common one.

    Attention returns the same for tokens that are repeated, all equally often; ComfyUI does it, too (`CONDCrossAttn`
    of comfy/conds.py). So an image does not depend on what else is in its batch, as it would with empty chunks.
    """
    longest = math.lcm(*(len(caption_TD) for caption_TD in captions_TD))
    return torch.cat([_repeated(caption_TD[None], longest) for caption_TD in captions_TD])


def _repeated(caption_BTD: Tensor, length: int) -> Tensor:
    times = length // caption_BTD.shape[1]
    return caption_BTD if times == 1 else caption_BTD.repeat(1, times, 1)


def vae_scale(vae: Any) -> int:
    """Pixels per latent along a side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode_latents(vae: Any, pixels_BCHW: Tensor) -> Tensor:
    """Return (mode of the posterior - shift) * scale, [B, C, H, W], computed in fp32 even under autocast.

    SDXL's VAE overflows in fp16. Latents are encoded once, so fp32 costs little.
    """
    with torch.autocast(pixels_BCHW.device.type, enabled=False):
        mode_BCHW: Tensor = vae.encode(pixels_BCHW.float()).latent_dist.mode()
    # SD 1 and 2 have no shift in their configs, or None.
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (mode_BCHW - shift) * float(vae.config.scaling_factor)


def keep_vae_in_fp32(vae: Any) -> None:
    """Make `vae.decode` compute in fp32 even under autocast.

    Pipelines upcast a VAE only if its weights are fp16; under autocast they are fp32, and activations still overflow.
    """
    decode = vae.decode

    def decode_in_fp32(latents_BCHW: Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(latents_BCHW.device.type, enabled=False):
            return decode(latents_BCHW.float(), *arguments, **options)

    vae.decode = decode_in_fp32
