"""What every loaded base model offers: the parts of its family's architecture, and how noise is added to it.

Shapes: B batch, C latent channels, H and W latent sides, T caption tokens, D embedding width. A timestep counts from 0
(least noise) to `schedule_steps` - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from trainer.models.families import vae

#: What the denoiser says: the noise, the velocity (Salimans & Ho 2022), or noise - picture (flow matching).
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "flow"]
#: A caption as the denoiser reads it: `caption_BTD`, and `pooled_BD` for the families that read it.
Text: TypeAlias = Mapping[str, Tensor]


class Family(StrEnum):
    """Models that share their layout."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SD3 = "sd3"


class Architecture(Protocol):
    """The modules of a family, and how they work together."""

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

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """`timestep_B` is as the denoiser reads it."""

    def pipeline(self, scheduler: Any) -> Any: ...

    def sampling_arguments(self, text: Text, negative: Text) -> dict[str, Any]: ...


class Noising(Protocol):
    """How a picture becomes noise, and what a denoiser is asked for on the way."""

    @property
    def schedule(self) -> Any: ...

    @property
    def prediction_type(self) -> PredictionType: ...

    @property
    def steps(self) -> int: ...

    def read_timestep(self, timestep_B: Tensor) -> Tensor:
        """Timesteps as the denoiser reads them."""

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor: ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor: ...

    def snr(self, timestep_B: Tensor) -> Tensor: ...

    def draw_timestep(self, seed: int) -> int: ...

    def sampling_arguments(self) -> dict[str, Any]:
        """What a pipeline is to be told about this noise."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A whole pretrained model: frozen, in eval mode, in fp32 on the CPU when it is loaded.

    Modules are `Any` where they are classes of diffusers and transformers, which carry no types.
    """

    #: What the spec calls it.
    source: str
    architecture: Architecture
    noising: Noising
    #: The scheduler that pictures are sampled with; a pipeline gets a copy.
    sampler: Any

    @property
    def family(self) -> Family:
        return self.architecture.family

    @property
    def denoiser(self) -> Any:
        """The module that is trained: a UNet or a transformer."""
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
        """`text_encoder`, `text_encoder_2`, `text_encoder_3`: those that it has, the modules themselves."""
        return self.architecture.text_encoders

    @property
    def tokenizers(self) -> dict[str, Any]:
        """By the names of the text encoders that they are for."""
        return self.architecture.tokenizers

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
        """The schedule it was trained with; nobody sets its timesteps."""
        return self.noising.schedule

    @property
    def prediction_type(self) -> PredictionType:
        return self.noising.prediction_type

    @property
    def schedule_steps(self) -> int:
        return self.noising.steps

    @property
    def vae_scale(self) -> int:
        """Pixels for each latent, along a side."""
        return vae.scale(self.vae)

    @property
    def resolution(self) -> int:
        """The side that it was trained at, px."""
        return int(self.denoiser.config.sample_size) * self.vae_scale

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """`caption_BTD`, and `pooled_BD` where the denoiser reads it; on the encoders' device, differentiable."""
        return self.architecture.encode_text(captions)

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """What the denoiser says, [B, C, H, W]."""
        return self.architecture.predict(noisy_BCHW, self.noising.read_timestep(timestep_B), text)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """Latents at a timestep of the noising, [B, C, H, W]."""
        return self.noising.add_noise(latents_BCHW, noise_BCHW, timestep_B)

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """What the denoiser should say, [B, C, H, W]."""
        return self.noising.target(latents_BCHW, noise_BCHW, timestep_B)

    def snr(self, timestep_B: Tensor) -> Tensor:
        """Signal-to-noise ratio, [B]: power of the picture's share over the noise's."""
        return self.noising.snr(timestep_B)

    def draw_timestep(self, seed: int) -> int:
        """A timestep to train at, a function of the seed, as this family is trained."""
        return self.noising.draw_timestep(seed)

    def encode_pixels(self, pixels_BCHW: Tensor) -> Tensor:
        """Pictures (-1 to 1) as latents, shifted and scaled as the denoiser reads them; the posterior's mode."""
        return vae.encode(self.vae, pixels_BCHW)

    def pipeline(self) -> Any:
        """A diffusers pipeline around these very modules, with a scheduler of its own."""
        return self.architecture.pipeline(type(self.sampler).from_config(self.sampler.config))

    def sampling_arguments(self, text: Text, negative: Text) -> dict[str, Any]:
        """Keyword arguments of a call of `pipeline()` that draws embedded captions."""
        return {**self.architecture.sampling_arguments(text, negative), **self.noising.sampling_arguments()}
