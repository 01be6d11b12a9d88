"""Tags are shuffled and sentences are not; sides and readable text are recognized in many languages."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions.caption_words import (
    is_orientation_sensitive,
    mentions_side,
    mentions_text,
    parse_tags,
    vary_tags,
)

_TAGS = "sks, 1girl, long_hair, smile, outdoors, tree"


def test_tags_are_shuffled_and_the_first_ones_are_kept() -> None:
    orders = {vary_tags(_TAGS, 2, Random(seed)) for seed in range(20)}

    assert len(orders) > 10
    assert all(order.startswith("sks, 1girl, ") for order in orders)
    assert all(sorted(order.split(", ")) == sorted(_TAGS.split(", ")) for order in orders)


def test_the_same_seed_gives_the_same_order() -> None:
    assert vary_tags(_TAGS, 0, Random(7)) == vary_tags(_TAGS, 0, Random(7)) != _TAGS


def test_tags_before_a_separator_stay_in_front_and_after_a_second_one_at_the_end() -> None:
    orders = {vary_tags("sks, cat ||| a, b, c, d ||| high quality", 0, Random(seed)) for seed in range(20)}

    assert len(orders) > 5
    assert all(order.startswith("sks, cat, ") and order.endswith(", high quality") for order in orders)
    assert all("|" not in order for order in orders)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "sks cat",
        "a cat, a dog",
        "a cat that sits on a mat in the sun, a dog that runs along the beach, and a bird",
        "A man, old, sad.",
        "一只猫，坐在草地上，阳光很好。",
    ],
)
def test_a_caption_that_is_not_a_list_of_tags_is_unchanged(caption: str) -> None:
    assert parse_tags(caption) == []
    assert vary_tags(caption, 0, Random(1)) == caption


@given(st.lists(st.text("abc_ ", min_size=1, max_size=8), max_size=8), st.integers(0, 9), st.integers())
def test_no_tag_is_lost_or_added(tags: list[str], keep: int, seed: int) -> None:
    caption = ",".join(tags)

    order = [tag.strip() for tag in vary_tags(caption, keep, Random(seed)).split(",") if tag.strip()]

    expected = [tag.strip() for tag in tags if tag.strip()]
    assert sorted(order) == sorted(expected)
    assert order[:keep] == expected[:keep]


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
def test_sides_are_recognized_in_many_languages(caption: str) -> None:
    assert mentions_side(caption)
    assert is_orientation_sensitive(caption)


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
def test_readable_text_is_recognized(caption: str) -> None:
    assert mentions_text(caption)
    assert is_orientation_sensitive(caption)


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
def test_other_captions_allow_mirroring(caption: str) -> None:
    assert not is_orientation_sensitive(caption)
