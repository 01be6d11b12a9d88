"""Textual inversion: trains the embeddings of a new trigger word; the model itself does not change.

The tokenizers replace the trigger word by new tokens, whose vectors are trained. `base_only` tokenizes the word as the
base does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, normalizers
from torch import Tensor, nn

from trainer.errors import BadSpecError, CheckpointError
from trainer.models.families.clip import clip_text_model
from trainer.models.families.model import Family, LoadedBase
from trainer.models.methods.checkpoint_file import as_metadata
from trainer.models.methods.readers import readers_of
from trainer.models.methods.trained import ExportedFile, Weights, epoch_file
from trainer.protocol.events import ExportFormat
from trainer.protocol.settings import Method, MethodKind
from trainer.trigger import trigger_pattern

#: The file that `pipeline.load_textual_inversion` looks for in a folder.
DIFFUSERS_FILE = "learned_embeds.safetensors"
#: Name of the tensor in a checkpoint.
_VECTORS = "vectors"


class ExtendedEmbedding(nn.Module):
    """A token embedding with additional tokens, from id `first` on; the others stay frozen."""

    def __init__(self, known: nn.Embedding, vectors_ND: Tensor, first: int) -> None:
        super().__init__()
        self.known = known
        self.word = nn.Embedding(vectors_ND.shape[0], vectors_ND.shape[1], _weight=vectors_ND.clone())
        self.first = first

    @property
    def weight(self) -> Tensor:
        """The base's table, for callers in transformers."""
        return self.known.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        known_BTD: Tensor = self.known(ids_BT.clamp(max=self.known.num_embeddings - 1))
        word_BTD = self.word((ids_BT - self.first).clamp(min=0)).to(known_BTD.dtype)
        return torch.where((ids_BT >= self.first)[..., None], word_BTD, known_BTD)


