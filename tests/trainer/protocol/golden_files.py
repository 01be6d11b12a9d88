"""How a golden file is compared with what is written today."""

from __future__ import annotations

from typing import Any


def holds(written: Any, golden: Any) -> bool:
    """True if all that stood in the golden file is there unchanged; what was added since has a default."""
    if isinstance(golden, dict):
        return all(holds(written[key], value) for key, value in golden.items())
    if isinstance(golden, list):
        return len(written) == len(golden) and all(map(holds, written, golden))
    return bool(written == golden)
