"""What the `exported` events of a job say: its newest files, and the Python that loads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from trainer.protocol.events import Event, Exported, ExportFormat, Reader

#: The keys of a word's vectors in the file for SDXL, and the end of the names of their text encoders.
_ENCODERS_OF_SDXL = {"clip_l": "", "clip_g": "_2"}


def newest_files(events: Iterable[Event]) -> tuple[Exported, ...]:
    """Return the newest event of each file: an attempt that died while exporting exports again."""
    files = {(event.format, event.epoch): event for event in events if isinstance(event, Exported)}
    return tuple(sorted(files.values(), key=lambda file: file.epoch or 0))


def name_of(exported: Exported, job_name: str) -> str:
    """Return the name under which a file is handed over."""
    path = PurePosixPath(exported.path)
    # The file name of an embedding is the word in the prompt; that of an epoch has its number.
    is_named = exported.format is ExportFormat.EMBEDDING or exported.epoch is not None
    return path.name if is_named else f"{job_name}-{exported.format}{path.suffix}"


def loading_code(exported: Exported, path: str) -> tuple[str, ...]:
    """Return the lines of Python that load a file, which lies at `path`, into the pipeline `pipe`; none: no library
    reads it. A whole model is a pipeline of its own.

    tests/trainer/models/test_loading_code.py runs every line.
    """
    if Reader.TRANSFORMERS in exported.readers:
        return (f"model = AutoModelForImageClassification.from_pretrained({_quoted(path)})",)
    if Reader.PEFT in exported.readers:
        folders = {name: _quoted(f"{path}/{name}") for name in exported.modules}
        return tuple(f"PeftModel.from_pretrained(pipe.{name}, {folder})" for name, folder in folders.items())
    if Reader.DIFFUSERS not in exported.readers:
        return ()
    if exported.token:
        return _load_word(exported, path)
    if PurePosixPath(exported.path).suffix:
        return (f"pipe.load_lora_weights({_quoted(path)})",)
    # diffusers 0.42.1 opens an SD 3 without T5 only if it is told that there is none.
    is_without_t5 = "transformer" in exported.modules and "text_encoder_3" not in exported.modules
    left_out = ", text_encoder_3=None, tokenizer_3=None" if is_without_t5 else ""
    return (f"pipe = DiffusionPipeline.from_pretrained({_quoted(path)}{left_out})",)


def _load_word(exported: Exported, path: str) -> tuple[str, ...]:
    token = f"token={_quoted(exported.token)}"
    if exported.format is not ExportFormat.EMBEDDING or len(exported.modules) == 1:
        return (f"pipe.load_textual_inversion({_quoted(path)}, {token})",)
    return (
        f"word = safetensors.torch.load_file({_quoted(path)})",
        *(
            f'pipe.load_textual_inversion(word["{key}"], {token}, '
            f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end})"
            for key, end in _ENCODERS_OF_SDXL.items()
        ),
    )


def _quoted(text: str) -> str:
    """Return a Python string in double quotes: JSON's is one."""
    return json.dumps(text, ensure_ascii=False)
