"""Loads exported adapters into a fresh model the way users load them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from trainer.errors import ExportError
from trainer.models.families.model import LoadedBase
from trainer.models.methods.adapters import remove_adapter
from trainer.models.methods.applying import FileChange
from trainer.models.methods.trained import ExportedFile
from trainer.models.widening import stand_ins
from trainer.protocol.events import Reader


def load_back(file: ExportedFile, base: LoadedBase) -> AbstractContextManager[None]:
    """Load an exported adapter into `base` inside of the context, and remove it after.

    Uses `pipeline.load_lora_weights` where diffusers reads the file, `PeftModel.from_pretrained` for peft's folders,
    and the formulas of its readers otherwise.

    Raises:
        ExportError: the file cannot be loaded.
    """
    if file.path.is_dir():
        return _reporting(file.path, _by_peft(file.path, base))
    if Reader.DIFFUSERS in file.readers:
        return _reporting(file.path, _by_diffusers(file.path, base))
    return _reporting(file.path, _by_formulas(file.path, base))


@contextmanager
def _reporting(path: Path, loading: AbstractContextManager[None]) -> Iterator[None]:
    """Turn errors of loading into `ExportError`; errors of the body pass through."""
    try:
        loading.__enter__()
    except ExportError:
        raise
    except Exception as error:
        # diffusers, peft and safetensors have no common error class.
        raise ExportError(f"{path.name} cannot be loaded back ({error}).", "Please report this bug.") from error
    try:
        yield
    finally:
        loading.__exit__(None, None, None)


@contextmanager
def _by_diffusers(path: Path, base: LoadedBase) -> Iterator[None]:
    pipeline = base.pipeline()
    # In fp32, whatever the base is stored in.
    with stand_ins([base.denoiser, *base.clip_encoders.values()]):
        pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


@contextmanager
def _by_peft(folder: Path, base: LoadedBase) -> Iterator[None]:
    names = sorted(part.name for part in folder.iterdir() if part.is_dir())
    modules = {name: base.module(name) for name in names}
    with warnings.catch_warnings():
        # Each layer uses the nearest OFT block size that divides its width.
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")
        # peft 0.21.2 reads a property that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        for name, module in modules.items():
            with stand_ins([module]):
                PeftModel.from_pretrained(module, folder / name).eval()
    try:
        yield
    finally:
        for module in modules.values():
            remove_adapter(module)


@contextmanager
def _by_formulas(path: Path, base: LoadedBase) -> Iterator[None]:
    before: dict[nn.Parameter, Tensor] = {}
    try:
        with torch.no_grad():
            for parameter, merged in FileChange(path=path).changed(base, lambda parameter: parameter.data.float()):
                before[parameter] = parameter.data
                parameter.data = merged
        yield
    finally:
        for parameter, weight in before.items():
            parameter.data = weight
