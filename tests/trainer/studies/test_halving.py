"""The worse half ends early, whatever the order they ran in; never by the first epoch, never to fewer than two."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.studies.halving import rungs, survivors


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=24, unique=True), st.integers(2, 4), st.randoms())
def test_the_best_go_on_in_whatever_order_they_are_given(
    ranks: list[int], keep_one_in: int, shuffler: random.Random
) -> None:
    ratios = {f"c{place}": 0.5 + rank / 1e7 for place, rank in enumerate(ranks)}
    best = sorted(ratios, key=ratios.__getitem__)[: max(2, len(ratios) // keep_one_in)]
    assert list(survivors(ratios, keep_one_in)) == best
    names = list(ratios)
    shuffler.shuffle(names)
    assert list(survivors({name: ratios[name] for name in names}, keep_one_in)) == best


def test_two_go_on_to_the_end_together() -> None:
    assert survivors({"a": 0.7, "b": 0.6, "c": 0.8}, 3) == ("b", "a")
    assert survivors({"a": 0.7, "b": 0.6}, 2) == ("b", "a")
    assert survivors({"a": 0.7}, 2) == ("a",)


def test_those_that_tie_with_the_last_survivor_go_on_too() -> None:
    assert survivors({"a": 0.5, "b": 0.6, "c": 0.6, "d": 0.7}, 2) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("first", "keep_one_in", "epochs", "expected"),
    [
        (2, 2, 20, (2, 4, 8, 16)),
        (3, 3, 20, (3, 9)),
        (1, 2, 5, (2, 4)),
        (0, 2, 2, ()),
        (4, 2, 4, ()),
        (2, 2, 1, ()),
    ],
)
def test_nobody_is_ended_after_the_first_epoch_or_the_last(
    first: int, keep_one_in: int, epochs: int, expected: tuple[int, ...]
) -> None:
    assert rungs(first, keep_one_in, epochs) == expected
