"""Opens a base wherever it lies: finds out which pipeline it is, and loads that by diffusers' own loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.errors import MissingModelError
from trainer.protocol.settings import Base, Objective, Prediction

#: The pipelines that can be trained, and the module here of each.
MODULES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}
#: diffusers' names for what a single file can be, and their pipelines.
_KINDS = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
}
_TRAINED_HERE = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5 are trained here; choose such a base."


def open_folder(source: str, folder: Path) -> Any:
    """The pipeline of a folder in diffusers layout.

    Raises:
        MissingModelError: it is of a kind that is not trained here.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = check_kind(source, index.get("_class_name"))
    has_t5 = _has_t5(index) and (folder / "text_encoder_3").is_dir()
    return _class_of(kind).from_pretrained(folder, variant=_variant(folder), **_left_out(kind, has_t5=has_t5))


def open_hub(source: str, revision: str | None) -> Any:
    """The pipeline of that name on the hub, or in its cache.

    Raises:
        MissingModelError: it is of a kind that is not trained here.
    """
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(source, revision=revision)
    kind = check_kind(source, index.get("_class_name"))
    return _class_of(kind).from_pretrained(source, revision=revision, **_left_out(kind, has_t5=_has_t5(index)))


def open_single_file(base: Base, path: Path) -> Any:
    """The pipeline of one `.safetensors` in the original layout.

    Raises:
        MissingModelError: it is of a kind that is not trained here, or holds pickles.
    """
    if path.suffix != ".safetensors":
        raise MissingModelError(
            f"{base.source} is not a .safetensors file; other checkpoints can run code when they are opened.",
            "Convert it first, or give a folder in diffusers layout.",
        )
    shapes = _shapes(path)
    kind = check_kind(base.source, _described_kind(base.config) if base.config else _recognize(base.source, shapes))
    has_t5 = "text_encoders.t5xxl.transformer.shared.weight" in shapes
    return _class_of(kind).from_single_file(str(path), config=base.config, **_left_out(kind, has_t5=has_t5))


def as_marked(objective: Objective, path: Path) -> Objective:
    """The objective with what a single file says of itself, where the person left it open.

    Files that say the velocity carry an empty tensor `v_pred`, and `ztsnr` with zero terminal SNR: ComfyUI's
    convention, which NoobAI-XL and its many children follow, and which diffusers does not read.
    """
    if path.suffix != ".safetensors" or objective.prediction is not Prediction.AUTO:
        return objective
    shapes = _shapes(path)
    if "v_pred" not in shapes:
        return objective
    changes = {"prediction": Prediction.V_PREDICTION, "zero_terminal_snr": "ztsnr" in shapes}
    return objective.model_copy(update=changes)


def check_kind(source: str, kind: str | None) -> str:
    """The pipeline's name, if it is one of MODULES.

    Raises:
        MissingModelError: it is another.
    """
    if kind not in MODULES:
        raise MissingModelError(f"{source} is a {kind}, which is not trained here.", _TRAINED_HERE)
    return kind


def check_inputs(source: str, denoiser: Any, vae: Any) -> None:
    """Refuse denoisers that read more than a noisy picture: inpainting, editing and depth models.

    Raises:
        MissingModelError: it is one of those.
    """
    reads, has = denoiser.config.in_channels, vae.config.latent_channels
    if reads != has:
        raise MissingModelError(
            f"{source} reads {reads} channels where a picture has {has}: an inpainting, editing or depth model.",
            _TRAINED_HERE,
        )


def _class_of(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def _left_out(kind: str, *, has_t5: bool) -> dict[str, Any]:
    """Parts that no training needs, and those that SD 3 may come without, which its loader would ask for."""
    left_out: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if kind == "StableDiffusionPipeline":
        left_out["safety_checker"] = None
    if kind == "StableDiffusion3Pipeline" and not has_t5:
        left_out |= {"text_encoder_3": None, "tokenizer_3": None}
    return left_out


def _has_t5(index: dict[str, Any]) -> bool:
    return index.get("text_encoder_3", (None, None))[0] is not None


def _variant(folder: Path) -> str | None:
    """`fp16`, where the weights lie there in that form only."""
    weights = [path.name for part in ("unet", "transformer") for path in (folder / part).glob("*.safetensors")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None


def _described_kind(config: str) -> str | None:
    """The pipeline that a folder or hub name of configs is for."""
    from diffusers import DiffusionPipeline

    kind: str | None = DiffusionPipeline.load_config(config).get("_class_name")
    return kind


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, with their shapes and without their contents."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118


def _recognize(source: str, shapes: dict[str, torch.Tensor]) -> str:
    """The pipeline of a single file, by the names and shapes of its tensors, as diffusers tells them apart.

    Raises:
        MissingModelError: it is no model, or of another kind.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    found = infer_diffusers_model_type(shapes)
    if found == "v1" and not any(name.startswith("model.diffusion_model.") for name in shapes):
        # What diffusers does not know, it takes for this.
        raise MissingModelError(f"{source} holds no whole model; it may be a LoRA or a VAE alone.", _TRAINED_HERE)
    if found not in _KINDS:
        raise MissingModelError(f"{source} is a model of the kind {found}, which is not trained here.", _TRAINED_HERE)
    return _KINDS[found]
