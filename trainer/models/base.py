"""The pretrained model: loaded from a folder, a single file, a hub name, or `tiny`, the one that ships."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import MissingModelError, first_line, hub_problem
from trainer.models.families.model import BaseModel, Family
from trainer.protocol.settings import Base, Objective

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TINY", "BaseModel", "Family", "digest_of", "fingerprint", "load_base", "tiny_folder"]

TINY = "tiny"
_AS_TRAINED = Objective()


def load_base(base: Base, objective: Objective = _AS_TRAINED) -> BaseModel:
    """The base model of a job, with the noise and the prediction that its objective asks for.

    Raises:
        MissingModelError: it is not there, cannot be reached, needs a licence, is damaged, or is of another kind.
        BadSpecError: the objective or `clip_skip` do not fit it.
    """
    path = tiny_folder() if base.source == TINY else Path(base.source).expanduser()
    pipeline = _open(base, path)
    for name, part in pipeline.components.items():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False).eval()
            if name != "text_encoder_3":
                # Files may be fp16; what a trainer computes with is its own decision. T5 is never trained, and would
                # take 19 GB in fp32.
                part.float()
    return _assemble(base, objective if not path.is_file() else _marked(objective, path), pipeline)


def _assemble(base: Base, objective: Objective, pipeline: Any) -> BaseModel:
    """Only the family at hand is imported."""
    from trainer.models.families import opening

    match opening.MODULES[type(pipeline).__name__]:
        case "sd":
            from trainer.models.families.sd import assemble
        case "sdxl":
            from trainer.models.families.sdxl import assemble
        case _:
            from trainer.models.families.sd3 import assemble
    model = assemble(base, objective, pipeline)
    opening.check_inputs(base.source, model.denoiser, model.vae)
    return model


def _marked(objective: Objective, path: Path) -> Objective:
    from trainer.models.families.opening import as_marked

    return as_marked(objective, path)


def _open(base: Base, path: Path) -> Any:
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    from trainer.models.families import opening

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        if path.is_file():
            return opening.open_single_file(base, path)
        if path.is_dir():
            return opening.open_folder(base.source, path)
        if path.is_absolute() or path.suffix or base.source.count("/") != 1:
            raise MissingModelError(
                f"There is no model at {base.source}.",
                "Give a folder in diffusers layout, a .safetensors file, or a hub name such as owner/name.",
            )
        return opening.open_hub(base.source, base.revision)
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(base.source, error, is_file=path.is_file()) from error


def _explain(source: str, error: Exception, *, is_file: bool) -> MissingModelError:
    known = hub_problem(source, error)
    if known is not None and is_file:
        return MissingModelError(
            f"What describes {source} is not on this machine, and the hub cannot be reached.",
            "Check the network, or give base.config: a folder in diffusers layout of such a model.",
        )
    why = f"{source} cannot be loaded ({first_line(error)})."
    return known or MissingModelError(why, "Is it a whole Stable Diffusion?")


def tiny_folder() -> Path:
    """Where the small Stable Diffusion lies that ships with the package (64 px, made by `recipes/tiny`)."""
    return Path(str(resources.files("trainer.models") / "tiny"))


def fingerprint(base: BaseModel) -> str:
    """What latents and caption embeddings depend on: the VAE with its scale, and all text encoders."""
    config = base.vae.config
    scale = f"{config.scaling_factor} {getattr(config, 'shift_factor', None)}"
    return f"{base.family} {scale} {digest_of(base.vae, *base.text_encoders.values())}"


def digest_of(*modules: nn.Module) -> str:
    """XXH3-128 over the names and bytes of all weights: caches made with other weights have another name.

    All of the bytes, since a taught word changes one row of a table and no sample of it would tell. This hash, since it
    reads 17 GB/s on one core here and SHA-256 1.2: 0.05 s for SD 1.5 instead of 0.7, 0.6 s for a T5 instead of 8. A
    cache's name keeps nobody out, so it need not be a cryptographic one.
    """
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
