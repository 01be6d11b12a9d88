"""A model on the Hugging Face hub: its name there, and what `python -m trainer publish` prints of it."""

from __future__ import annotations

import re

from trainer.protocol.frozen import Frozen

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Published(Frozen):
    """A model that is on the hub."""

    url: str
    is_private: bool
    #: All of it was there already.
    is_unchanged: bool = False


def repository_of(namespace: str, name: str, job_id: int) -> str:
    """Return `namespace/fox-12`: the hub takes letters, digits, `-`, `_` and `.`, and no two of the last in a row."""
    cleaned = re.sub(r"[.-]{2,}", "-", _NOT_IN_NAMES.sub("-", name)).strip("-.")[:80] or "model"
    return f"{namespace}/{cleaned}-{job_id}"
