"""CLIP text encoders: tokens, hidden layers, clip skip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.errors import BadSpecError


def token_ids(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Tokenize captions, padded or truncated to `length`: ids, [B, T]."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def penultimate(encoder: Any, tokenizer: Any, captions: list[str], clip_skip: int, length: int) -> tuple[Tensor, Any]:
    """Return the layer before the last or an earlier one, [B, T, D], without the final norm, and the encoder's whole
    output.

    `clip_skip` counts from the last layer, as in A1111 and ComfyUI: the layer before the last is the model's own (1),
    and is also what 2 asks for.
    """
    ids_BT = token_ids(tokenizer, captions, length)
    output = encoder(ids_BT.to(encoder.device), output_hidden_states=True)
    return output.hidden_states[-max(2, clip_skip)], output


def clip_text_model(encoder: Any) -> Any:
    """Unwrap the text model: encoders with a projection, and all before transformers 5.6, hold it in `text_model`."""
    return getattr(encoder, "text_model", encoder)


def check_clip_skip(source: str, clip_skip: int, deepest: int) -> None:
    """Check that a layer is left to read; `deepest` is the largest clip skip with one.

    Raises:
        BadSpecError: `clip_skip` is larger.
    """
    if clip_skip > deepest:
        raise BadSpecError(
            f"base.clip_skip {clip_skip} leaves no layer of the text encoder of {source}.",
            f"Take {deepest} at most.",
        )


def find_end_by_token(encoder: Any, tokenizer: Any) -> None:
    """Read the pooled embedding at the end token, not at the token with the highest id.

    Old configs (SDXL's second encoder among them) give 2 as the id of the end token. transformers then takes the
    highest id, which is the end token only until textual inversion adds tokens after it.
    """
    clip_text_model(encoder).eos_token_id = tokenizer.eos_token_id
