"""What keeps the libraries from talking between our own lines."""

from __future__ import annotations

import os


def quieten_libraries() -> None:
    """Our console and events say what matters; call it before the libraries are imported, which read it then."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
