"""Tokens are counted as CLIP makes them, whatever a caption is written in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from trainer.dataset.captions.tokens import LIMIT, count_tokens, unread_part, vocabulary

_CAPTIONS = [
    "",
    "   ",
    "a photo of a cat",
    "A Cat's  photo\n of «Été»  e\u0301t\u0301e",
    "1girl, solo, long_hair, looking at viewer, (masterpiece:1.2)",
    "猫坐在草地上，阳光很好",
    "かわいい猫が座っている",
    "Рыжая кошка 👩‍🚀 12345 don't we'll",
    "<|startoftext|> sneaky <|endoftext|>",
    "Straße İstanbul ﬁne",
]


@pytest.fixture(scope="module")
def reference() -> CLIPTokenizer:
    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges)


def test_the_vocabulary_is_clips() -> None:
    tokens, _ = vocabulary()

    # As in `openai/clip-vit-large-patch14`, whose tokenizer Stable Diffusion 1.x has.
    assert len(tokens) == 49408
    assert (tokens["a</w>"], tokens["photo</w>"], tokens["of</w>"], tokens["cat</w>"]) == (320, 1125, 539, 2368)
    assert (tokens["<|startoftext|>"], tokens["<|endoftext|>"]) == (49406, 49407)


def test_counts_are_those_of_the_tokenizer_that_diffusers_uses(reference: CLIPTokenizer) -> None:
    assert count_tokens(_CAPTIONS) == [len(reference.tokenize(caption)) for caption in _CAPTIONS]
    assert count_tokens(["a photo of a cat"]) == [5]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_counts_agree_for_any_text(reference: CLIPTokenizer, text: str) -> None:
    assert count_tokens([text]) == [len(reference(text, add_special_tokens=False).input_ids)]


def test_what_is_not_read_starts_at_the_word_that_is_cut() -> None:
    words = ["cat"] * (LIMIT - 1)

    assert unread_part(" ".join([*words, "dog"])) == ""
    assert unread_part(" ".join([*words, "dog", "Red", "house"])) == "Red house"
    # Two tokens, of which the first would still be read.
    assert count_tokens(["xylotheque"])[0] > 1
    assert unread_part(" ".join([*words, "xylotheque", "house"])) == "xylotheque house"
