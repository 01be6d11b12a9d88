"""A new word is learnt, nothing else is, and the files say the same in diffusers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.random_base import make_random_sd3, make_random_sdxl
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import BaseModel, load_base
from trainer.models.methods.inversion import Inversion, attach_inversion, file_name, load_back, token_for
from trainer.protocol.settings import Base, Method, MethodKind

CAPTIONS = ["momo on a yellow background", "a big Momo, and a momoland", "a red star"]


def _method(**settings: Any) -> Method:
    return Method(kind=MethodKind.TEXTUAL_INVERSION, **settings)


@pytest.fixture
def base(random_base: Path) -> BaseModel:
    return load_base(Base(source=str(random_base)))


def _taught(base: BaseModel, vectors: int = 3, trigger: str = "momo") -> Inversion:
    """A word whose vectors are far from anything known."""
    word = attach_inversion(base, _method(vectors=vectors), trigger)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in word.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return word


@torch.no_grad()
def _read(base: BaseModel, captions: list[str] = CAPTIONS) -> Tensor:
    return base.encode_text(captions)["caption_BTD"]


def test_a_word_that_is_not_trained_yet_starts_from_the_initial_word(base: BaseModel) -> None:
    star, momo = _read(base, ["a red star", "a red momo"])

    attach_inversion(base, _method(initial_word="star"), "momo")

    assert torch.equal(_read(base, ["a red momo"])[0], star)
    assert not torch.equal(star, momo)


def test_without_an_initial_word_it_starts_from_what_the_trigger_is_read_as(base: BaseModel) -> None:
    before = _read(base)
    pieces = base.tokenizers["text_encoder"]("momo", add_special_tokens=False).input_ids

    attach_inversion(base, _method(vectors=len(pieces)), "momo")

    assert len(pieces) == 3
    assert torch.equal(_read(base), before)


def test_only_the_word_changes_what_captions_mean_and_only_as_a_whole_word(base: BaseModel) -> None:
    before = _read(base, ["a momoland", "a red star", "momo", "Momo's star"])

    _taught(base)
    after = _read(base, ["a momoland", "a red star", "momo", "Momo's star"])

    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == [False, False, True, True]


def test_a_word_of_several_vectors_is_several_tokens(base: BaseModel) -> None:
    tokenizer = base.tokenizers["text_encoder"]
    known = len(tokenizer)

    attach_inversion(base, _method(vectors=3), "momo")

    ids = tokenizer("a momo on it", add_special_tokens=False).input_ids
    assert ids[1:4] == [known, known + 1, known + 2]
    assert max(ids[0], *ids[4:]) < known


def test_gradients_reach_the_word_and_nothing_else(base: BaseModel) -> None:
    encoder = base.text_encoders["text_encoder"]
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    word = attach_inversion(base, _method(vectors=2), "momo")
    (name, vectors), *others = word.named_parameters()
    optimizer = torch.optim.AdamW([vectors], lr=0.1, weight_decay=0)

    torch.autograd.backward(base.encode_text(CAPTIONS)["caption_BTD"].square().sum())
    optimizer.step()

    assert (name, others) == ("text_encoder.embeddings.token_embedding.word.weight", [])
    assert word.blocks == ["text_encoder.embeddings.token_embedding.word"]
    assert [p for p in (*encoder.parameters(), *base.denoiser.parameters()) if p.requires_grad] == [vectors]
    after = {name.replace("known.", ""): tensor for name, tensor in encoder.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_without_the_training_the_word_means_what_it_meant(base: BaseModel) -> None:
    before = _read(base)
    word = _taught(base)
    taught = _read(base)

    with suppress(RuntimeError), word.base_only():
        assert torch.equal(_read(base), before)
        raise RuntimeError("stop")

    assert torch.equal(_read(base), taught)
    assert not torch.equal(taught, before)


def test_a_checkpoint_brings_the_word_back_to_the_bit(random_base: Path) -> None:
    first = load_base(Base(source=str(random_base)))
    word = _taught(first)
    state = word.state()
    for _, parameter in word.named_parameters():
        parameter.data.add_(1)
    second = load_base(Base(source=str(random_base)))
    attach_inversion(second, _method(vectors=3), "momo").load(state)
    word.load(state)

    assert torch.equal(_read(first), _read(second))


@pytest.mark.parametrize(
    "weights", [{}, {"text_encoder": {"vectors": torch.zeros(2, 32)}}, {"text_encoder": {"other": torch.zeros(3, 32)}}]
)
def test_a_checkpoint_of_another_job_is_refused(base: BaseModel, weights: dict[str, dict[str, Tensor]]) -> None:
    word = attach_inversion(base, _method(vectors=3), "momo")

    with pytest.raises(CheckpointError, match=r"another|no word|do not fit"):
        word.load(weights)


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("trigger", ["momo", "star", "<momo>", "Blue Momo"])
def test_both_files_load_back_in_diffusers_and_say_the_same(
    base: BaseModel, random_base: Path, tmp_path: Path, trigger: str, vectors: int
) -> None:
    word = _taught(base, vectors, trigger)
    captions = [f"a {trigger} on it", f"{trigger}, and a {trigger.lower()}, and a moon"]
    taught = _read(base, captions)

    files = word.export(tmp_path, "job", {"ss_steps": 7})

    assert [file.path.name for file in files] == [f"{trigger.strip('<>')}.safetensors", "learned_embeds.safetensors"]
    for file in files:
        fresh = load_base(Base(source=str(random_base)))
        say = load_back(file, fresh, trigger)
        assert torch.allclose(_read(fresh, [say(caption) for caption in captions]), taught, atol=1e-5)


def test_the_files_hold_what_other_programs_look_for(base: BaseModel, tmp_path: Path) -> None:
    word = _taught(base)
    for_others, for_diffusers = word.export(tmp_path, "job", {"ss_steps": 7, "modelspec.title": "momo"})

    (vectors,) = (parameter for _, parameter in word.named_parameters())
    assert torch.equal(load_file(for_others.path)["emb_params"], vectors)
    assert torch.equal(load_file(for_diffusers.path)["momo"], vectors)
    with safe_open(for_others.path, "pt") as file:
        assert file.metadata() == {"format": "pt", "ss_steps": "7", "modelspec.title": "momo"}


def test_a_word_that_diffusers_would_not_replace_gets_brackets(base: BaseModel) -> None:
    tokenizer = base.tokenizers["text_encoder"]

    assert token_for("star</w>", tokenizer) == "<star</w>>"
    assert token_for("momo", tokenizer) == "momo"


def test_an_initial_word_that_is_too_long_is_refused_with_what_it_is_read_as(base: BaseModel) -> None:
    with pytest.raises(BadSpecError, match=r"'red star' is 2 tokens to this base \(red, star\)") as refusal:
        attach_inversion(base, _method(initial_word="red star"), "momo")

    assert "method.vectors to 2" in refusal.value.hint


def test_no_word_is_refused(base: BaseModel) -> None:
    with pytest.raises(BadSpecError, match="there is none"):
        attach_inversion(base, _method(), "  ")


@pytest.mark.parametrize(("trigger", "name"), [("<cat-toy>", "cat-toy"), ("../x", "x"), ("a/b", "ab"), ("??", "word")])
def test_a_word_is_a_safe_file_name(trigger: str, name: str) -> None:
    assert file_name(trigger) == name


@pytest.mark.parametrize("vectors", [1, 2])
def test_sdxl_learns_the_word_in_both_encoders_and_writes_one_file(tmp_path: Path, vectors: int) -> None:
    folder = make_random_sdxl(tmp_path / "sdxl")
    base = load_base(Base(source=str(folder)))
    word = _taught(base, vectors)
    captions = ["a momo on it", "momo, and a moon"]
    with torch.no_grad():
        taught = base.encode_text(captions)

    (file,) = word.export(tmp_path, "job", {})

    state = load_file(file.path)
    assert set(word.modules) == {"text_encoder", "text_encoder_2"}
    assert {name: tensor.shape[0] for name, tensor in state.items()} == {"clip_l": vectors, "clip_g": vectors}
    fresh = load_base(Base(source=str(folder)))
    say = load_back(file, fresh, "momo")
    with torch.no_grad():
        loaded = fresh.encode_text([say(caption) for caption in captions])
    assert all(torch.allclose(loaded[name], tensor, atol=1e-5) for name, tensor in taught.items())


def test_a_family_without_textual_inversion_is_refused(tmp_path: Path) -> None:
    base = load_base(Base(source=str(make_random_sd3(tmp_path / "sd3"))))

    with pytest.raises(BadSpecError, match="1, 2 and XL"):
        attach_inversion(base, _method(), "momo")
