"""Each picture validates in one fold and trains in all others, with its duplicates; the test pictures in none."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import sklearn.model_selection  # noqa: F401 - what loads in a second would fail the deadline of the first example
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.trainer.dataset.drawn import drawn, write_dataset
from tests.trainer.report.making import picture
from trainer.dataset.split.folds import apply_split, assign_folds, content_of
from trainer.dataset.split.mixing import read_mixture
from trainer.errors import DatasetError
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import SplitChoice, SplitKind
from trainer.protocol.spec import make_spec

TRAIN, VALIDATION, TEST = Split.TRAIN, Split.VALIDATION, Split.TEST

#: Sizes and class of each group.
GROUPS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["cats", "dogs", "birds"])), min_size=2, max_size=40)


def pictures(groups: list[tuple[int, str]]) -> list[Image]:
    return [
        picture(
            100 * group + index,
            VALIDATION if group % 4 == 0 else TRAIN,
            group=group,
            class_name=class_name,
            pixels_sha256=hashlib.sha256(f"{group}-{index}".encode()).hexdigest(),
        )
        for group, (size, class_name) in enumerate(groups)
        for index in range(size)
    ]


@given(GROUPS, st.integers(2, 6), st.integers(0, 5))
def test_no_group_straddles_and_folds_differ_by_no_more_than_the_largest_group(
    groups: list[tuple[int, str]], folds: int, seed: int
) -> None:
    assume(len(groups) >= folds)
    images = pictures(groups)
    chosen = assign_folds(images, folds, seed)
    assert chosen.keys() == {content_of(image) for image in images}
    held: dict[int | None, set[int]] = {}
    for image in images:
        held.setdefault(image.group, set()).add(chosen[content_of(image)])
    assert all(len(folds_of_group) == 1 for folds_of_group in held.values())
    sizes = Counter(chosen.values())
    assert sizes.keys() == set(range(1, folds + 1))
    # One group more or less, and one more where classes are evened out too.
    assert max(sizes.values()) - min(sizes.values()) <= 2 * max(size for size, _ in groups)


@given(GROUPS, st.randoms())
def test_folds_hang_on_the_pictures_and_not_on_their_order(groups: list[tuple[int, str]], random: object) -> None:
    images = pictures(groups)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_folds(images, 2, 0) == assign_folds(shuffled, 2, 0)


def test_another_seed_deals_other_folds() -> None:
    images = pictures([(1, "")] * 30)
    assert assign_folds(images, 5, 0) != assign_folds(images, 5, 1)


def test_each_fold_has_its_share_of_each_class_and_rare_classes_are_spread() -> None:
    images = pictures([(1, "cats")] * 20 + [(1, "dogs")] * 10 + [(1, "newt"), (1, "crow"), (1, "hare")])
    chosen = assign_folds(images, 5, 0)
    for fold in range(1, 6):
        classes = Counter(image.class_name for image in images if chosen[content_of(image)] == fold)
        assert classes["cats"] == 4
        assert classes["dogs"] == 2
        assert sum(classes.values()) in {6, 7}
    assert len({chosen[content_of(image)] for image in images[-3:]}) == 3


def test_too_few_different_pictures_name_the_largest_number_of_folds() -> None:
    with pytest.raises(DatasetError, match=r"has 3 different pictures .* too few for 5 folds\. Take 3 folds at most"):
        assign_folds(pictures([(4, ""), (1, ""), (1, "")]), 5, 0)
    with pytest.raises(DatasetError, match=r"has 1 picture .* needs at least 2"):
        assign_folds(pictures([(4, "")]), 2, 0)


def test_test_and_dropped_pictures_stay_where_they_are() -> None:
    apart = [
        picture(900, TEST, group=90, pixels_sha256="test"),
        picture(901, None, pixels_sha256="dropped"),
    ]
    images = [*pictures([(1, "")] * 8), *apart]
    assert apply_split(images, SplitChoice(), 0) == tuple(images)
    for choice in (SplitChoice(kind=SplitKind.FOLD, fold=2, folds=4), SplitChoice(kind=SplitKind.ALL)):
        changed = apply_split(images, choice, 0)
        assert changed[-2:] == tuple(apart)
        assert [image.source for image in changed] == [image.source for image in images]
    assert {image.split for image in apply_split(images, SplitChoice(kind=SplitKind.ALL), 0)[:8]} == {TRAIN}


def test_over_all_folds_each_picture_of_a_job_validates_once(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path / "main", [*(drawn(seed) for seed in range(1, 7)), drawn(8, VALIDATION), drawn(9, TEST)]
    )
    seen: Counter[str] = Counter()
    for fold in (1, 2, 3):
        split = {"kind": "fold", "fold": fold, "folds": 3}
        mixture = read_mixture(make_spec({"dataset": str(dataset), "split": split}))
        seen.update(member.image.source for member in mixture.of(VALIDATION))
        assert len(mixture.of(TRAIN)) + len(mixture.of(VALIDATION)) == 7
        assert len(mixture.of(TEST)) == 1
    assert len(seen) == 7
    assert set(seen.values()) == {1}


def test_all_trains_without_a_picture_to_validate_and_still_looks_at_no_test_picture(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "main", [drawn(1), drawn(2), drawn(3, VALIDATION), drawn(4, TEST)])
    mixture = read_mixture(make_spec({"dataset": str(dataset), "split": {"kind": "all"}}))
    assert [len(mixture.of(split)) for split in (TRAIN, VALIDATION, TEST)] == [3, 0, 1]


def test_class_pictures_of_a_mix_need_no_folds(tmp_path: Path) -> None:
    main = write_dataset(tmp_path / "main", [drawn(seed) for seed in range(1, 7)])
    classes = write_dataset(tmp_path / "classes", [drawn(20)])
    part = {"dataset": str(classes), "role": MixRole.REGULARIZATION.value}
    split = {"kind": "fold", "fold": 1, "folds": 3}
    mixture = read_mixture(make_spec({"dataset": str(main), "mix": [part], "split": split}))
    assert [member.source for member in mixture.of(TRAIN)].count(1) == 1
