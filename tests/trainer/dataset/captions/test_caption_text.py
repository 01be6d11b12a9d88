"""Captions are decoded from any encoding, and invisible characters are removed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions.caption_text import clean_text
from trainer.dataset.text_encoding import EncodingError, decode_legacy, decode_unicode, unknown_encoding

#: Within emoji and words of some scripts.
JOINERS = "\u200c\u200d"
#: A black flag and a code in characters that are invisible elsewhere.
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"


def decode_text(data: bytes) -> str:
    """Decode one text by itself, as a sidecar that is the only one."""
    text = decode_unicode(data)
    if text is None:
        (text,) = decode_legacy([data])
    if text is None:
        raise unknown_encoding()
    return text


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


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfeabc", bytes(range(128, 256)) * 3])
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_text(data)


#: Short and long captions by encoding; each is read right alone, or left unread.
CAPTIONS_BY_ENCODING = {
    "cp1251": ["рыжая кошка", "кот", "девушка в красном платье на фоне моря", "zkz кот"],
    "koi8-r": ["рыжая кошка", "кот", "женщина читает книгу в парке"],
    "cp866": ["рыжая кошка", "маленькая собака бежит по траве"],
    "cp949": ["빨간 드레스를 입은 소녀", "고양이", "zkz, 웃는 얼굴"],
    "cp1250": ["dziewczyna w żółtej sukience", "žlutý kůň skáče přes potok", "żółw", "egy lány piros ruhában"],
    "iso-8859-2": ["dziewczyna w żółtej sukience", "žlutý kůň skáče přes potok"],
    "cp1252": ["un café noir", "crème brûlée", "Müller’s Straße “gut”", "a cat’s paw", "5° tilt", "naïve"],
    "latin-1": ["niña con vestido rojo", "ein schöner großer Bär", "garçon"],
    "cp1253": ["μια κοπέλα με κόκκινο φόρεμα", "γάτα", "zkz, πορτρέτο"],
    "cp1254": ["kırmızı elbiseli kız", "ağaç", "güneşli bir gün, ağaç", "yağmurlu sokak"],
    "cp1255": ["ילדה בשמלה אדומה", "חתול", "כלב רץ על הדשא"],
    "cp1256": ["فتاة ترتدي فستانا أحمر", "قطة", "كلب يجري على العشب"],
    "cp1257": ["mergaitė raudona suknele", "kaķis sēž uz galda", "žiema"],
    "cp874": ["ผู้หญิงใส่ชุดสีแดง", "แมว", "สุนัขวิ่งบนสนามหญ้า"],
    "gb18030": ["穿红色连衣裙的女孩", "红裙", "夜晚的城市"],
    "big5": ["穿紅色連衣裙的女孩", "貓", "藍天白雲", "夜晚的城市"],
    "cp932": ["赤いドレスの少女", "猫", "山", "男", "夜の街"],
    "euc-jp": ["赤いドレスの少女", "ネコ", "制服、教室", "夜の街"],
    "utf-16-le": ["рыжая кошка", "빨간 드레스", "a red cat"],
    "utf-16-be": ["рыжая кошка", "빨간 드레스", "a red cat"],
    "iso2022_jp": ["女の子", "赤いドレスの少女"],
    "mac-roman": ["une fille à la plage", "Mädchen", "señorita", "été"],
    "cp437": ["déjà vu", "été", "über den Wolken"],
}


@pytest.mark.parametrize("encoding", CAPTIONS_BY_ENCODING)
def test_a_caption_is_read_right_or_not_at_all(encoding: str) -> None:
    captions = CAPTIONS_BY_ENCODING[encoding]
    for caption in captions:
        with suppress(EncodingError):
            assert decode_text(caption.encode(encoding)) == caption


@pytest.mark.parametrize("encoding", [e for e in CAPTIONS_BY_ENCODING if e[:3] not in ("utf", "iso", "mac", "cp4")])
def test_captions_of_one_encoding_are_read_together(encoding: str) -> None:
    captions = CAPTIONS_BY_ENCODING[encoding]
    read = decode_legacy([caption.encode(encoding) for caption in captions])
    assert all(each in (caption, None) for each, caption in zip(read, captions, strict=True))
    assert sum(each is not None for each in read) >= len(captions) - 1


@pytest.mark.parametrize(
    "text",
    ["👩‍💻 at work", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👩🏽‍🚀", "❤️‍🔥", "می‌خواهم", "ශ්‍රී", "☀️", "🫨", SCOTLAND],
)
def test_joined_characters_stay_whole(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\u200dcat", "acat"),
        ("👩\u200d cat", "👩 cat"),
        ("\u200d💻", "💻"),
        ("👩\u200b\u200d💻", "👩\u200d💻"),
        ("a\x07b\x9fc", "abc"),
    ],
)
def test_stray_joiners_and_control_characters_are_removed(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_invisible_characters_are_removed_and_white_space_is_folded() -> None:
    text = "\x1b[31mred\x1b[0m \u202ecat\u202c\u200b \ufeff\x07 on\r\n\ta  mat\u00a0\x00"
    assert clean_text(text) == "red cat on a mat"


@given(st.text())
def test_a_cleaned_caption_is_one_visible_line_and_stays_unchanged(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert all(char.isprintable() or char in JOINERS or char >= "\U0001f000" for char in once)
    assert once == once.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_and_cleaned_or_refused(data: bytes) -> None:
    with suppress(EncodingError):
        assert clean_text(clean_text(decode_text(data))) == clean_text(decode_text(data))
