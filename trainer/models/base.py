"""Loads the base model from a diffusers folder, a single file, a hub name, or `tiny`, the model that ships.

diffusers' own loaders do the work; this module finds out which pipeline a model is for.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.errors import MissingModelError, first_line, hub_problem
from trainer.models.families.model import Family, LoadedBase
from trainer.protocol.settings import Base, Objective, Prediction

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TINY", "Family", "LoadedBase", "digest_of", "fingerprint", "load_base", "tiny_folder"]

TINY = "tiny"
_AS_TRAINED = Objective()


def load_base(base: Base, objective: Objective = _AS_TRAINED) -> LoadedBase:
    """Load the base model of a job, with the noising and prediction target of its objective.

    Raises:
        MissingModelError: it does not exist, cannot be reached, is gated, is damaged, or is not a supported family.
        BadSpecError: the objective or `clip_skip` do not fit it.
    """
    path = tiny_folder() if base.source == TINY else Path(base.source).expanduser()
    pipeline = _open(base, path)
    for name, part in pipeline.components.items():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False).eval()
            if name != "text_encoder_3":
                # Weights may be stored in fp16; training chooses its own precision. T5 stays as it is: it is never
                # trained, and takes 19 GB in fp32.
                part.float()
    return _assemble(base, objective if not path.is_file() else as_marked(objective, path), pipeline)


def _assemble(base: Base, objective: Objective, pipeline: Any) -> LoadedBase:
    """Make the base of a pipeline; imports only its family."""
    match MODULES[type(pipeline).__name__]:
        case "sd":
            from trainer.models.families.sd import assemble
        case "sdxl":
            from trainer.models.families.sdxl import assemble
        case _:
            from trainer.models.families.sd3 import assemble
    model = assemble(base, objective, pipeline)
    check_inputs(base.source, model.denoiser, model.vae)
    return model


def _open(base: Base, path: Path) -> Any:
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        if path.is_file():
            return open_single_file(base, path)
        if path.is_dir():
            return open_folder(base.source, path)
        if path.is_absolute() or path.suffix or base.source.count("/") != 1:
            raise MissingModelError(
                f"There is no model at {base.source}.",
                "Give a folder in diffusers layout, a .safetensors file, or a hub name such as owner/name.",
            )
        return open_hub(base.source, base.revision)
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(base.source, error, is_file=path.is_file()) from error


def _explain(source: str, error: Exception, *, is_file: bool) -> MissingModelError:
    known = hub_problem(source, error)
    if known is not None and is_file:
        return MissingModelError(
            f"The configuration of {source} is not on this machine, and the hub cannot be reached.",
            "Check the network, or set base.config to a folder in diffusers layout of a model of the same kind.",
        )
    why = f"{source} cannot be loaded ({first_line(error)})."
    return known or MissingModelError(why, "Is it a whole Stable Diffusion?")


def tiny_folder() -> Path:
    """Folder of the small Stable Diffusion that ships with the package (64 px, made by `recipes/tiny`)."""
    return Path(str(resources.files("trainer.models") / "tiny"))


def fingerprint(base: LoadedBase) -> str:
    """Identify everything that latents and caption embeddings depend on: VAE, its scale, and all text encoders."""
    config = base.vae.config
    scale = f"{config.scaling_factor} {getattr(config, 'shift_factor', None)}"
    return f"{base.family} {scale} {digest_of(base.vae, *base.text_encoders.values())}"


def digest_of(*modules: nn.Module) -> str:
    """Hash the names and bytes of all weights (XXH3-128), to name caches that depend on them.

    It reads every byte: textual inversion changes one row of a table, which a sample would miss. XXH3 reads 17 GB/s on
    one core, SHA-256 1.2: 0.05 s instead of 0.7 s for SD 1.5, 0.6 s instead of 8 s for a T5. Nothing here needs a
    cryptographic hash.
    """
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


#: The pipelines that can be trained, and their modules in `families`.
MODULES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}
#: diffusers' types of single files, and their pipelines.
_KINDS = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
}
_TRAINED_HERE = "Choose a Stable Diffusion 1.x, 2.x, XL, 3 or 3.5."


def open_folder(source: str, folder: Path) -> Any:
    """Load the pipeline of a folder in diffusers layout.

    Raises:
        MissingModelError: it is not a supported family.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = check_kind(source, index.get("_class_name"))
    has_t5 = _has_t5(index) and (folder / "text_encoder_3").is_dir()
    left_out = _left_out(kind, has_t5=has_t5)
    return _class_of(kind).from_pretrained(folder, variant=_variant(folder), use_safetensors=True, **left_out)


