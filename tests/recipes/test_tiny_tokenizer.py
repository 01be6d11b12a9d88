"""The tokenizer of the tiny model: any text can be encoded and decoded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from recipes.tiny.scenes import caption_seed
from recipes.tiny.tokenizer import VOCABULARY, clip_files, train_bpe

SHIPPED = Path(__file__).parents[2] / "trainer" / "models" / "tiny" / "tokenizer"
TOKENIZER = CLIPTokenizer.from_pretrained(SHIPPED)


def _read_back(text: str) -> str:
    return str(TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True))


def _letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(
    "text", ["momo beside a red star", "Grüße aus 東京 🎉", "naïve!! 3 + 4 = 7", "<lora:x:1.0> (masterpiece)"]
)
def test_decoding_restores_any_text_in_lower_case(text: str) -> None:
    assert _letters(_read_back(text)) == _letters(text.lower())


@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=12))
def test_no_text_becomes_an_unknown_token(text: str) -> None:
    tokens = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.eos_token_id not in tokens


def test_captions_have_about_one_token_per_word() -> None:
    captions = [caption_seed(seed) for seed in range(50)]
    tokens = sum(len(TOKENIZER(text, add_special_tokens=False).input_ids) for text in captions)
    assert tokens < 1.25 * sum(len(text.split()) for text in captions)


def test_special_tokens_follow_clip() -> None:
    assert (TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.pad_token) == (
        "<|startoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    )
    assert TOKENIZER.model_max_length == 77
    assert TOKENIZER("a").input_ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER("a").input_ids[-1] == TOKENIZER.eos_token_id == len(TOKENIZER) - 1


def test_the_recipe_makes_a_vocabulary_like_the_shipped_one() -> None:
    vocabulary, merges = clip_files(train_bpe())
    shipped = TOKENIZER.get_vocab()
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= VOCABULARY
    assert merges
    assert len(set(vocabulary) & set(shipped)) > 0.9 * len(shipped)
