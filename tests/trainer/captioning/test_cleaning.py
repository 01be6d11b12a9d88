"""What a model wrote becomes a caption a person could have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.captioning.cleaning import MAX_CHARACTERS, cleaned


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ("a red cat", "a red cat"),
        ("</s><s>A red cat sitting on a mat.</s><pad><pad>", "A red cat sitting on a mat"),
        ("a cat <loc_12><loc_345> and a dog [SEP]", "a cat and a dog"),
        ("a cat cat cat on a mat", "a cat on a mat"),
        ("a dog and a dog and a dog and a dog", "a dog and a dog"),
        ("red, red, red, blue", "red, blue"),
        ("an arafed cat on a mat", "cat on a mat"),
        ("The image shows a cat on a mat.", "a cat on a mat"),
        ("In this image we can see a cat. There is a mat.", "a cat. There is a mat."),
        ("a cat , on a mat ,", "a cat, on a mat"),
        ("  ", ""),
        ("</s>", ""),
    ],
)
def test_marks_stammer_and_openings_go(written: str, caption: str) -> None:
    assert cleaned(written) == caption


def test_a_long_text_ends_with_a_whole_sentence_or_word() -> None:
    sentences = " ".join(f"Sentence number {index} says it." for index in range(40))
    words = " ".join(f"word{index}" for index in range(200))

    assert len(cleaned(sentences)) <= MAX_CHARACTERS
    assert cleaned(sentences).endswith("says it.")
    assert len(cleaned(words)) <= MAX_CHARACTERS
    assert cleaned(words).rsplit(" ", 1)[1] in words.split()


@given(st.text("ab ,.<>s/", max_size=600))
def test_whatever_is_written_comes_out_short_and_on_one_line(written: str) -> None:
    caption = cleaned(written)

    assert len(caption) <= MAX_CHARACTERS
    assert caption == " ".join(caption.split())
