"""Writes models of true size with random weights, in fp16, as model sites offer them.

They cost no download and show what a real one takes: time, memory, and whether its loader works. Nothing is held in
memory: shapes come from models without weights, and the values are streamed to the file.
"""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.exchange.files import atomic_write
from trainer.models.methods.checkpoint_file import original_state
from trainer.models.released_configs import RELEASED, make_tokenizers, write_configs

#: diffusers' types of single files whose original layout is known, and their families.
_FAMILIES = {"v1": "sd1", "v2": "sd2", "xl_base": "sdxl"}
#: Names of the weights in a folder in diffusers layout.
_FILES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
#: Random numbers that are repeated: a prime number of them, so that no two rows of a matrix are equal.
_TILE = 4_194_301


def random_model_bytes(kind: str) -> int:
    """Return the size of a model's weights in fp16."""
    return sum(2 * tensor.numel() for part in empty_parts(kind).values() for tensor in part.state_dict().values())


def write_random_model(kind: str, path: Path) -> Path:
    """Write a model as it is usually offered: an SD 3 as a folder, others as a file."""
    return write_random_file(kind, path) if kind in _FAMILIES else write_random_folder(kind, path)


def write_random_file(kind: str, path: Path) -> Path:
    """Write an SD 1, 2 or XL (a key of `RELEASED`) as one `.safetensors` in the original layout."""
    parts = empty_parts(kind)
    encoders = {name: part for name, part in parts.items() if name.startswith("text_encoder")}
    _write_weights(path, original_state(_FAMILIES[kind], parts["unet"], parts["vae"], encoders))
    return path


def write_random_folder(kind: str, folder: Path) -> Path:
    """Write a model (a key of `RELEASED`) as a folder in diffusers layout; an SD 3 has no T5."""
    write_configs(kind, folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, part in empty_parts(kind).items():
        _write_weights(folder / name / _FILES[index[name][0]], part.state_dict())
    for name, tokenizer in make_tokenizers(kind).items():
        tokenizer.save_pretrained(folder / name)
    return folder


def empty_parts(kind: str) -> dict[str, nn.Module]:
    """Return the modules of a released model by name, without memory for their weights."""
    import diffusers
    import transformers

    parts = {}
    with tempfile.TemporaryDirectory(prefix="darkroom-configs-") as temporary, torch.device("meta"):
        configs = write_configs(kind, Path(temporary) / "model")
        index = json.loads((configs / "model_index.json").read_text(encoding="utf-8"))
        for name in RELEASED[kind].keys() - {"scheduler"}:
            library, class_name = index[name]
            if library == "transformers":
                config = transformers.CLIPTextConfig.from_pretrained(configs / name)
                parts[name] = getattr(transformers, class_name)(config)
            else:
                cls = getattr(diffusers, class_name)
                parts[name] = cls.from_config(cls.load_config(configs / name))
    return parts


def _write_weights(path: Path, shapes: Mapping[str, Tensor]) -> None:
    """Write a `.safetensors` of these names and shapes in fp16, one tensor after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in shapes.items():
        size = 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    uniform = np.random.default_rng(0).uniform(-1, 1, _TILE).astype(np.float32)
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, tensor in shapes.items():
            for values in _values(name, tensor, uniform):
                file.write(values.tobytes())


def _values(name: str, tensor: Tensor, uniform: NDArray[np.float32]) -> Iterator[NDArray[np.float16]]:
    """Yield a tensor's values: those of a norm, or of torch's own initialization of linear and convolutional layers."""
    count = tensor.numel()
    if tensor.ndim < 2:
        yield np.full(count, name.endswith("weight"), np.float16)
        return
    bound = np.float32(1 / math.sqrt(count / tensor.shape[0]))
    # Each tensor begins elsewhere in the random numbers.
    start = zlib.crc32(name.encode()) % _TILE
    while count:
        part = uniform[start : start + count]
        yield (part * bound).astype(np.float16)
        count, start = count - len(part), 0
