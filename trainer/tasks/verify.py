"""Proof that an exported LoRA does what the trained model does: loaded back into a fresh base, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from trainer.errors import ExportError
from trainer.models.base import BaseModel, load_base
from trainer.models.lora import add_text_encoder_lora, add_unet_lora, load_lora_state, remove_lora
from trainer.protocol.spec import Adapter, Base
from trainer.tasks.objective import seeded_noise

#: How far a prediction may be off, as a share of what the LoRA changes at most: fp16 files keep 11 bits.
TOLERANCE = 0.02
_PROBE_TIMESTEPS = (100, 500, 900)
_PROBE_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One exported file against the trained model, in units of the noise prediction."""

    path: Path
    #: Largest difference to the trained model.
    max_difference: float
    #: Largest difference that the LoRA makes to the base.
    max_effect: float


def compare_exports(
    base: Base,
    adapter: Adapter,
    weights: Mapping[str, Mapping[str, Tensor]],
    files: Sequence[Path],
    *,
    caption: str,
    device: torch.device,
) -> list[Comparison]:
    """Load each file by `pipeline.load_lora_weights` into a fresh base, and compare noise predictions in fp32.

    Raises:
        ExportError: a file cannot be loaded, or does something else than `weights` do.
    """
    fresh = load_base(base)
    fresh.unet.to(device)
    fresh.text_encoder.to(device)
    untrained = _predict(fresh, caption, device)
    trained = _predict_with_lora(fresh, adapter, weights, caption, device)
    return [_compare(fresh, path, trained, untrained, caption, device) for path in files]


def _compare(
    fresh: BaseModel, path: Path, trained: Tensor, untrained: Tensor, caption: str, device: torch.device
) -> Comparison:
    pipeline = StableDiffusionPipeline(
        vae=fresh.vae,
        text_encoder=fresh.text_encoder,
        tokenizer=fresh.tokenizer,
        unet=fresh.unet,
        scheduler=fresh.noise_schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    except Exception as error:
        raise ExportError(f"{path.name} cannot be loaded back ({error}).", "This is a bug of ours.") from error
    loaded = _predict(fresh, caption, device)
    pipeline.unload_lora_weights()
    comparison = Comparison(
        path=path, max_difference=_distance(loaded, trained), max_effect=_distance(trained, untrained)
    )
    if comparison.max_difference > TOLERANCE * comparison.max_effect + 1e-5:
        raise ExportError(
            f"{path.name}, loaded back, predicts other noise than the trained model (by "
            f"{comparison.max_difference:.2g}, where the LoRA changes {comparison.max_effect:.2g}).",
            "The checkpoint is kept. This is a bug of ours.",
        )
    return comparison


def _predict_with_lora(
    fresh: BaseModel,
    adapter: Adapter,
    weights: Mapping[str, Mapping[str, Tensor]],
    caption: str,
    device: torch.device,
) -> Tensor:
    models = {"unet": fresh.unet, "text_encoder": fresh.text_encoder}
    for name, state in weights.items():
        add = add_unet_lora if name == "unet" else add_text_encoder_lora
        add(models[name], adapter)
        load_lora_state(models[name], dict(state))
        models[name].eval()
    prediction = _predict(fresh, caption, device)
    for name in weights:
        remove_lora(models[name])
    return prediction


@torch.no_grad()
def _predict(model: BaseModel, caption: str, device: torch.device) -> Tensor:
    """Noise predictions on fixed noise, caption and timesteps, [3, C, H, W]."""
    tokens = model.tokenizer(
        [caption],
        padding="max_length",
        truncation=True,
        max_length=model.tokenizer.model_max_length,
        return_tensors="pt",
    )
    caption_1TD = model.text_encoder(tokens.input_ids.to(device), return_dict=False)[0]
    side = model.unet.config.sample_size
    noise_1CHW = seeded_noise((1, model.unet.config.in_channels, side, side), _PROBE_SEED).to(device)
    predictions = [
        model.unet(noise_1CHW, torch.tensor([timestep], device=device), caption_1TD, return_dict=False)[0]
        for timestep in _PROBE_TIMESTEPS
    ]
    return torch.cat(predictions).float().cpu()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
