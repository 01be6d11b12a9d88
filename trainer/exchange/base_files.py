"""Reads of a base model's files what must be known before it is loaded: the size of the images it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from trainer.protocol.settings import TINY, Base
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
#: Families by the marks of single files, and by the pipelines of folders.
_FAMILIES = {
    "joint_blocks.": "SD 3",
    "conditioner.embedders.": "SDXL",
    "cond_stage_model.transformer.": "SD 1.x",
    "cond_stage_model.model.": "SD 2.x",
    "StableDiffusion3Pipeline": "SD 3",
    "StableDiffusionXLPipeline": "SDXL",
}
#: Width of the text embeddings of SD 2.x; that of SD 1.x is 768.
_SD2_WIDTH = 1024


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What is known of a base model from its files, without loading it."""

    #: Such as `SDXL`; empty: not one that can be trained, or not known.
    family: str
    #: None: its files do not say.
    resolution: int | None
    bytes: int


def base_facts(base: Base, environ: Mapping[str, str] = os.environ) -> BaseFacts | None:
    """Return what is known of a base from its files; None if they are not on this machine."""
    path = path_of(base, environ)
    if not path.exists():
        return None
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    try:
        family = _family_of_file(path) if path.is_file() else _family_of_folder(path)
    except (OSError, ValueError, LookupError, TypeError):
        family = ""
    size = sum(each.stat().st_size for each in files)
    return BaseFacts(family=family, resolution=base_resolution(base, environ), bytes=size)


def _family_of_folder(folder: Path) -> str:
    pipeline = str(_json(folder / "model_index.json")["_class_name"])
    if pipeline != "StableDiffusionPipeline":
        return _FAMILIES.get(pipeline, "")
    return "SD 2.x" if _json(folder / "unet" / "config.json")["cross_attention_dim"] == _SD2_WIDTH else "SD 1.x"


def _family_of_file(path: Path) -> str:
    names = _tensor_names(path)
    return next((family for mark, family in _FAMILIES.items() if any(mark in name for name in names)), "")


def training_resolution(spec: Spec, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the resolution that a job trains at, px: its own, else its base's; None if that is not known here."""
    return spec.training.resolution or base_resolution(spec.base, environ)


def base_resolution(base: Base, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the side of the images that a base was trained on, px, without loading it.

    None if its files are not on this machine or do not tell; `environ` names the cache of the hub.
    """
    path = path_of(base, environ)
    try:
        return _of_single_file(path) if path.is_file() else _of_folder(path)
    except (OSError, ValueError, LookupError, TypeError):
        # Missing, damaged, or of a kind that training will refuse.
        return None


def version_of(base: Base, environ: Mapping[str, str] = os.environ) -> list[tuple[int, int]]:
    """Return what changes when files of a base are replaced: sizes and times of its weights, configs and VAE."""
    paths = [path_of(base, environ)]
    # Where there are configs beside it, that was their folder.
    others = ((base.source, base.revision), (base.vae, None))
    paths += [path_of(Base(source=each, revision=revision), environ) for each, revision in others if each]
    files = (file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))))
    return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files if file.is_file())]


def path_of(base: Base, environ: Mapping[str, str] = os.environ) -> Path:
    """The file or folder of a base, or of its configs; it may not exist."""
    path = Path(base.config or base.source).expanduser()
    if base.source == TINY:
        return Path(str(resources.files("trainer") / "models" / "tiny"))
    if not path.exists() and base.source.count("/") == 1:
        return _cached(base, environ)
    return path


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
    names = _tensor_names(path)
    return next((side for mark, side in _SINGLE_FILES if any(mark in name for name in names)), None)


def _tensor_names(path: Path) -> list[str]:
    """The names in the header of a `.safetensors` file; none if it is longer than any that is known."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return list(json.loads(file.read(length))) if length <= _MAX_HEADER else []


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content
