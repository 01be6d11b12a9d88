"""Captions through CLIP text encoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.errors import BadSpecError


def token_ids(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Captions as token numbers, padded or cut to `length`, [B, T]."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def penultimate(encoder: Any, tokenizer: Any, captions: list[str], clip_skip: int, length: int) -> tuple[Tensor, Any]:
    """The layer before the last (clip skip 1) or an earlier one, [B, T, D], not normed, and all of the output."""
    ids_BT = token_ids(tokenizer, captions, length)
    output = encoder(ids_BT.to(encoder.device), output_hidden_states=True)
    return output.hidden_states[-(clip_skip + 1)], output


def clip_text_model(encoder: Any) -> Any:
    """The text model itself: transformers has it bare since 5.6, before within a wrapper, as with a projection."""
    return getattr(encoder, "text_model", encoder)


def check_clip_skip(source: str, clip_skip: int, deepest: int) -> None:
    """Refuse a clip skip that leaves no layer to read; `deepest` is the largest that does.

    Raises:
        BadSpecError: it leaves none.
    """
    if clip_skip > deepest:
        raise BadSpecError(
            f"base.clip_skip {clip_skip} leaves no layer of the text encoder of {source}.",
            f"Take {deepest} at most.",
        )


def find_end_by_token(encoder: Any, tokenizer: Any) -> None:
    """Let the pooled embedding be read at the end token, and not at the token with the highest number.

    Old configs (SDXL's second encoder among them) say that the end token is number 2, and transformers then looks for
    the highest number, which is the end token until textual inversion adds words behind it.
    """
    clip_text_model(encoder).eos_token_id = tokenizer.eos_token_id
