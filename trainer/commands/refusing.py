"""How a command says no."""

from __future__ import annotations

import sys

from trainer.protocol.events import EXIT_REFUSED


def refuse(sentence: str) -> int:
    """Say it on stderr, on one line, and return the exit status of a refusal."""
    sys.stderr.write(" ".join(sentence.split()) + "\n")
    return EXIT_REFUSED
