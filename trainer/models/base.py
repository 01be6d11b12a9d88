"""Loads the base model from a diffusers folder, a single file, a hub name, or `tiny`, the model that ships.

diffusers' own loaders do the work; this module finds out which pipeline a model is for.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.errors import BadSpecError, MissingModelError, first_line, hub_problem
from trainer.models.families.model import Family, LoadedBase
from trainer.models.pipelines import (
    MODULES,
    TRAINED_HERE,
    check_kind,
    left_out,
    open_vae,
    pipeline_class,
    positions_from_file,
    read_shapes,
    stored_dtype,
)
from trainer.models.single_file import as_marked, open_single_file
from trainer.protocol.settings import TINY, Base, Objective

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TINY", "Family", "LoadedBase", "digest_of", "fingerprint", "load_base", "tiny_folder"]

_AS_TRAINED = Objective()


def load_base(base: Base, objective: Objective = _AS_TRAINED, *, as_stored: bool = False) -> LoadedBase:
    """Load the base model of a job, with the noising and prediction target of its objective.

    Args:
        as_stored: Leave the weights in the dtype that they are stored in: they stay in their files, memory-mapped, and
            take no memory until they are converted to what is computed in (`widening`).

    Raises:
        MissingModelError: it does not exist, cannot be reached, is gated, is damaged, or is not a supported family.
        BadSpecError: the objective or `clip_skip` do not fit it, or it does not tell what it predicts.
    """
    path = tiny_folder() if base.source == TINY else Path(base.source).expanduser()
    objective = as_marked(objective, path) if path.is_file() else objective
    with positions_from_file():
        pipeline = _open(base, path, objective)
    for name, part in pipeline.components.items():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False).eval()
            if name != "text_encoder_3" and not as_stored:
                # Not T5: it is never trained, and takes 19 GB in fp32.
                part.float()
    return _assemble(base, objective, pipeline)


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


def _open(base: Base, path: Path, objective: Objective) -> Any:
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        if path.is_file():
            return open_single_file(base, path, objective)
        if path.is_dir():
            return open_folder(base, path)
        if path.is_absolute() or path.suffix or base.source.count("/") != 1:
            raise MissingModelError(
                f"There is no model at {base.source}.",
                "Give a folder in diffusers layout, a .safetensors file, or a hub name such as owner/name.",
            )
        return open_hub(base)
    except (MissingModelError, BadSpecError):
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(base.source, error, is_file=path.is_file()) from error


def _explain(source: str, error: Exception, *, is_file: bool) -> MissingModelError:
    known = hub_problem(source, error)
    if known is not None and is_file:
        return MissingModelError(
            f"The configuration of {source} is not on this machine, and the hub cannot be reached.",
            "Check the network, or set base.config to a folder in diffusers layout, or leave it out.",
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


def open_folder(base: Base, folder: Path) -> Any:
    """Load the pipeline of a folder in diffusers layout, each part in the dtype that it is stored in.

    Raises:
        MissingModelError: it is not a supported family.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = check_kind(base.source, index.get("_class_name"))
    has_t5 = _has_t5(index) and (folder / "text_encoder_3").is_dir()
    given = left_out(kind, has_t5=has_t5)
    if base.vae is not None:
        given["vae"] = open_vae(base.vae, folder)
    dtypes = {part.name: _dtype_of(part) for part in folder.iterdir() if part.is_dir()}
    return pipeline_class(kind).from_pretrained(
        folder, variant=_variant(folder), use_safetensors=True, dtype=dtypes, **given
    )


def open_hub(base: Base) -> Any:
    """Load a pipeline from the hub or its cache.

    Raises:
        MissingModelError: it is not a supported family.
    """
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(base.source, revision=base.revision)
    kind = check_kind(base.source, index.get("_class_name"))
    given = left_out(kind, has_t5=_has_t5(index))
    folder = pipeline_class(kind).download(base.source, revision=base.revision, use_safetensors=True, **given)
    return open_folder(base, Path(folder))


def check_inputs(source: str, denoiser: Any, vae: Any) -> None:
    """Check that the denoiser is whole, and reads nothing but noisy latents.

    Raises:
        MissingModelError: it lacks its positions, or reads more channels: an inpainting, editing or depth model.
    """
    if any(table.is_meta for table in denoiser.buffers()):
        raise MissingModelError(
            f"{source} has no table of positions (pos_embed); it is not a whole model.",
            "Choose a file with everything in it.",
        )
    reads, has = denoiser.config.in_channels, vae.config.latent_channels
    if reads != has:
        raise MissingModelError(
            f"{source} reads {reads} channels where an image has {has}: an inpainting, editing or depth model.",
            TRAINED_HERE,
        )


def _dtype_of(part: Path) -> torch.dtype:
    """Return the dtype of most weights of a part's largest file."""
    files = sorted(part.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    return stored_dtype(read_shapes(files[-1]).values()) if files else torch.float32


def _has_t5(index: dict[str, Any]) -> bool:
    return index.get("text_encoder_3", (None, None))[0] is not None


def _variant(folder: Path) -> str | None:
    """Return `fp16` if the folder holds no other variant of the weights."""
    weights = [path.name for part in ("unet", "transformer") for path in (folder / part).glob("*.safetensors")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None
