"""Golden files: what users read is compared with a file beside the test; `pytest --rewrite-golden` rewrites them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: Set by `--rewrite-golden` (tests/conftest.py).
REWRITE_VARIABLE = "DARKROOM_REWRITE_GOLDEN"


def is_rewriting() -> bool:
    return bool(os.environ.get(REWRITE_VARIABLE))


def check_golden(path: Path, text: str) -> None:
    """Assert that `text` is what the golden file holds.

    Args:
        path: The golden file, for example `Path(__file__).parent / "golden" / "done_card.txt"`.
        text: What the code produced now.
    """
    text = text.rstrip("\n") + "\n"
    if is_rewriting():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"{path} does not exist; run pytest --rewrite-golden and read what it writes"
    assert text == path.read_text(encoding="utf-8")


def check_sentences(path: Path, sentences: Mapping[str, object]) -> None:
    """Assert that a golden file holds these sentences (or errors), each below the name of its case."""
    check_golden(path, "\n".join(f"{case}\n    {sentence}\n" for case, sentence in sentences.items()))
