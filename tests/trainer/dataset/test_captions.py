"""Captions are read whatever program wrote them, and nothing invisible gets through."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions.caption_sources import CaptionError, clean, read_caption


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
def test_captions_are_read_in_every_encoding(text: str, encoding: str) -> None:
    assert read_caption(text.encode(encoding)) == text


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfeabc", bytes(range(128, 160)) * 3])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(CaptionError):
        read_caption(data)


def test_invisible_characters_are_stripped_and_white_space_is_folded() -> None:
    text = "\x1b[31mred\x1b[0m \u202ecat\u202c\u200b \ufeff\x07 on\r\n\ta  mat\u00a0\x00"
    assert clean(text) == "red cat on a mat"


@given(st.text())
def test_a_clean_caption_is_one_visible_line_and_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert once.isprintable()
    assert once == once.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(CaptionError):
        assert read_caption(data).isprintable()