@dataclass(frozen=True, kw_only=True)
class Word:
    """The trigger word in one text encoder."""

    encoder: nn.Module
    tokenizer: Any
    embedding: ExtendedEmbedding
    #: The tokenizer's normalizer with the new tokens, and the base's.
    word_normalizer: Any
    base_normalizer: Any

    @property
    def vectors(self) -> nn.Parameter:
        """One row per token of the word, [N, D]."""
        return self.embedding.word.get_parameter("weight")


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """A `Trained`: the embeddings of one trigger word in all text encoders."""

    family: Family
    trigger: str
    #: By the name of the text encoder.
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
        """Restore what `state` returned.

        Raises:
            CheckpointError: the vectors do not fit this job.
        """
        advice = "Start the job from the beginning."
        if weights.keys() != self.words.keys():
            raise CheckpointError("The checkpoint has no embeddings for the text encoders of this base.", advice)
        for name, word in self.words.items():
            vectors_ND = weights[name].get(_VECTORS)
            if vectors_ND is None or vectors_ND.shape != word.vectors.shape:
                raise CheckpointError(f"The vectors of {name} do not fit this job.", advice)
            word.vectors.copy_(vectors_ND)

    def weights_from(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Take the vectors of a word's file: `emb_params`, `clip_l` and `clip_g`, or diffusers' file with its token.

        Raises:
            CheckpointError: it has vectors for other text encoders.
        """
        keys = {name: key_of(name, len(self.words)) for name in self.words}
        if len(self.words) == 1 and len(tensors) == 1:
            keys = dict.fromkeys(self.words, next(iter(tensors)))
        if not set(keys.values()) <= tensors.keys():
            raise CheckpointError(
                "The file to start from has no vectors for the text encoders of this base.",
                "Choose the base that the word was trained on.",
            )
        return {
            name: {_VECTORS: tensors[key].float().reshape(-1, tensors[key].shape[-1])} for name, key in keys.items()
        }

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Tokenize the trigger word as the base does, for a while: an honest baseline."""
        with ExitStack() as stack:
            for word in self.words.values():
                word.tokenizer.backend_tokenizer.normalizer = word.base_normalizer
                stack.callback(setattr, word.tokenizer.backend_tokenizer, "normalizer", word.word_normalizer)
            yield

    def detach(self) -> None:
        """Take the word out of the text encoders again."""
        for word in self.words.values():
            clip_text_model(word.encoder).embeddings.token_embedding = word.embedding.known
            word.tokenizer.backend_tokenizer.normalizer = word.base_normalizer

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write a file named after the trigger word for A1111 and ComfyUI, which take the word from the file's name.

        With a single text encoder, also `learned_embeds.safetensors`, which has the token in it for diffusers.
        For SDXL, load `clip_l` and `clip_g` of the first file, each with its text encoder.
        """
        files = [self._write(folder / f"{file_name(self.trigger)}.safetensors", metadata)]
        if len(self.words) == 1:
            (word,) = self.words.values()
            tensors = {self._token: word.vectors.detach().cpu().contiguous()}
            save_file(tensors, folder / DIFFUSERS_FILE, {"format": "pt"})
            files.append(self._exported(ExportFormat.DIFFUSERS, folder / DIFFUSERS_FILE))
        return files

    def export_epoch(self, folder: Path, name: str, epoch: int, metadata: Mapping[str, Any]) -> ExportedFile:
        """Write the word of an epoch: in A1111 and ComfyUI it is `momo-000012`."""
        return self._write(folder / epoch_file(file_name(self.trigger), epoch), metadata)

    @property
    def _token(self) -> str:
        return token_for(self.trigger, next(iter(self.words.values())).tokenizer)

    def _write(self, path: Path, metadata: Mapping[str, Any]) -> ExportedFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = {key_of(name, len(self.words)): word.vectors.detach() for name, word in self.words.items()}
        header = {"format": "pt", **as_metadata(metadata)}
        save_file({key: rows_ND.cpu().contiguous() for key, rows_ND in vectors.items()}, path, header)
        return self._exported(ExportFormat.EMBEDDING, path)

    def _exported(self, file_format: ExportFormat, path: Path) -> ExportedFile:
        readers = readers_of(file_format, MethodKind.TEXTUAL_INVERSION, self.family)
        return ExportedFile(
            format=file_format, path=path, readers=readers, modules=tuple(self.words), token=self._token
        )


def attach_inversion(base: LoadedBase, method: Method, trigger: str) -> Inversion:
    """Add the trigger word to every text encoder of `base`, replacing how it is tokenized today.

    Its vectors start as those of `method.initial_word`, or else as the current embedding of `trigger`.

    Raises:
        BadSpecError: the family has no textual inversion, there is no trigger, or `initial_word` has more tokens than
            the new word.
    """
    if base.family is Family.SD3:
        raise BadSpecError(
            "textual_inversion is for Stable Diffusion 1, 2 and XL: no program loads embeddings for 3.",
            "Set method.kind to lora.",
        )
    trigger = trigger.strip()
    if not trigger:
        raise BadSpecError("textual_inversion needs a trigger word.", "Set training.trigger.")
    words = {
        name: _add_word(encoder, base.tokenizers[name], method, trigger) for name, encoder in base.text_encoders.items()
    }
    return Inversion(family=base.family, trigger=trigger, words=words)


def load_back(file: ExportedFile, fresh: LoadedBase, trigger: str) -> Callable[[str], str]:
    """Load an exported embedding into a fresh base by diffusers' loader; returns how to rewrite captions for it.

    As a pipeline does with prompts, the trigger word becomes one token per vector.
    """
    pipeline = fresh.pipeline()
    state = load_file(file.path)
    token = token_for(trigger, next(iter(fresh.tokenizers.values())))
    for name, encoder in fresh.text_encoders.items():
        (own,) = state.values() if len(state) == 1 else (state[key_of(name, len(state))],)
        pipeline.load_textual_inversion({token: own}, text_encoder=encoder, tokenizer=fresh.tokenizers[name])
        # diffusers replaces the embedding table by a larger, trainable one.
        encoder.requires_grad_(False)

    def rewrite(caption: str) -> str:
        named = regex.sub(trigger_pattern(trigger), lambda _: token, caption, flags=regex.IGNORECASE)
        prompt: str = pipeline.maybe_convert_prompt(named, pipeline.tokenizer)
        return prompt

    return rewrite


def probe_caption(captions: Sequence[str], trigger: str) -> str:
    """Return a caption for comparing an exported word with the trained one: with the word, and never within others.

    diffusers also replaces its token within words (`hap` in `shapes`); there the two readings differ on purpose. The
    trigger alone if there is no such caption.
    """
    word = regex.compile(trigger_pattern(trigger), flags=regex.IGNORECASE)
    usable = (each for each in captions if 0 < len(word.findall(each)) == each.lower().count(trigger.lower()))
    return next(usable, trigger)


def token_for(trigger: str, tokenizer: Any) -> str:
    """The word's token in diffusers: lower case, which words of several vectors require; in `<>` if the tokenizer
    already has such a token, which `load_textual_inversion` refuses to replace.
    """
    word = trigger.lower()
    return f"<{word}>" if word in tokenizer.get_vocab() else word


def file_name(trigger: str) -> str:
    """The trigger word as a file name: letters, digits, spaces, `_`, `.` and `-`; the rest is dropped."""
    return re.sub(r"[^\w .-]", "", trigger).strip(" .") or "word"


def key_of(encoder: str, encoders: int) -> str:
    """Name of a text encoder's vectors in A1111 and ComfyUI.

    Source: kohya-ss/sd-scripts, `train_textual_inversion.py` and `sdxl_train_textual_inversion.py`.
    """
    return {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[encoder] if encoders > 1 else "emb_params"


def _add_word(encoder: Any, tokenizer: Any, method: Method, trigger: str) -> Word:
    text_model = clip_text_model(encoder)
    known: nn.Embedding = text_model.embeddings.token_embedding
    vectors_ND = known.weight.detach()[_initial_tokens(tokenizer, method, trigger)].float()
    if not method.initial_word and len(vectors_ND) > method.vectors:
        vectors_ND = vectors_ND.mean(dim=0, keepdim=True)
    # Repeat them if there are fewer than the word has vectors.
    vectors_ND = vectors_ND[[row % len(vectors_ND) for row in range(method.vectors)]]
    base_normalizer = tokenizer.backend_tokenizer.normalizer
    word_normalizer = _add_tokens(tokenizer, trigger, method.vectors)
    embedding = ExtendedEmbedding(known, vectors_ND, tokenizer.convert_tokens_to_ids(_token(0)))
    text_model.embeddings.token_embedding = embedding.to(known.weight.device)
    return Word(
        encoder=encoder,
        tokenizer=tokenizer,
        embedding=embedding,
        word_normalizer=word_normalizer,
        base_normalizer=base_normalizer,
    )


def _initial_tokens(tokenizer: Any, method: Method, trigger: str) -> list[int]:
    initial = method.initial_word.strip()
    ids: list[int] = tokenizer(initial or trigger, add_special_tokens=False).input_ids
    if initial and len(ids) > method.vectors:
        parts = [tokenizer.decode([token]).strip() for token in ids]
        raise BadSpecError(
            f"method.initial_word {initial!r} has {len(ids)} tokens in this base ({', '.join(parts)}), but the new "
            f"word has {method.vectors}.",
            f"Set method.vectors to {len(ids)}, or choose a word of at most {method.vectors}.",
        )
    return ids


def _add_tokens(tokenizer: Any, trigger: str, count: int) -> Any:
    """Make the tokenizer read `trigger` as `count` new tokens; returns the normalizer that does it.

    The word is replaced before tokenization. So a word that the base knows can be retrained, and longer words that
    begin with it are unaffected.
    """
    backend = tokenizer.backend_tokenizer
    word = backend.normalizer.normalize_str(trigger) if backend.normalizer is not None else trigger
    tokens = [_token(number) for number in range(count)]
    replace = normalizers.Replace(Regex(trigger_pattern(word)), f" {' '.join(tokens)} ")
    normalizer = normalizers.Sequence([part for part in (backend.normalizer, replace) if part is not None])
    backend.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in tokens])
    return normalizer


def _token(number: int) -> str:
    """Internal name of a new token, from Unicode's private use area, so that no text contains it."""
    return f"\ue0d0{chr(0xE100 + number)}"
