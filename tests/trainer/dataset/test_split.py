"""Groups are never torn apart, the shares are met as nearly as groups allow, and growth moves next to nothing."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.dataset.split.group_split import Member, Shares, split
from trainer.protocol.report import Split

#: Sizes and class of each group.
GROUPS = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["cats", "dogs", "birds"])), max_size=60)


def members(groups: list[tuple[int, str]]) -> list[Member]:
    return [
        Member(content=hashlib.sha256(f"{group}-{index}".encode()).hexdigest(), group=group, class_name=class_name)
        for group, (size, class_name) in enumerate(groups)
        for index in range(size)
    ]


def singles(count: int) -> list[Member]:
    return members([(1, "")] * count)


@given(GROUPS, st.integers(0, 5))
def test_no_group_straddles_and_every_picture_has_a_split(groups: list[tuple[int, str]], seed: int) -> None:
    pictures = members(groups)
    chosen = split(pictures, Shares(seed=seed))
    assert len(chosen) == len(pictures)
    sides: dict[object, set[Split]] = {}
    for picture, side in zip(pictures, chosen, strict=True):
        sides.setdefault(picture.group, set()).add(side)
    assert all(len(held) == 1 for held in sides.values())


@given(GROUPS)
@example([(1, "cats"), (6, "cats"), (6, "cats")])
def test_sizes_are_as_near_to_the_shares_as_groups_allow(groups: list[tuple[int, str]]) -> None:
    counts = Counter(split(members(groups), Shares()))
    total, largest = sum(size for size, _ in groups), max((size for size, _ in groups), default=0)
    if len(groups) < 3:
        assert counts[Split.TRAIN] == total
        return
    # Each side has a group of its own, however large the smallest ones are: 1, 6 and 6 leave 6 for one of them.
    unavoidable = sorted(size for size, _ in groups)[1] - 0.15 * total
    for side in (Split.VALIDATION, Split.TEST):
        assert counts[side] >= 1
        assert abs(counts[side] - 0.15 * total) <= max(largest / 2 + 1, unavoidable)
    assert counts[Split.TRAIN] >= 1


@pytest.mark.parametrize(
    ("pictures", "sizes"),
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (7, (5, 1, 1)),
        (10, (7, 2, 1)),
        (20, (14, 3, 3)),
        (60, (42, 9, 9)),
        (100, (70, 15, 15)),
    ],
)
def test_plain_datasets_get_the_sizes_that_one_expects(pictures: int, sizes: tuple[int, int, int]) -> None:
    counts = Counter(split(singles(pictures), Shares()))
    assert (counts[Split.TRAIN], counts[Split.VALIDATION], counts[Split.TEST]) == sizes


@given(GROUPS, st.randoms(use_true_random=False))
def test_the_order_of_the_pictures_does_not_matter(groups: list[tuple[int, str]], random: object) -> None:
    pictures = members(groups)
    shuffled = list(pictures)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    once = {p.content: side for p, side in zip(pictures, split(pictures, Shares()), strict=True)}
    again = {p.content: side for p, side in zip(shuffled, split(shuffled, Shares()), strict=True)}
    assert once == again


@given(st.integers(10, 80))
def test_one_more_picture_moves_at_most_one_over_each_border(count: int) -> None:
    before = split(singles(count), Shares())
    after = split(singles(count + 1), Shares())
    moved = [(old, new) for old, new in zip(before, after[:count], strict=True) if old != new]
    assert len(moved) <= 2
    assert all(Split.TRAIN in pair for pair in moved)


@given(GROUPS, st.integers(0, 30))
def test_known_pictures_stay_on_their_side_when_the_dataset_grows(groups: list[tuple[int, str]], more: int) -> None:
    old = members(groups)
    if len(groups) < 3:
        return
    before = split(old, Shares())
    known = {picture.content: side for picture, side in zip(old, before, strict=True)}
    grown = members(groups + [(1, "cats")] * more)
    after = split(grown, Shares(), known)
    assert after[: len(before)] == before


def test_another_seed_splits_otherwise() -> None:
    assert split(singles(50), Shares(seed=0)) != split(singles(50), Shares(seed=1))


def test_classes_that_are_large_enough_are_in_every_split() -> None:
    pictures = members([(1, "cats")] * 60 + [(1, "dogs")] * 8)
    chosen = split(pictures, Shares())
    dogs = Counter(side for picture, side in zip(pictures, chosen, strict=True) if picture.class_name == "dogs")
    assert dogs[Split.VALIDATION] >= 1
    assert dogs[Split.TEST] >= 1


def test_a_share_of_nothing_is_nothing() -> None:
    assert set(split(singles(20), Shares(test=0))) == {Split.TRAIN, Split.VALIDATION}
    with pytest.raises(ValueError, match="leave something to train on"):
        Shares(validation=0.5, test=0.5)
