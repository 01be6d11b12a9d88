"""CLIP text encoders: tokens in chunks of 75, hidden layers, clip skip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.errors import BadSpecError
from trainer.models.families.model import stack_captions
from trainer.protocol.settings import Base

#: A chunk ends at a comma that is among its last tokens, so that no tag is cut: A1111's `comma_padding_backtrack`.
_COMMA_REACH = 20


def token_ids(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    """Tokenize captions, padded or truncated to `length`: ids, [B, T]."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def chunked_ids(tokenizer: Any, captions: list[str], max_tokens: int) -> tuple[Tensor, list[int]]:
    """Tokenize captions in chunks of the encoder's context (75 tokens, a begin and an end), each padded.

    A caption that fits into one chunk has the same ids as from `token_ids`. What is beyond `max_tokens` is cut off.

    Returns:
        The ids of all chunks, one caption after another, [N, T], and how many chunks each caption has.
    """
    size = tokenizer.model_max_length - 2
    (comma,) = tokenizer(",", add_special_tokens=False).input_ids
    tokens = tokenizer(captions, add_special_tokens=False, verbose=False).input_ids
    most = max_tokens // size
    chunks = [list(cut_tokens(each[:max_tokens], comma, size))[: max(1, most)] for each in tokens]
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[begin, *chunk, end, *[pad] * (size - len(chunk))] for each in chunks for chunk in each]
    return torch.tensor(rows), [len(each) for each in chunks]


def cut_tokens(tokens: Sequence[int], comma: int, size: int) -> Iterator[list[int]]:
    """Cut a caption's tokens into chunks of at most `size`: `tokenize_line` of A1111's modules/sd_hijack_clip.py.

    kohya's scripts cut after each 75 tokens, which is the same where no comma is near.
    """
    chunk: list[int] = []
    last_comma: int | None = None
    for token in tokens:
        if len(chunk) == size:
            is_near = token != comma and last_comma is not None and size - last_comma <= _COMMA_REACH
            cut = last_comma + 1 if last_comma is not None and is_near else size
            yield chunk[:cut]
            chunk, last_comma = chunk[cut:], None
        if token == comma:
            last_comma = len(chunk)
        chunk.append(token)
    yield chunk


def join_chunks(chunks_NTD: Tensor, counts: Sequence[int]) -> Tensor:
    """Put the embedded chunks of each caption one after another, [B, T, D], whole as A1111 and ComfyUI do."""
    return stack_captions([own_NTD.flatten(0, 1) for own_NTD in torch.split(chunks_NTD, list(counts))])


def of_first_chunks(pooled_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the pooled embedding of each caption, [B, D]: that of its first chunk, as A1111, ComfyUI and kohya do."""
    return torch.stack([own_ND[0] for own_ND in torch.split(pooled_ND, list(counts))])


def penultimate(encoder: Any, ids_BT: Tensor, clip_skip: int) -> tuple[Tensor, Any]:
    """Return the layer before the last or an earlier one, [B, T, D], without the final norm, and the encoder's whole
    output.

    `clip_skip` counts from the last layer, as in A1111 and ComfyUI: the layer before the last is the model's own (1),
    and is also what 2 asks for.
    """
    output = encoder(ids_BT.to(encoder.device), output_hidden_states=True)
    return output.hidden_states[-max(2, clip_skip)], output


def clip_text_model(encoder: Any) -> Any:
    """Unwrap the text model: encoders with a projection, and all before transformers 5.6, hold it in `text_model`."""
    return getattr(encoder, "text_model", encoder)


def clip_encoders(base: Base, pipeline: Any, *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return CLIP text encoders of a pipeline and their tokenizers, both by the names of the encoders.

    Their pooled embedding is read at the end token, not at the token with the highest id: old configs (SDXL's second
    encoder among them) give 2 as the id of the end token. transformers then takes the highest id, which is the end
    token only until textual inversion adds tokens after it.

    Raises:
        BadSpecError: `base.clip_skip` leaves no layer to read.
    """
    encoders = {name: getattr(pipeline, name) for name in names}
    tokenizers = {name: getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in names}
    for name, encoder in encoders.items():
        if base.clip_skip > (deepest := encoder.config.num_hidden_layers):
            raise BadSpecError(
                f"base.clip_skip {base.clip_skip} leaves no layer of the text encoder of {base.source}.",
                f"Take {deepest} at most.",
            )
        clip_text_model(encoder).eos_token_id = tokenizers[name].eos_token_id
    return encoders, tokenizers
