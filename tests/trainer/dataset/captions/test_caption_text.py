"""Captions are decoded from any encoding, and invisible characters are removed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions.caption_text import CaptionError, clean_text, decode_text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a red cat", "ascii"),
        ("une fête à la plage", "utf-8"),
        ("a red cat", "utf-8-sig"),
        ("a red cat, 猫", "utf-16"),
        ("a red cat", "utf-16-le"),
        ("a red cat", "utf-16-be"),
        ("a red cat", "utf-32"),
        ("一只可爱的猫坐在草地上", "gb18030"),
        ("小狗。", "gbk"),
        ("一只猫, cat", "gbk"),
        ("一隻可愛的貓坐在草地上", "big5"),
        ("かわいい猫が座っている", "cp932"),
        ("un café noir, naïve résumé", "cp1252"),
        ("Müller’s Straße “gut”", "cp1252"),
        ("Рыжая кошка", "utf-8"),
        ("Ελληνικά και français", "utf-8"),
    ],
)
def test_captions_are_decoded_from_every_encoding(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding)) == text


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfeabc", bytes(range(128, 160)) * 3])
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    with pytest.raises(CaptionError):
        decode_text(data)


def test_invisible_characters_are_removed_and_white_space_is_folded() -> None:
    text = "\x1b[31mred\x1b[0m \u202ecat\u202c\u200b \ufeff\x07 on\r\n\ta  mat\u00a0\x00"
    assert clean_text(text) == "red cat on a mat"


@given(st.text())
def test_a_cleaned_caption_is_one_visible_line_and_stays_unchanged(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert once.isprintable()
    assert once == once.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_and_cleaned_or_refused(data: bytes) -> None:
    with suppress(CaptionError):
        assert clean_text(decode_text(data)).isprintable()
