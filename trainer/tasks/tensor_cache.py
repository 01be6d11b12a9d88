"""A cache of tensors on disk: a file is named by everything that its content depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.exchange.files import atomic_write


def cache_key(*parts: Hashable | list[object]) -> str:
    """Hash of everything that the content of a cache file depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def cached(folder: Path, name: str, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors from the file of that key, or compute and store them."""
    path = folder / f"{name}-{key}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError:
        pass
    except SafetensorError:
        # Damaged by a full disk or a copy: compute it again.
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in compute().items()}, partial)
    return load_file(path)
