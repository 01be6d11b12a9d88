"""Textual inversion: only the new word is trained, and the exported files have the same effect in diffusers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.models.random_adapters import Load
from trainer.errors import BadSpecError, CheckpointError
from trainer.models.base import LoadedBase, load_base
from trainer.models.methods.inversion import (
    Inversion,
    attach_inversion,
    file_name,
    load_back,
    probe_caption,
    token_for,
)
from trainer.protocol.settings import Base, Method, MethodKind

CAPTIONS = ["momo on a yellow background", "a big Momo, and a momoland", "a red star"]


def _method(**settings: Any) -> Method:
    return Method(kind=MethodKind.TEXTUAL_INVERSION, **settings)


@pytest.fixture
def base(load: Load) -> LoadedBase:
    return load("sd1")


def _trained(base: LoadedBase, vectors: int = 3, trigger: str = "momo") -> Inversion:
    """Attach a word with random vectors, far from those of all known tokens."""
    word = attach_inversion(base, _method(vectors=vectors), trigger)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in word.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return word


@torch.no_grad()
def _encode(base: LoadedBase, captions: list[str] = CAPTIONS) -> Tensor:
    return base.encode_text(captions)["caption_BTD"]


def test_an_untrained_word_equals_the_initial_word(base: LoadedBase) -> None:
    star, momo = _encode(base, ["a red star", "a red momo"])

    attach_inversion(base, _method(initial_word="star"), "momo")

    assert torch.equal(_encode(base, ["a red momo"])[0], star)
    assert not torch.equal(star, momo)


def test_the_default_initial_vectors_are_the_tokens_of_the_trigger(base: LoadedBase) -> None:
    before = _encode(base)
    pieces = base.tokenizers["text_encoder"]("momo", add_special_tokens=False).input_ids

    attach_inversion(base, _method(vectors=len(pieces)), "momo")

    assert len(pieces) == 3
    assert torch.equal(_encode(base), before)


def test_training_changes_only_captions_with_the_trigger_as_a_whole_word(base: LoadedBase) -> None:
    before = _encode(base, ["a momoland", "a red star", "momo", "Momo's star"])

    _trained(base)
    after = _encode(base, ["a momoland", "a red star", "momo", "Momo's star"])

    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == [False, False, True, True]


def test_a_word_with_several_vectors_is_tokenized_as_several_tokens(base: LoadedBase) -> None:
    tokenizer = base.tokenizers["text_encoder"]
    known = len(tokenizer)

    attach_inversion(base, _method(vectors=3), "momo")

    ids = tokenizer("a momo on it", add_special_tokens=False).input_ids
    assert ids[1:4] == [known, known + 1, known + 2]
    assert max(ids[0], *ids[4:]) < known


def test_only_the_word_receives_gradients(base: LoadedBase) -> None:
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


def test_running_the_base_alone_restores_the_original_tokens(base: LoadedBase) -> None:
    before = _encode(base)
    word = _trained(base)
    trained = _encode(base)

    with suppress(RuntimeError), word.base_only():
        assert torch.equal(_encode(base), before)
        raise RuntimeError("stop")

    assert torch.equal(_encode(base), trained)
    assert not torch.equal(trained, before)


def test_a_checkpoint_restores_the_word_exactly(load: Load) -> None:
    first = load("sd1")
    word = _trained(first)
    state = word.state()
    for _, parameter in word.named_parameters():
        parameter.data.add_(1)
    second = load("sd1")
    attach_inversion(second, _method(vectors=3), "momo").load(state)
    word.load(state)

    assert torch.equal(_encode(first), _encode(second))


@pytest.mark.parametrize(
    "weights", [{}, {"text_encoder": {"vectors": torch.zeros(2, 32)}}, {"text_encoder": {"other": torch.zeros(3, 32)}}]
)
def test_a_checkpoint_of_another_job_is_refused(base: LoadedBase, weights: dict[str, dict[str, Tensor]]) -> None:
    word = attach_inversion(base, _method(vectors=3), "momo")

    with pytest.raises(CheckpointError, match=r"no embeddings|do not fit"):
        word.load(weights)


@pytest.mark.parametrize("vectors", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("trigger", ["momo", "star", "<momo>", "Blue Momo"])
def test_both_files_have_the_same_effect_when_diffusers_loads_them(
    base: LoadedBase, load: Load, tmp_path: Path, trigger: str, vectors: int
) -> None:
    word = _trained(base, vectors, trigger)
    captions = [f"a {trigger} on it", f"{trigger}, and a {trigger.lower()}, and a moon"]
    trained = _encode(base, captions)

    files = word.export(tmp_path, "job", {"ss_steps": 7})

    assert [file.path.name for file in files] == [f"{trigger.strip('<>')}.safetensors", "learned_embeds.safetensors"]
    for file in files:
        fresh = load("sd1")
        to_prompt = load_back(file, fresh, trigger)
        assert torch.allclose(_encode(fresh, [to_prompt(caption) for caption in captions]), trained, atol=1e-5)


def test_the_files_have_the_keys_that_other_programs_read(base: LoadedBase, tmp_path: Path) -> None:
    word = _trained(base)
    for_webui, for_diffusers = word.export(tmp_path, "job", {"ss_steps": 7, "modelspec.title": "momo"})

    (vectors,) = (parameter for _, parameter in word.named_parameters())
    assert torch.equal(load_file(for_webui.path)["emb_params"], vectors)
    assert torch.equal(load_file(for_diffusers.path)["momo"], vectors)
    with safe_open(for_webui.path, "pt") as file:
        assert file.metadata() == {"format": "pt", "ss_steps": "7", "modelspec.title": "momo"}


@pytest.mark.parametrize(
    ("captions", "probe"),
    [
        (["a pile of shapes", "hap, shapes", "", "a red Hap"], "a red Hap"),
        (["a pile of shapes", "shapes"], "hap"),
        ([], "hap"),
    ],
)
def test_an_export_is_compared_where_diffusers_reads_the_word_as_the_training_did(
    base: LoadedBase, load: Load, tmp_path: Path, captions: list[str], probe: str
) -> None:
    """A caption such as "shapes", in which diffusers finds "hap" and we do not, is no reason to refuse a file."""
    word = _trained(base, 2, "hap")
    file, *_ = word.export(tmp_path, "job", {})
    fresh = load("sd1")
    to_prompt = load_back(file, fresh, "hap")

    assert probe_caption(captions, "hap") == probe
    assert torch.allclose(_encode(fresh, [to_prompt(probe)]), _encode(base, [probe]), atol=1e-5)
    within = "a pile of shapes"
    assert not torch.allclose(_encode(fresh, [to_prompt(within)]), _encode(base, [within]), atol=0.1)


def test_a_word_that_diffusers_would_not_replace_gets_angle_brackets(base: LoadedBase) -> None:
    tokenizer = base.tokenizers["text_encoder"]

    assert token_for("star</w>", tokenizer) == "<star</w>>"
    assert token_for("momo", tokenizer) == "momo"


def test_an_initial_word_with_more_tokens_than_vectors_is_refused(random_base: Path) -> None:
    # No copy: a copied tokenizer shows the ends of words as they are stored.
    base = load_base(Base(source=str(random_base)))
    with pytest.raises(BadSpecError, match=r"'red star' has 2 tokens in this base \(red, star\)") as refusal:
        attach_inversion(base, _method(initial_word="red star"), "momo")

    assert "method.vectors to 2" in refusal.value.hint


def test_an_empty_trigger_is_refused(base: LoadedBase) -> None:
    with pytest.raises(BadSpecError, match="needs a trigger word"):
        attach_inversion(base, _method(), "  ")


@pytest.mark.parametrize(("trigger", "name"), [("<cat-toy>", "cat-toy"), ("../x", "x"), ("a/b", "ab"), ("??", "word")])
def test_the_file_name_of_a_word_is_safe(trigger: str, name: str) -> None:
    assert file_name(trigger) == name


@pytest.mark.parametrize("vectors", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sdxl_trains_both_encoders_and_exports_one_file(load: Load, tmp_path: Path, vectors: int) -> None:
    base = load("sdxl")
    word = _trained(base, vectors)
    captions = ["a momo on it", "momo, and a moon"]
    with torch.no_grad():
        trained = base.encode_text(captions)

    (file,) = word.export(tmp_path, "job", {})

    state = load_file(file.path)
    assert set(word.modules) == {"text_encoder", "text_encoder_2"}
    assert {name: tensor.shape[0] for name, tensor in state.items()} == {"clip_l": vectors, "clip_g": vectors}
    fresh = load("sdxl")
    to_prompt = load_back(file, fresh, "momo")
    with torch.no_grad():
        loaded = fresh.encode_text([to_prompt(caption) for caption in captions])
    assert all(torch.allclose(loaded[name], tensor, atol=1e-5) for name, tensor in trained.items())


def test_a_family_without_textual_inversion_is_refused(load: Load) -> None:
    base = load("sd3")

    with pytest.raises(BadSpecError, match="1, 2 and XL"):
        attach_inversion(base, _method(), "momo")