def open_hub(source: str, revision: str | None) -> Any:
    """Load a pipeline from the hub or its cache.

    Raises:
        MissingModelError: it is not a supported family.
    """
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(source, revision=revision)
    kind = check_kind(source, index.get("_class_name"))
    left_out = _left_out(kind, has_t5=_has_t5(index))
    return _class_of(kind).from_pretrained(source, revision=revision, use_safetensors=True, **left_out)


def open_single_file(base: Base, path: Path) -> Any:
    """Load the pipeline of one `.safetensors` file in the original layout.

    Raises:
        MissingModelError: it is not a supported family, or not a `.safetensors` file.
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
    """Fill the objective from the markers of a single file, unless it says that the file predicts the noise.

    Files that predict the velocity carry an empty tensor `v_pred`, and `ztsnr` with zero terminal SNR. This is
    ComfyUI's convention, followed by NoobAI-XL and its derivatives; diffusers does not read it.
    """
    if path.suffix != ".safetensors" or objective.prediction is Prediction.EPSILON:
        return objective
    shapes = _shapes(path)
    if "v_pred" not in shapes:
        return objective
    zero_terminal_snr = objective.zero_terminal_snr or "ztsnr" in shapes
    return objective.model_copy(update={"prediction": Prediction.V_PREDICTION, "zero_terminal_snr": zero_terminal_snr})


def check_kind(source: str, kind: str | None) -> str:
    """Return the pipeline's name if it is one of MODULES.

    Raises:
        MissingModelError: it is not.
    """
    if kind not in MODULES:
        raise MissingModelError(f"{source} is a {kind}, which Darkroom does not train.", _TRAINED_HERE)
    return kind


def check_inputs(source: str, denoiser: Any, vae: Any) -> None:
    """Check that the denoiser reads nothing but noisy latents.

    Raises:
        MissingModelError: it reads more channels: an inpainting, editing or depth model.
    """
    reads, has = denoiser.config.in_channels, vae.config.latent_channels
    if reads != has:
        raise MissingModelError(
            f"{source} reads {reads} channels where an image has {has}: an inpainting, editing or depth model.",
            _TRAINED_HERE,
        )


def _class_of(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def _left_out(kind: str, *, has_t5: bool) -> dict[str, Any]:
    """Components that the loader must not ask for: unused ones, and those that an SD 3 may lack."""
    left_out: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if kind == "StableDiffusionPipeline":
        left_out["safety_checker"] = None
    if kind == "StableDiffusion3Pipeline" and not has_t5:
        left_out |= {"text_encoder_3": None, "tokenizer_3": None}
    return left_out


def _has_t5(index: dict[str, Any]) -> bool:
    return index.get("text_encoder_3", (None, None))[0] is not None


def _variant(folder: Path) -> str | None:
    """Return `fp16` if the folder holds no other variant of the weights."""
    weights = [path.name for part in ("unet", "transformer") for path in (folder / part).glob("*.safetensors")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None


def _described_kind(config: str) -> str | None:
    """Name of the pipeline that a folder (or hub name) of configurations is for."""
    from diffusers import DiffusionPipeline

    kind: str | None = DiffusionPipeline.load_config(config).get("_class_name")
    return kind


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the meta device."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118


def _recognize(source: str, shapes: dict[str, torch.Tensor]) -> str:
    """Recognize the pipeline of a single file as diffusers does, from the names and shapes of its tensors.

    Raises:
        MissingModelError: it is not a whole model, or not a supported family.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    found = infer_diffusers_model_type(shapes)
    if found == "v1" and not any(name.startswith("model.diffusion_model.") for name in shapes):
        # diffusers falls back to this type for files that it does not recognize.
        raise MissingModelError(f"{source} is not a whole model; it may be a LoRA or a VAE alone.", _TRAINED_HERE)
    if found not in _KINDS:
        raise MissingModelError(f"{source} is a model of type {found}, which Darkroom does not train.", _TRAINED_HERE)
    return _KINDS[found]
