"""Stable Diffusion XL: two CLIP text encoders, a UNet that is told the picture's size, a VAE that overflows in fp16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.models.families import discrete, vae
from trainer.models.families.clip import check_clip_skip, find_end_by_token, penultimate
from trainer.models.families.model import BaseModel, Family, Text
from trainer.protocol.settings import Base, Objective


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL:
    """The modules of a Stable Diffusion XL."""

    unet: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    #: Layers before the last that are not read: 1, the model's own way, reads the one before the last.
    clip_skip: int
    #: Of the pipeline: whether no negative prompt means zeros, or an empty caption.
    force_zeros_for_empty_prompt: bool

    family: Literal[Family.SDXL] = Family.SDXL
    denoiser_name: Literal["unet"] = "unet"

    @property
    def denoiser(self) -> Any:
        return self.unet

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """The layers before the last of both encoders side by side, and the second's pooled, projected output."""
        layers_BTD = []
        for name, encoder in self.text_encoders.items():
            tokenizer = self.tokenizers[name]
            layer_BTD, output = penultimate(encoder, tokenizer, captions, self.clip_skip, tokenizer.model_max_length)
            layers_BTD.append(layer_BTD)
        return {"caption_BTD": torch.cat(layers_BTD, dim=-1), "pooled_BD": output.text_embeds}

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        """The UNet is told that pictures have the size that they have now, and were not cropped."""
        caption_BTD = text["caption_BTD"]
        height, width = (side * vae.scale(self.vae) for side in noisy_BCHW.shape[-2:])
        size_B6 = caption_BTD.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(noisy_BCHW), 1)
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

    def sampling_arguments(self, text: Text, negative: Text) -> dict[str, Any]:
        return {
            "prompt_embeds": text["caption_BTD"],
            "pooled_prompt_embeds": text["pooled_BD"],
            "negative_prompt_embeds": negative["caption_BTD"],
            "negative_pooled_prompt_embeds": negative["pooled_BD"],
        }


def assemble(base: Base, objective: Objective, pipeline: Any) -> BaseModel:
    """The model of a loaded pipeline.

    Raises:
        MissingModelError: it was trained with noise, or for a prediction, that is not trained here.
        BadSpecError: the settings do not fit it.
    """
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    tokenizers = {"text_encoder": pipeline.tokenizer, "text_encoder_2": pipeline.tokenizer_2}
    for name, encoder in encoders.items():
        check_clip_skip(base.source, base.clip_skip, encoder.config.num_hidden_layers - 1)
        find_end_by_token(encoder, tokenizers[name])
    noising, sampler = discrete.make_noising(base.source, pipeline.scheduler, objective)
    if pipeline.vae.config.force_upcast:
        vae.keep_in_fp32(pipeline.vae)
    architecture = StableDiffusionXL(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoders=encoders,
        tokenizers=tokenizers,
        clip_skip=base.clip_skip,
        force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )
    return BaseModel(source=base.source, architecture=architecture, noising=noising, sampler=sampler)
