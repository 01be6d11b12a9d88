"""Derives seeds from what they are used for, so that no random state has to be kept (docs/adr/0002)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable


def derive_seed(*parts: Hashable) -> int:
    """A 63-bit seed for each distinct combination of `parts`; seeds of similar parts are not correlated."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
