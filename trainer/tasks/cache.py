"""Latents and caption embeddings, computed once for a dataset and a base, and read memory-mapped.

A cache file is named by everything that its content depends on (weights, pictures, sizes, captions), so a second job
on the same data and base costs a look-up, and a change of any of them makes another file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cache_key(*parts: Hashable | list[object]) -> str:
    """A file name that changes with any of `parts`."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def cached(folder: Path, name: str, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of `name`, from the file of that key, or computed and kept there (written by rename)."""
    path = folder / f"{name}-{key}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except SafetensorError:
        # Damaged by a full disk or a copy: it can be made again.
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    # Two trainings may fill the same cache at the same time: each by a file of its own.
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: tensor.contiguous() for name, tensor in compute().items()}, part)
    part.replace(path)
    return load_file(path)
