"""A picture whose caption names a side or something to read is not mirrored."""

from __future__ import annotations

import pytest

from trainer.dataset.captions.orientation import forbids_flip, mentions_side, mentions_text


@pytest.mark.parametrize(
    "caption",
    [
        "a cat on the left of a sofa",
        "Facing RIGHT, smiling",
        "1girl, looking_to_the_left, outdoors",
        "a left-handed guitar",
        "the rightmost chair",
        "an arrow turning counter-clockwise",
        "ein Hund links neben dem Baum",
        "die rechte Hand",
        "un chat à gauche",
        "la main droite",
        "un gato a la izquierda",
        "кошка слева от дома",
        "правый глаз",
        "左边有一只猫",
        "右を向く犬",
        "왼쪽에 있는 고양이",
    ],
)
def test_sides_are_seen_in_many_languages(caption: str) -> None:
    assert mentions_side(caption)
    assert forbids_flip(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a page of text",
        "red letters on a wall",
        "a shop sign saying open",
        'a mug with "best dad" on it',
        "a shirt with the word 'hello'",
        "1girl, english_text, speech_bubble",
        "ein Schriftzug an der Wand",
        "du texte sur une affiche",
        "надпись на стене",
        "墙上写着字",
        "写真に文字がある",
        "招牌「欢迎光临」",
    ],
)
def test_something_to_read_is_seen(caption: str) -> None:
    assert mentions_text(caption)
    assert forbids_flip(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a bright copyright-free texture of cleft stone",
        "an upright piano in a room",
        "sks cat, whiskers, context, wordless",
        "a cat's paw and the dogs' bowls",
        "a drawing, no text, without watermark",
        "une photo d'un chien",
        "eine Katze auf dem Sofa",
        "красивый левкой у дома, правда",
        "一只可爱的猫坐在草地上",
        "かわいい猫が座っている",
    ],
)
def test_all_else_may_be_mirrored(caption: str) -> None:
    assert not forbids_flip(caption)
