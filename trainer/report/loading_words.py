"""What each exported file is for, and the line that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import MethodKind

F = ExportFormat

_READERS: Mapping[ExportFormat, str] = {
    F.DIFFUSERS: "diffusers",
    F.KOHYA: "A1111, ComfyUI, Forge",
    F.EMBEDDING: "A1111, ComfyUI, Forge",
    F.CHECKPOINT: "A1111, ComfyUI, Forge",
    F.TRANSFORMERS: "transformers",
}


def readers_of(kind_of_file: ExportFormat) -> str:
    """The programs that read such a file."""
    return _READERS[kind_of_file]


def how_to_load(kind_of_file: ExportFormat, path: str, kind: MethodKind) -> str:
    """What to do with a file: a line of Python, or where to put it and what to write; `path` is relative to the job."""
    file = PurePosixPath(path)
    match kind_of_file:
        case F.KOHYA:
            return f"into models/Lora, then <lora:{file.stem}:1> in the prompt"
        case F.EMBEDDING:
            return f"into embeddings, then {file.stem} in the prompt"
        case F.CHECKPOINT:
            return "into models/Stable-diffusion, then choose it as the checkpoint"
        case F.TRANSFORMERS:
            return f'AutoModelForImageClassification.from_pretrained("{path}")'
        case F.DIFFUSERS:
            return _in_diffusers(path, file, kind)


def _in_diffusers(path: str, file: PurePosixPath, kind: MethodKind) -> str:
    if kind in {MethodKind.LORA, MethodKind.DORA}:
        return f'pipeline.load_lora_weights("{file.parent}", weight_name="{file.name}")'
    if kind is MethodKind.TEXTUAL_INVERSION:
        return f'pipeline.load_textual_inversion("{path}")'
    if kind is MethodKind.FULL:
        return f'DiffusionPipeline.from_pretrained("{path}")'
    return f'PeftModel.from_pretrained(pipeline.unet, "{path}/unet")'
