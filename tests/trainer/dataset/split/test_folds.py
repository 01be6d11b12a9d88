"""Each image validates in one fold and trains in all others, with its duplicates; test images stay apart."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import sklearn.model_selection  # noqa: F401 - the first import takes a second, more than an example may take
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.trainer.dataset.prepared_folders import drawn, write_dataset
from tests.trainer.report.sample_reports import report_image
from trainer.dataset.split.group_split import apply_split, assign_folds, content_key
from trainer.dataset.split.mixing import read_mixture
from trainer.errors import DatasetError
from trainer.protocol.report import Image, Split
from trainer.protocol.settings import MixRole, SplitChoice, SplitKind
from trainer.protocol.spec import make_spec

TRAIN, VALIDATION, TEST = Split.TRAIN, Split.VALIDATION, Split.TEST

#: Sizes and class of each group.
GROUPS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["cats", "dogs", "birds"])), min_size=2, max_size=40)


def images_of(groups: list[tuple[int, str]]) -> list[Image]:
    return [
        report_image(
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
def test_groups_stay_together_and_folds_differ_by_the_largest_group_at_most(
    groups: list[tuple[int, str]], folds: int, seed: int
) -> None:
    assume(len(groups) >= folds)
    images = images_of(groups)
    chosen = assign_folds(images, folds, seed)
    assert chosen.keys() == {content_key(image) for image in images}
    held: dict[int | None, set[int]] = {}
    for image in images:
        held.setdefault(image.group, set()).add(chosen[content_key(image)])
    assert all(len(folds_of_group) == 1 for folds_of_group in held.values())
    sizes = Counter(chosen.values())
    assert sizes.keys() == set(range(1, folds + 1))
    # By one group, and another one since classes are balanced too.
    assert max(sizes.values()) - min(sizes.values()) <= 2 * max(size for size, _ in groups)


@given(GROUPS, st.randoms())
def test_folds_do_not_depend_on_the_order_of_the_images(groups: list[tuple[int, str]], random: object) -> None:
    images = images_of(groups)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_folds(images, 2, 0) == assign_folds(shuffled, 2, 0)


def test_another_seed_makes_other_folds() -> None:
    images = images_of([(1, "")] * 30)
    assert assign_folds(images, 5, 0) != assign_folds(images, 5, 1)


def test_each_fold_has_its_share_of_each_class_and_rare_classes_are_spread() -> None:
    images = images_of([(1, "cats")] * 20 + [(1, "dogs")] * 10 + [(1, "newt"), (1, "crow"), (1, "hare")])
    chosen = assign_folds(images, 5, 0)
    for fold in range(1, 6):
        classes = Counter(image.class_name for image in images if chosen[content_key(image)] == fold)
        assert classes["cats"] == 4
        assert classes["dogs"] == 2
        assert sum(classes.values()) in {6, 7}
    assert len({chosen[content_key(image)] for image in images[-3:]}) == 3


def test_too_few_different_images_are_an_error_with_the_largest_number_of_folds() -> None:
    with pytest.raises(DatasetError, match=r"3 different images .* Use 3 folds at most"):
        assign_folds(images_of([(4, ""), (1, ""), (1, "")]), 5, 0)
    with pytest.raises(DatasetError, match=r"1 image .* needs at least 2"):
        assign_folds(images_of([(4, "")]), 2, 0)


def test_test_and_dropped_images_keep_their_split() -> None:
    apart = [
        report_image(900, TEST, group=90, pixels_sha256="test"),
        report_image(901, None, pixels_sha256="dropped"),
    ]
    images = [*images_of([(1, "")] * 8), *apart]
    assert apply_split(images, SplitChoice(), 0) == tuple(images)
    for choice in (SplitChoice(kind=SplitKind.FOLD, fold=2, folds=4), SplitChoice(kind=SplitKind.ALL)):
        changed = apply_split(images, choice, 0)
        assert changed[-2:] == tuple(apart)
        assert [image.source for image in changed] == [image.source for image in images]
    assert {image.split for image in apply_split(images, SplitChoice(kind=SplitKind.ALL), 0)[:8]} == {TRAIN}


def test_over_all_folds_each_image_of_a_job_validates_once(tmp_path: Path) -> None:
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


def test_all_trains_without_validation_images_and_keeps_test_images_apart(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "main", [drawn(1), drawn(2), drawn(3, VALIDATION), drawn(4, TEST)])
    mixture = read_mixture(make_spec({"dataset": str(dataset), "split": {"kind": "all"}}))
    assert [len(mixture.of(split)) for split in (TRAIN, VALIDATION, TEST)] == [3, 0, 1]


def test_class_images_of_a_mix_need_no_folds(tmp_path: Path) -> None:
    main = write_dataset(tmp_path / "main", [drawn(seed) for seed in range(1, 7)])
    classes = write_dataset(tmp_path / "classes", [drawn(20)])
    part = {"dataset": str(classes), "role": MixRole.REGULARIZATION.value}
    split = {"kind": "fold", "fold": 1, "folds": 3}
    mixture = read_mixture(make_spec({"dataset": str(main), "mix": [part], "split": split}))
    assert [member.source for member in mixture.of(TRAIN)].count(1) == 1
