"""Textual inversion: a new word with vectors of its own, and a model that stays as it is to the bit.

Where a caption says the word, the tokenizers say tokens that were not there before, whose vectors are what is trained.
Without the training (`base_only`) the word is read as before, letter by letter or as what it meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, normalizers
from torch import Tensor, nn

from trainer.errors import BadSpecError, CheckpointError
from trainer.models.families.clip import clip_text_model
from trainer.models.families.model import BaseModel, Family
from trainer.models.methods.single_file import as_metadata
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Method

#: What `pipeline.load_textual_inversion` looks for in a folder.
DIFFUSERS_FILE = "learned_embeds.safetensors"
#: Name of the vectors in a checkpoint.
_VECTORS = "vectors"


class ExtendedEmbedding(nn.Module):
    """A token embedding with further tokens, from number `first` on; those that were there before are not touched."""

    def __init__(self, known: nn.Embedding, vectors_ND: Tensor, first: int) -> None:
        super().__init__()
        self.known = known
        self.word = nn.Embedding(vectors_ND.shape[0], vectors_ND.shape[1], _weight=vectors_ND.clone())
        self.first = first

    @property
    def weight(self) -> Tensor:
        """What transformers asks an embedding for."""
        return self.known.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        known_BTD: Tensor = self.known(ids_BT.clamp(max=self.known.num_embeddings - 1))
        word_BTD = self.word((ids_BT - self.first).clamp(min=0)).to(known_BTD.dtype)
        return torch.where((ids_BT >= self.first)[..., None], word_BTD, known_BTD)


@dataclass(frozen=True, kw_only=True)
class Word:
    """The new word in one text encoder."""

    encoder: nn.Module
    tokenizer: Any
    embedding: ExtendedEmbedding
    #: How the tokenizer reads text with the word, and without.
    reads_word: Any
    reads_plain: Any

    @property
    def vectors(self) -> nn.Parameter:
        """One row for each token of the word, [N, D]."""
        return self.embedding.word.get_parameter("weight")


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """A word that is being taught."""

    trigger: str
    #: By the names of the text encoders.
    words: Mapping[str, Word]

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {name: word.encoder for name, word in self.words.items()}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, word in self.words.items():
            yield from ((f"{name}.{own}", p) for own, p in word.encoder.named_parameters() if p is word.vectors)

    @property
    def blocks(self) -> Sequence[str]:
        return [name.removesuffix(".weight") for name, _ in self.named_parameters()]

    def state(self) -> Weights:
        return {name: {_VECTORS: word.vectors.detach().to("cpu", copy=True)} for name, word in self.words.items()}

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: the vectors are of another job.
        """
        if weights.keys() != self.words.keys():
            raise CheckpointError("The checkpoint holds no word for the text encoders of this base.", "Start it anew.")
        for name, word in self.words.items():
            vectors_ND = weights[name].get(_VECTORS)
            if vectors_ND is None or vectors_ND.shape != word.vectors.shape:
                raise CheckpointError(f"The vectors of {name} do not fit this job.", "Start it anew.")
            word.vectors.copy_(vectors_ND)

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """The word is read as it was before there was a new one: an honest measure of what the base makes of it."""
        with ExitStack() as stack:
            for word in self.words.values():
                word.tokenizer.backend_tokenizer.normalizer = word.reads_plain
                stack.callback(setattr, word.tokenizer.backend_tokenizer, "normalizer", word.reads_word)
            yield

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """One file, called as the word, for A1111 and ComfyUI, where a word is its file's name; and, where there is one
        text encoder, `learned_embeds.safetensors`, which diffusers loads with nothing more said.

        For SDXL, diffusers takes `clip_l` and `clip_g` of the first, each with its text encoder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        vectors = {encoder: word.vectors.detach().cpu().contiguous() for encoder, word in self.words.items()}
        path = folder / f"{file_name(self.trigger)}.safetensors"
        header = {"format": "pt", **as_metadata(metadata)}
        save_file({key_of(encoder, len(vectors)): rows_ND for encoder, rows_ND in vectors.items()}, path, header)
        files = [ExportedFile(format=ExportFormat.EMBEDDING, path=path)]
        if len(vectors) == 1:
            (rows_ND,), (word,) = vectors.values(), self.words.values()
            token = token_for(self.trigger, word.tokenizer)
            save_file({token: rows_ND}, folder / DIFFUSERS_FILE, {"format": "pt"})
            files.append(ExportedFile(format=ExportFormat.DIFFUSERS, path=folder / DIFFUSERS_FILE))
        return files


def attach_inversion(base: BaseModel, method: Method, trigger: str) -> Inversion:
    """Teach every text encoder of `base` a new word, in place of what it makes of `trigger` so far.

    Its vectors begin as those of `method.initial_word`, or, without one, as what `trigger` is read as today.

    Raises:
        BadSpecError: the base is of a family without textual inversion, there is no word, or `initial_word` is longer
            than the new word.
    """
    if base.family is Family.SD3:
        raise BadSpecError(
            "textual_inversion is for Stable Diffusion 1, 2 and XL: nothing loads a word that was learnt for 3.",
            "Set method.kind to lora.",
        )
    trigger = trigger.strip()
    if not trigger:
        raise BadSpecError("textual_inversion teaches a word, and there is none.", "Set training.trigger to it.")
    words = {
        name: _teach(encoder, base.tokenizers[name], method, trigger) for name, encoder in base.text_encoders.items()
    }
    return Inversion(trigger=trigger, words=words)


def load_back(file: ExportedFile, fresh: BaseModel, trigger: str) -> Callable[[str], str]:
    """Load an exported word into a fresh base by diffusers' own loader; how captions are then written for it.

    The caption is what a pipeline makes of a prompt: with each vector of the word as a token of its own.
    """
    pipeline = fresh.pipeline()
    state = load_file(file.path)
    token = token_for(trigger, next(iter(fresh.tokenizers.values())))
    for name, encoder in fresh.text_encoders.items():
        (own,) = state.values() if len(state) == 1 else (state[key_of(name, len(state))],)
        pipeline.load_textual_inversion({token: own}, text_encoder=encoder, tokenizer=fresh.tokenizers[name])
        # The larger embedding is a new one, which diffusers leaves to be trained.
        encoder.requires_grad_(False)

    def say(caption: str) -> str:
        named = re.sub(_as_a_word(trigger), lambda _: token, caption, flags=re.IGNORECASE)
        prompt: str = pipeline.maybe_convert_prompt(named, pipeline.tokenizer)
        return prompt

    return say


def token_for(trigger: str, tokenizer: Any) -> str:
    """What the word is called in diffusers: the trigger in lower case, since a word of several vectors is not found
    otherwise; in `<>` where the tokenizer has a token of that name, which `load_textual_inversion` refuses to replace.
    """
    word = trigger.lower()
    return f"<{word}>" if word in tokenizer.get_vocab() else word


def file_name(trigger: str) -> str:
    """The word as a file's name: letters, digits, spaces, `_`, `.` and `-`; the rest is left out."""
    return re.sub(r"[^\w .-]", "", trigger).strip(" .") or "word"


