"""Tags are shuffled, sentences are not, and what must stay in front does."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.captions.tag_order import shuffled, tags_of

_TAGS = "sks, 1girl, long_hair, smile, outdoors, tree"


def test_tags_come_in_another_order_with_the_first_ones_kept() -> None:
    orders = {shuffled(_TAGS, 2, Random(seed)) for seed in range(20)}

    assert len(orders) > 10
    assert all(order.startswith("sks, 1girl, ") for order in orders)
    assert all(sorted(order.split(", ")) == sorted(_TAGS.split(", ")) for order in orders)


def test_the_same_seed_gives_the_same_order() -> None:
    assert shuffled(_TAGS, 0, Random(7)) == shuffled(_TAGS, 0, Random(7)) != _TAGS


def test_tags_before_a_separator_stay_in_front_and_after_a_second_one_at_the_end() -> None:
    orders = {shuffled("sks, cat ||| a, b, c, d ||| high quality", 0, Random(seed)) for seed in range(20)}

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
def test_what_is_no_list_of_tags_comes_back_unchanged(caption: str) -> None:
    assert tags_of(caption) == []
    assert shuffled(caption, 0, Random(1)) == caption


@given(st.lists(st.text("abc_ ", min_size=1, max_size=8), max_size=8), st.integers(0, 9), st.integers())
def test_no_tag_is_lost_or_made(tags: list[str], keep: int, seed: int) -> None:
    caption = ",".join(tags)

    order = [tag.strip() for tag in shuffled(caption, keep, Random(seed)).split(",") if tag.strip()]

    there = [tag.strip() for tag in tags if tag.strip()]
    assert sorted(order) == sorted(there)
    assert order[:keep] == there[:keep]
