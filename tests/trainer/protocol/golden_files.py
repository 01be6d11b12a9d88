"""Comparison of parsed content with a golden JSON file."""

from __future__ import annotations

from typing import Any


def holds(written: Any, golden: Any) -> bool:
    """Return True if everything in the golden file is there unchanged; fields added since have defaults."""
    if isinstance(golden, dict):
        return all(holds(written[key], value) for key, value in golden.items())
    if isinstance(golden, list):
        return len(written) == len(golden) and all(map(holds, written, golden))
    return bool(written == golden)
