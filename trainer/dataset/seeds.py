"""Seeds that follow from what they are for: no random state is carried along (docs/adr/0002)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable


def derive_seed(*parts: Hashable) -> int:
    """A seed of 63 bits for each distinct combination of `parts`: seeds that are near each other do not correlate."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
