"""Proof that an exported file does what the trained model does: loaded back into a fresh base, and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.errors import ExportError
from trainer.models.base import BaseModel, load_base
from trainer.models.methods import as_exported, attach, loaded_back
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.spec import Spec
from trainer.tasks.objective import seeded_noise
from trainer.tasks.task import Verified

#: How far a prediction may be off, as a share of what was trained changes at most: fp16 files keep 11 bits.
TOLERANCE = 0.02
_PROBE_TIMESTEPS = (100, 500, 900)
_PROBE_SEED = 7


def verify_exports(
    spec: Spec,
    weights: Weights,
    files: Sequence[ExportedFile],
    *,
    caption: str,
    device: torch.device,
    between_files: Callable[[], None] = lambda: None,
) -> list[Verified]:
    """Load each file into a fresh base as people load it, and compare predictions in fp32 with those of `weights`.

    Raises:
        ExportError: a file cannot be loaded, or does something else than `weights` do.
    """
    trained, untrained = _references(spec, weights, caption, device)
    effect = _distance(trained, untrained)
    verified = []
    for file in files:
        between_files()
        with loaded_back(file, spec) as (model, written):
            difference = _distance(_predict(model, written(caption), device), trained)
        if not difference <= TOLERANCE * effect + 1e-5:
            raise ExportError(
                f"{file.path.name}, loaded back, predicts other noise than the trained model (by {difference:.2g}, "
                f"where the training changes {effect:.2g}).",
                "The checkpoint is kept. This is a bug of ours.",
            )
        verified.append(Verified(file=file, max_difference=difference))
    return verified


def _references(spec: Spec, weights: Weights, caption: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a fresh base predicts with the weights, and without."""
    base = load_base(spec.base, spec.objective)
    method = attach(base, spec)
    method.load(weights)
    for module in method.modules.values():
        module.eval()
    with as_exported(method):
        trained = _predict(base, caption, device)
    with method.base_only():
        untrained = _predict(base, caption, device)
    return trained, untrained


@torch.no_grad()
def _predict(model: BaseModel, caption: str, device: torch.device) -> Tensor:
    """Predictions on fixed noise, caption and timesteps, [3, C, H, W]."""
    for module in (model.denoiser, *model.text_encoders.values()):
        module.to(device)
    text = model.encode_text([caption])
    side = model.resolution // model.vae_scale
    noise_1CHW = seeded_noise((1, model.denoiser.config.in_channels, side, side), _PROBE_SEED).to(device)
    predictions = [
        model.predict(noise_1CHW, torch.tensor([timestep], device=device), text) for timestep in _PROBE_TIMESTEPS
    ]
    return torch.cat(predictions).float().cpu()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
