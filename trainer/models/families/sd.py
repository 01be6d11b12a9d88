"""Stable Diffusion 1.x and 2.x: one CLIP text encoder and a UNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from trainer.models.families.clip import chunked_ids, clip_encoders, clip_text_model, join_chunks
from trainer.models.families.model import Family, LoadedBase, Text
from trainer.models.families.noising import make_discrete_noising
from trainer.protocol.settings import Base, Objective

#: Width of SD 2.x's text embeddings (OpenCLIP); the rest of its layout is that of SD 1.x.
_SD2_WIDTH = 1024


@dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """The modules of a Stable Diffusion 1.x / 2.x."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    #: Which text encoder layer is read, counted from the end; 1 is the last.
    clip_skip: int
    #: Most tokens of a caption that are read.
    max_tokens: int

    denoiser_name: Literal["unet"] = "unet"

    @property
    def family(self) -> Family:
        return Family.SD2 if self.unet.config.cross_attention_dim == _SD2_WIDTH else Family.SD1

    @property
    def denoiser(self) -> Any:
        return self.unet

    @property
    def text_encoders(self) -> dict[str, Any]:
        return {"text_encoder": self.text_encoder}

    @property
    def tokenizers(self) -> dict[str, Any]:
        return {"text_encoder": self.tokenizer}

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """Embed captions: the layer chosen by clip skip, through the final norm, as in A1111 and diffusers."""
        ids_NT, counts = chunked_ids(self.tokenizer, captions, self.max_tokens)
        ids_NT = ids_NT.to(self.text_encoder.device)
        if self.clip_skip == 1:
            return {"caption_BTD": join_chunks(self.text_encoder(ids_NT)[0], counts)}
        layer_NTD = self.text_encoder(ids_NT, output_hidden_states=True).hidden_states[-self.clip_skip]
        return {"caption_BTD": join_chunks(clip_text_model(self.text_encoder).final_layer_norm(layer_NTD), counts)}

    def chunk_counts(self, captions: list[str]) -> list[int]:
        return chunked_ids(self.tokenizer, captions, self.max_tokens)[1]

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        prediction_BCHW: Tensor = self.unet(noisy_BCHW, timestep_B, text["caption_BTD"], return_dict=False)[0]
        return prediction_BCHW

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def assemble(base: Base, objective: Objective, pipeline: Any) -> LoadedBase:
    """Make the base of a loaded pipeline.

    Raises:
        MissingModelError: Darkroom does not train its noise schedule or prediction target.
        BadSpecError: the settings do not fit it.
    """
    encoders, tokenizers = clip_encoders(base, pipeline, "text_encoder")
    noising, sampler = make_discrete_noising(base.source, pipeline.scheduler, objective)
    architecture = StableDiffusion(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=encoders["text_encoder"],
        tokenizer=tokenizers["text_encoder"],
        clip_skip=base.clip_skip,
        max_tokens=base.max_token_length,
    )
    return LoadedBase(source=base.source, architecture=architecture, noising=noising, sampler=sampler)
