"""What the loaders of folders and of single files share: pipelines that are trained, their parts and their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import MissingModelError, first_line, hub_problem

#: The pipelines that can be trained, and their modules in `families`.
MODULES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}
TRAINED_HERE = "Choose a Stable Diffusion 1.x, 2.x, XL, 3 or 3.5."
#: dtypes that layers compute in; weights in others (fp8) are widened when they are loaded.
_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)


def check_kind(source: str, kind: str | None) -> str:
    """Return the pipeline's name if it is one of MODULES.

    Raises:
        MissingModelError: it is not.
    """
    if kind not in MODULES:
        raise MissingModelError(f"{source} is a {kind}, which Darkroom does not train.", TRAINED_HERE)
    return kind


def pipeline_class(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def left_out(kind: str, *, has_t5: bool) -> dict[str, Any]:
    """Components that the loader must not ask for: unused ones, and those that an SD 3 may lack."""
    names: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if kind == "StableDiffusionPipeline":
        names["safety_checker"] = None
    if kind == "StableDiffusion3Pipeline" and not has_t5:
        names |= {"text_encoder_3": None, "tokenizer_3": None}
    return names


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the meta device: shapes and dtypes, of the header alone."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: _like(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118


def _like(stored: Any) -> Tensor:
    dtype = _DTYPES.get(stored.get_dtype(), torch.float32)
    return torch.empty(stored.get_shape(), dtype=dtype, device="meta")


#: safetensors' names; the rest are not weights.
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def stored_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype of most of the weights if layers can compute in it, else fp32.

    Loaded in the dtype that they are stored in, weights are not copied: they stay in the file, memory-mapped.
    """
    sizes = Counter[torch.dtype]()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.numel()
    dtype = max(sizes, key=sizes.__getitem__, default=torch.float32)
    return dtype if dtype in _COMPUTED else torch.float32


@contextmanager
def positions_from_file() -> Iterator[None]:
    """Let diffusers compute no table of positions for an SD 3: the one in the file replaces it.

    That of SD 3.5 Medium (384 × 384 positions) takes 9 s of CPU, and 3.4 GiB for a moment.
    """
    from diffusers.models import embeddings

    computed = embeddings.get_2d_sincos_pos_embed
    embeddings.get_2d_sincos_pos_embed = partial(computed, device=torch.device("meta"))
    try:
        yield
    finally:
        embeddings.get_2d_sincos_pos_embed = computed


def open_vae(source: str, base_config: Path) -> Any:
    """Load `base.vae`: a folder in diffusers layout, a `.safetensors` file in either layout, or a hub name.

    Args:
        base_config: Folder of the base's configurations; a file is taken for a VAE like the base's own.

    Raises:
        MissingModelError: there is none, or it makes other latents than the base reads.
    """
    from diffusers import AutoencoderKL

    path = Path(source).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise MissingModelError(
            f"{source} is not a .safetensors file; other files can run code when they are opened.",
            "Choose a VAE that is offered as .safetensors, or a folder in diffusers layout.",
        )
    if not path.exists() and (path.is_absolute() or path.suffix or source.count("/") != 1):
        raise MissingModelError(
            f"There is no VAE at {source} (base.vae).", "Give a .safetensors file, a folder, or a hub name."
        )
    try:
        if path.is_file():
            dtype = stored_dtype(read_shapes(path).values())
            vae = AutoencoderKL.from_single_file(str(path), config=str(base_config), subfolder="vae", dtype=dtype)
        else:
            vae = AutoencoderKL.from_pretrained(source, use_safetensors=True)
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        known = hub_problem(source, error)
        raise known or MissingModelError(
            f"{source} cannot be loaded as a VAE ({first_line(error)}).", "Choose a VAE of the base's family."
        ) from error
    expected = AutoencoderKL.load_config(str(base_config), subfolder="vae")["latent_channels"]
    if vae.config.latent_channels != expected:
        raise MissingModelError(
            f"The VAE {source} makes latents of {vae.config.latent_channels} channels, and the base reads {expected}.",
            "Choose a VAE of the base's family.",
        )
    return vae
