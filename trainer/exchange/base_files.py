"""Reads of a base model's files what must be known before it is loaded: the size of the images it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from trainer.protocol.settings import Base
from trainer.protocol.spec import Spec

#: Longest header of a `.safetensors` file that is read, bytes: that of SDXL has 0.3 MB.
_MAX_HEADER = 2**25
#: In the names of a single file's tensors, by family, and the resolution of the family's models, px: SD 3 and 3.5, SDXL
#: and SD 1.x. That of an SD 2 is known once its weights are loaded: 768 px if they predict the velocity, else 512.
_SINGLE_FILES = (
    ("joint_blocks.", 1024),
    ("conditioner.embedders.", 1024),
    ("cond_stage_model.transformer.", 512),
)


def training_resolution(spec: Spec, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the resolution that a job trains at, px: its own, else its base's; None if that is not known here."""
    return spec.training.resolution or base_resolution(spec.base, environ)


def base_resolution(base: Base, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the side of the images that a base was trained on, px, without loading it.

    None if its files are not on this machine or do not tell; `environ` names the cache of the hub.
    """
    path = Path(base.config or base.source).expanduser()
    if base.source == "tiny":
        path = Path(str(resources.files("trainer") / "models" / "tiny"))
    elif not path.exists() and base.source.count("/") == 1:
        path = _cached(base, environ)
    try:
        return _of_single_file(path) if path.is_file() else _of_folder(path)
    except (OSError, ValueError, LookupError, TypeError):
        # Missing, damaged, or of a kind that training will refuse.
        return None


def _cached(base: Base, environ: Mapping[str, str]) -> Path:
    """The snapshot in the hub's cache, which may not exist."""
    hub = environ.get("HF_HUB_CACHE") or environ.get("HF_HOME", "~/.cache/huggingface") + "/hub"
    folder = Path(hub).expanduser() / f"models--{base.source.replace('/', '--')}"
    revision = base.revision or "main"
    reference = folder / "refs" / revision
    return folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)


def _of_folder(folder: Path) -> int | None:
    if (folder / "preprocessor_config.json").is_file() and not (folder / "vae").is_dir():
        return _of_classifier(_json(folder / "preprocessor_config.json"))
    denoiser = folder / ("unet" if (folder / "unet").is_dir() else "transformer") / "config.json"
    vae = _json(folder / "vae" / "config.json")
    # As `LoadedBase.resolution`: each block of the VAE but the last halves the sides.
    halvings = len(vae["block_out_channels"]) - 1
    return int(_json(denoiser)["sample_size"]) << halvings


def _of_classifier(processor: Mapping[str, Any]) -> int:
    if processor.get("do_center_crop") and processor.get("crop_size"):
        return int(processor["crop_size"]["height"])
    size = processor["size"]
    return int(size.get("shortest_edge") or size["height"])


def _of_single_file(path: Path) -> int | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            return None
        names = list(json.loads(file.read(length)))
    return next((side for mark, side in _SINGLE_FILES if any(mark in name for name in names)), None)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content
