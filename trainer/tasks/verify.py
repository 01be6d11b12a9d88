"""Verifies exported files: loads each back into a fresh model, and compares predictions with the trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from trainer.errors import ExportError
from trainer.models.base import LoadedBase, load_base
from trainer.models.families.model import encoders_running
from trainer.models.methods import as_exported, attach, loaded_back
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.models.widening import widened_layers
from trainer.protocol.spec import Spec
from trainer.tasks.diffusion_loss import seeded_noise
from trainer.tasks.task import Verified

#: Largest difference of a prediction, relative to the largest change by the training: fp16 files keep 11 bits.
TOLERANCE = 0.02
_PROBE_TIMESTEPS = (100, 500, 900)
_PROBE_SEED = 7
#: Largest side of the compared latents: all weights take part at any size, and at SDXL's own it takes 16 times as long.
_PROBE_SIDE = 32
#: Largest difference of a logit, in fp32: the preprocessing is another library's.
_LOGIT_TOLERANCE = 1e-3


def verify_exports(
    spec: Spec,
    weights: Weights,
    files: Sequence[ExportedFile],
    *,
    caption: str,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verified]:
    """Load each file into a fresh base as users would, and compare predictions in fp32 with those of `weights`.

    `progress` is called before each file with those that are done, and all.

    Raises:
        ExportError: a file cannot be loaded, or predicts something else.
    """
    trained, untrained, fresh = _references(spec, weights, caption, device)
    effect = _distance(trained, untrained)
    verified: list[Verified] = []
    for file in files:
        progress(len(verified), len(files))
        with loaded_back(file, spec, fresh) as (model, written):
            difference = _distance(_predict(model, written(caption), device), trained)
        if not difference <= TOLERANCE * effect + 1e-5:
            raise ExportError(
                f"{file.path.name}, loaded back, differs from the trained model by {difference:.2g}; the training "
                f"changed predictions by {effect:.2g}.",
                "The checkpoint is kept. Please report this bug.",
            )
        verified.append(Verified(file=file, max_difference=difference))
    return verified


def _references(
    spec: Spec, weights: Weights, caption: str, device: torch.device
) -> tuple[Tensor, Tensor, LoadedBase | None]:
    """Predictions of a fresh base with the weights and without; and that base, if they can be taken out of it again."""
    base = load_base(spec.base, spec.objective, as_stored=True)
    method = attach(base, spec.model_copy(update={"method": spec.method.exported}))
    method.load(weights)
    for module in method.modules.values():
        module.eval()
    with as_exported(method):
        trained = _predict(base, caption, device)
    with method.base_only():
        untrained = _predict(base, caption, device)
    if not spec.method.kind.is_adapter:
        return trained, untrained, None
    from trainer.models.methods.adapters import remove_adapter

    for module in method.modules.values():
        remove_adapter(module)
    return trained, untrained, base


@torch.no_grad()
def _predict(model: LoadedBase, caption: str, device: torch.device) -> Tensor:
    """Predictions on fixed noise, caption and timesteps, [3, C, H, W]."""
    with encoders_running(model, device):
        text = model.encode_text([caption])
    side = min(model.resolution // model.vae_scale, _PROBE_SIDE)
    noise_1CHW = seeded_noise((1, model.denoiser.config.in_channels, side, side), _PROBE_SEED).to(device)
    with widened_layers(device, model.denoiser):
        predictions = [
            model.predict(noise_1CHW, torch.tensor([timestep], device=device), text) for timestep in _PROBE_TIMESTEPS
        ]
    return torch.cat(predictions).float().cpu()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def verify_folder(
    file: ExportedFile,
    pil_images: Sequence[PILImage.Image],
    trained_BK: Tensor,
    class_names: Sequence[str],
    device: torch.device,
) -> Verified:
    """Compare the logits of an exported classifier, with its own image processor, with `trained_BK`.

    Raises:
        ExportError: it cannot be loaded, has other classes, or predicts something else.
    """
    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForImageClassification.from_pretrained(
            file.path, local_files_only=True, use_safetensors=True
        )
        processor = AutoImageProcessor.from_pretrained(file.path, backend="pil", local_files_only=True)
        pixels_BCHW = processor(images=list(pil_images), return_tensors="pt")["pixel_values"]
        logits_BK = model.to(device).eval()(pixel_values=pixels_BCHW.to(device)).logits.float().cpu()
    except Exception as error:
        raise ExportError(f"{file.path.name} cannot be loaded back ({error}).", "Please report this bug.") from error
    if [model.config.id2label[index] for index in range(len(class_names))] != list(class_names):
        raise ExportError(f"{file.path.name}, loaded back, has other classes.", "Please report this bug.")
    difference = float((logits_BK - trained_BK).abs().max())
    if not difference <= _LOGIT_TOLERANCE * max(1.0, float(trained_BK.abs().max())):
        raise ExportError(
            f"{file.path.name}, loaded back, differs from the trained classifier (logits differ by {difference:.2g}).",
            "The checkpoint is kept. Please report this bug.",
        )
    return Verified(file=file, max_difference=difference)
