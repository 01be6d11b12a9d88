"""How many tokens CLIP makes of a caption, by its own vocabulary (`clip/`), whatever base is trained later."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

#: Tokens of a caption that Stable Diffusion reads: CLIP's 77 places less the two that mark begin and end.
LIMIT = 75

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
#: Of the file's merges, those that CLIP was trained with (openai/CLIP, `simple_tokenizer.py`).
_MERGES = slice(1, 49152 - 256 - 2 + 1)
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def count_tokens(captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, without the two that mark begin and end; all of them, `LIMIT` cuts nothing here."""
    encodings = _tokenizer().encode_batch_fast(list(captions), add_special_tokens=False)
    return [len(encoding) for encoding in encodings]


def unread_part(caption: str) -> str:
    """The end of a caption that a model does not read, from the word that is cut on; empty if all of it is read."""
    offsets: list[tuple[int, int]] = _tokenizer().encode(caption, add_special_tokens=False).offsets
    if len(offsets) <= LIMIT:
        return ""
    start = offsets[LIMIT][0]
    return caption[caption.rfind(" ", 0, start + 1) + 1 :].strip()


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their numbers, and the pairs that are merged, first the most common."""
    packed = (resources.files("trainer.dataset") / "clip" / _VOCABULARY).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[_MERGES]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges), BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}, merges


@cache
def _tokenizer() -> Tokenizer:
    """As transformers' `CLIPTokenizer`, which diffusers tokenizes with; made once, in about 0.2 s."""
    tokens, merges = vocabulary()
    tokenizer = Tokenizer(BPE(vocab=tokens, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (BEGIN, END)])
    return tokenizer


def _letters() -> list[str]:
    """A visible letter for each byte, in the order of CLIP's vocabulary: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = sum(1 for byte in range(256) if byte not in printable)
    return [*map(chr, printable), *(chr(256 + index) for index in range(hidden))]
