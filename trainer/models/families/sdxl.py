"""Stable Diffusion XL: two CLIP text encoders, a UNet conditioned on image size, a VAE that overflows in fp16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.models.families.clip import (
    chunked_ids,
    clip_encoders,
    join_chunks,
    of_first_chunks,
    penultimate,
)
from trainer.models.families.model import Family, LoadedBase, Text, keep_vae_in_fp32, vae_scale
from trainer.models.families.noising import make_discrete_noising
from trainer.protocol.settings import Base, Objective


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL:
    """The modules of a Stable Diffusion XL."""

    unet: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    #: Which layer is read, counted from the end; 1, the model's default, reads the second, too.
    clip_skip: int
    #: Most tokens of a caption that are read.
    max_tokens: int
    #: The pipeline's setting: an empty negative prompt means zeros, not the embedding of an empty caption.
    force_zeros_for_empty_prompt: bool

    family: Literal[Family.SDXL] = Family.SDXL
    denoiser_name: Literal["unet"] = "unet"

    @property
    def denoiser(self) -> Any:
        return self.unet

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """Embed captions: the penultimate layers of both encoders concatenated, and the second's pooled projection."""
        layers_BTD = []
        for name, encoder in self.text_encoders.items():
            ids_NT, counts = chunked_ids(self.tokenizers[name], captions, self.max_tokens)
            layer_NTD, output = penultimate(encoder, ids_NT, self.clip_skip)
            layers_BTD.append(join_chunks(layer_NTD, counts))
        return {
            "caption_BTD": torch.cat(layers_BTD, dim=-1),
            "pooled_BD": of_first_chunks(output.text_embeds, counts),
        }

    def chunk_counts(self, captions: list[str]) -> list[int]:
        return chunked_ids(self.tokenizers["text_encoder"], captions, self.max_tokens)[1]

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """Predict; without `size_B6`, the size conditioning says: this size, not cropped."""
        caption_BTD = text["caption_BTD"]
        if "size_B6" in text:
            size_B6 = text["size_B6"].to(caption_BTD.device, torch.float32)
        else:
            height, width = (side * vae_scale(self.vae) for side in noisy_BCHW.shape[-2:])
            size_B6 = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            size_B6 = size_B6.to(caption_BTD.device).repeat(len(noisy_BCHW), 1)
        conditions = {"text_embeds": text["pooled_BD"], "time_ids": size_B6}
        prediction_BCHW: Tensor = self.unet(
            noisy_BCHW, timestep_B, caption_BTD, added_cond_kwargs=conditions, return_dict=False
        )[0]
        return prediction_BCHW

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoders["text_encoder"],
            text_encoder_2=self.text_encoders["text_encoder_2"],
            tokenizer=self.tokenizers["text_encoder"],
            tokenizer_2=self.tokenizers["text_encoder_2"],
            unet=self.unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )


def assemble(base: Base, objective: Objective, pipeline: Any) -> LoadedBase:
    """Make the base of a loaded pipeline.

    Raises:
        MissingModelError: Darkroom does not train its noise schedule or prediction target.
        BadSpecError: the settings do not fit it.
    """
    encoders, tokenizers = clip_encoders(base, pipeline, "text_encoder", "text_encoder_2")
    noising, sampler = make_discrete_noising(base.source, pipeline.scheduler, objective)
    if pipeline.vae.config.force_upcast:
        keep_vae_in_fp32(pipeline.vae)
    architecture = StableDiffusionXL(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoders=encoders,
        tokenizers=tokenizers,
        clip_skip=base.clip_skip,
        max_tokens=base.max_token_length,
        force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )
    return LoadedBase(source=base.source, architecture=architecture, noising=noising, sampler=sampler)