def key_of(encoder: str, encoders: int) -> str:
    """What A1111 and ComfyUI call the vectors of a text encoder.

    Source: kohya-ss/sd-scripts, `train_textual_inversion.py` and `sdxl_train_textual_inversion.py`.
    """
    return {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[encoder] if encoders > 1 else "emb_params"


def _teach(encoder: Any, tokenizer: Any, method: Method, trigger: str) -> Word:
    text_model = clip_text_model(encoder)
    known: nn.Embedding = text_model.embeddings.token_embedding
    vectors_ND = known.weight.detach()[_initial_tokens(tokenizer, method, trigger)]
    if not method.initial_word and len(vectors_ND) > method.vectors:
        vectors_ND = vectors_ND.mean(dim=0, keepdim=True)
    # Fewer than there are to be: again from the first.
    vectors_ND = vectors_ND[[row % len(vectors_ND) for row in range(method.vectors)]]
    plain = tokenizer.backend_tokenizer.normalizer
    reads_word = _add_tokens(tokenizer, trigger, method.vectors)
    embedding = ExtendedEmbedding(known, vectors_ND, tokenizer.convert_tokens_to_ids(_token(0)))
    text_model.embeddings.token_embedding = embedding.to(known.weight.device)
    return Word(encoder=encoder, tokenizer=tokenizer, embedding=embedding, reads_word=reads_word, reads_plain=plain)


def _initial_tokens(tokenizer: Any, method: Method, trigger: str) -> list[int]:
    initial = method.initial_word.strip()
    ids: list[int] = tokenizer(initial or trigger, add_special_tokens=False).input_ids
    if initial and len(ids) > method.vectors:
        parts = [tokenizer.decode([token]).strip() for token in ids]
        raise BadSpecError(
            f"method.initial_word {initial!r} is {len(ids)} tokens to this base ({', '.join(parts)}), and the new word "
            f"has {method.vectors}.",
            f"Set method.vectors to {len(ids)}, or take a word of {method.vectors}.",
        )
    return ids


def _add_tokens(tokenizer: Any, trigger: str, count: int) -> Any:
    """Let the tokenizer say `count` new tokens where it reads `trigger`; the normalizer that makes it do so.

    The word is replaced before text is cut into tokens, so that a word that the base knows can be taught anew, and
    words that only begin like it stay what they are.
    """
    backend = tokenizer.backend_tokenizer
    word = backend.normalizer.normalize_str(trigger) if backend.normalizer is not None else trigger
    tokens = [_token(number) for number in range(count)]
    replace = normalizers.Replace(Regex(_as_a_word(word)), f" {' '.join(tokens)} ")
    reads_word = normalizers.Sequence([part for part in (backend.normalizer, replace) if part is not None])
    backend.normalizer = reads_word
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in tokens])
    return reads_word


def _token(number: int) -> str:
    """The name of a new token within the trainer, of characters that no text has (Unicode's private use area)."""
    return f"\ue0d0{chr(0xE100 + number)}"


def _as_a_word(trigger: str) -> str:
    """A pattern, for Python's and for the tokenizers' regular expressions."""
    return rf"(?<!\w){re.escape(trigger)}(?!\w)"
