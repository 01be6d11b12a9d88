"""One `.safetensors` file with the metadata and hashes that other programs read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save, save_file
from torch import Tensor


def write_single_file(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Tensors with their metadata, and the two hashes by which A1111 knows a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, path, metadata={**as_metadata(metadata), **tensor_hashes(contiguous)})
    return path


def as_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """safetensors metadata holds strings only: numbers as kohya prints them, nested values as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in values.items()
    }


def tensor_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash`: SHA-256 of the tensor bytes, whatever the metadata.

    Source: `precalculate_safetensors_hashes` of kohya-ss/sd-scripts `library/train_util.py`.
    """
    blob = save(dict(state))
    header = int.from_bytes(blob[:8], "little")
    model_hash = hashlib.sha256(blob[8 + header :]).hexdigest()
    # A1111's first hash: 64 KiB from 1 MiB on, eight digits.
    legacy_hash = hashlib.sha256(blob[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
