"""Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 or none, and a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its customary name

from trainer.models.families.clip import clip_encoders, penultimate, token_ids
from trainer.models.families.model import Family, LoadedBase, Text
from trainer.models.families.noising import make_flow_noising
from trainer.protocol.settings import Base, Objective

#: Number of T5 tokens, the pipeline's default.
_T5_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3:
    """The modules of a Stable Diffusion 3."""

    transformer: Any
    vae: Any
    #: `text_encoder_3` is T5 and optional.
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    #: Which layer is read, counted from the end; 1, the model's default, reads the second, too.
    clip_skip: int

    family: Literal[Family.SD3] = Family.SD3
    denoiser_name: Literal["transformer"] = "transformer"

    @property
    def denoiser(self) -> Any:
        return self.transformer

    def encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """Embed captions: CLIP layers concatenated and zero-padded in width, then T5's tokens; both pooled outputs.

        CLIP reads 75 tokens: the image takes part in the attention over its own tokens and the caption's, in which
        more of the latter weigh more. kohya's scripts and diffusers do the same; T5 reads the rest.
        """
        layers_BTD, pooled_BD = [], []
        for name in ("text_encoder", "text_encoder_2"):
            encoder, tokenizer = self.text_encoders[name], self.tokenizers[name]
            # As in the pipeline, both use the first tokenizer's length.
            length = self.tokenizers["text_encoder"].model_max_length
            layer_BTD, output = penultimate(encoder, token_ids(tokenizer, captions, length), self.clip_skip)
            layers_BTD.append(layer_BTD)
            pooled_BD.append(output.text_embeds)
        clip_BTD = torch.cat(layers_BTD, dim=-1)
        t5_BTD = self._encode_by_t5(captions, clip_BTD)
        clip_BTD = F.pad(clip_BTD, (0, t5_BTD.shape[-1] - clip_BTD.shape[-1]))
        return {"caption_BTD": torch.cat([clip_BTD, t5_BTD], dim=-2), "pooled_BD": torch.cat(pooled_BD, dim=-1)}

    def chunk_counts(self, captions: list[str]) -> list[int]:
        return [1] * len(captions)

    def _encode_by_t5(self, captions: list[str], like: Tensor) -> Tensor:
        """Return T5's last layer, [B, 256, D]; zeros without T5, as in the pipeline."""
        encoder = self.text_encoders.get("text_encoder_3")
        if encoder is None:
            return like.new_zeros((len(captions), _T5_TOKENS, self.transformer.config.joint_attention_dim))
        ids_BT = token_ids(self.tokenizers["text_encoder_3"], captions, _T5_TOKENS)
        t5_BTD: Tensor = encoder(ids_BT.to(encoder.device))[0]
        return t5_BTD

    def predict(self, noisy_BCHW: Tensor, timestep_B: Tensor, text: Text) -> Tensor:
        prediction_BCHW: Tensor = self.transformer(
            hidden_states=noisy_BCHW,
            timestep=timestep_B,
            encoder_hidden_states=text["caption_BTD"],
            pooled_projections=text["pooled_BD"],
            return_dict=False,
        )[0]
        return prediction_BCHW

    def pipeline(self, scheduler: Any) -> Any:
        from diffusers import StableDiffusion3Pipeline

        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        return StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=scheduler,
            vae=self.vae,
            **{name: self.text_encoders.get(name) for name in names},
            **{name.replace("text_encoder", "tokenizer"): self.tokenizers.get(name) for name in names},
        )


def assemble(base: Base, objective: Objective, pipeline: Any) -> LoadedBase:
    """Make the base of a loaded pipeline.

    Raises:
        MissingModelError: it has no flow-matching scheduler.
        BadSpecError: the settings do not fit it.
    """
    encoders, tokenizers = clip_encoders(base, pipeline, "text_encoder", "text_encoder_2")
    if pipeline.text_encoder_3 is not None and pipeline.tokenizer_3 is not None:
        encoders["text_encoder_3"], tokenizers["text_encoder_3"] = pipeline.text_encoder_3, pipeline.tokenizer_3
    noising, sampler = make_flow_noising(base.source, pipeline.scheduler, objective)
    architecture = StableDiffusion3(
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        text_encoders=encoders,
        tokenizers=tokenizers,
        clip_skip=base.clip_skip,
    )
    return LoadedBase(source=base.source, architecture=architecture, noising=noising, sampler=sampler)
