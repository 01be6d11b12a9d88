"""CLIP's vocabulary, which ships with the package: the tokens that every Stable Diffusion reads captions as."""

from __future__ import annotations

import gzip
from importlib import resources

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
#: The merges of the file that CLIP was trained with (openai/CLIP, `simple_tokenizer.py`).
_MERGES = slice(1, 49152 - 256 - 2 + 1)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their ids, and its merges, most common first."""
    packed = (resources.files("trainer") / "clip" / _VOCABULARY).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[_MERGES]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = _letters()
    merged = (left + right for left, right in merges)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """A visible letter for each byte, in the order of CLIP's vocabulary: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = sum(1 for byte in range(256) if byte not in printable)
    return [*map(chr, printable), *(chr(256 + index) for index in range(hidden))]
