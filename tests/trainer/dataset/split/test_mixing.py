"""Several datasets in one job: each image is seen as often as requested, and no measured image trains."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from tests.golden import check_golden
from tests.trainer.dataset.image_files import noise
from tests.trainer.dataset.prepared_folders import Drawn, drawn, write_dataset
from trainer.dataset.split.mixing import (
    MixSource,
    Mixture,
    Portion,
    Repeats,
    epoch_exposure,
    exposure_sentence,
    exposure_table,
    overlap_sentence,
    plan_repeats,
    read_mixture,
    with_source,
)
from trainer.errors import DatasetError
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import Split
from trainer.protocol.settings import MixRole
from trainer.protocol.spec import make_spec
from trainer.protocol.text import speaking

TRAIN, VALIDATION, TEST = Split.TRAIN, Split.VALIDATION, Split.TEST
MAIN = [*(drawn(seed) for seed in range(1, 5)), drawn(8, VALIDATION), drawn(9, TEST)]


def mixture_of(
    tmp_path: Path, main: list[Drawn], *others: tuple[list[Drawn], dict[str, object]], **training: object
) -> Mixture:
    parts = [
        {"dataset": str(write_dataset(tmp_path / f"other-{number}", images)), **part}
        for number, (images, part) in enumerate(others)
    ]
    dataset = str(write_dataset(tmp_path / "main", main))
    return read_mixture(make_spec({"dataset": dataset, "mix": parts, "training": training}))


def numbers(mixture: Mixture, split: Split) -> list[str]:
    return [f"{member.source}:{member.image.source.rpartition('/')[2]}" for member in mixture.of(split)]


def test_one_dataset_is_used_as_its_report_says(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, MAIN, repeats=3)

    assert numbers(mixture, TRAIN) == ["0:1.png", "0:2.png", "0:3.png", "0:4.png"]
    assert numbers(mixture, VALIDATION) == ["0:5.png"]
    assert plan_repeats(mixture, 0).of_epoch(["square"] * 4, 1) == [3] * 4
    assert overlap_sentence(mixture) is None
    (main,) = epoch_exposure(mixture, plan_repeats(mixture, 0))
    assert (main.images, main.views, main.per_image) == (4, 12, 3.0)


def test_repeats_are_chosen_so_that_an_epoch_is_long_enough(tmp_path: Path) -> None:
    main = [drawn(1, repeats=2), *MAIN[1:]]
    mixture = mixture_of(tmp_path, main, ([drawn(11), drawn(12)], {"repeats": 3}), repeats=0)

    # 2 + 1 + 1 + 1 and twice 3 are 11 images, of which 32 rounds are 352.
    assert plan_repeats(mixture, 0).fixed == (64, 32, 32, 32, 96, 96)
    with_weight = mixture_of(tmp_path / "weight", MAIN, ([drawn(11)], {"weight": 0.5}), repeats=0)
    assert plan_repeats(with_weight, 0).views == 352


def test_repeats_of_a_part_of_the_job_and_of_kohya_folders_multiply(tmp_path: Path) -> None:
    main = [drawn(1, repeats=2), *MAIN[1:]]
    mixture = mixture_of(tmp_path, main, ([drawn(11), drawn(12, repeats=4)], {"repeats": 3}), repeats=5)

    assert plan_repeats(mixture, 0).fixed == (10, 5, 5, 5, 3, 12)


def test_a_weight_is_the_share_of_each_epoch(tmp_path: Path) -> None:
    others = [drawn(seed) for seed in range(11, 18)]
    mixture = mixture_of(tmp_path, MAIN, (others, {"weight": 0.6}), repeats=10)
    repeats = plan_repeats(mixture, 0)

    (main, other) = epoch_exposure(mixture, repeats)
    assert (main.views, other.views) == (40, 60)
    assert other.share == 0.6
    for epoch in range(1, 20):
        assert sum(repeats.of_epoch([0] * 11, epoch)[4:]) == 60


def test_a_stage_can_have_other_shares_and_leave_a_dataset_out(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, MAIN, ([drawn(seed) for seed in range(11, 18)], {"repeats": 8}), repeats=11)

    def views(shares: tuple[float, ...]) -> list[int]:
        repeats = plan_repeats(mixture, 0, shares)
        assert sum(repeats.of_epoch([0] * 11, 3)) == 100, "an epoch has the same length"
        return [row.views for row in epoch_exposure(mixture, repeats)]

    assert views(()) == [44, 56]
    assert views((0.25, 0.75)) == [25, 75]
    assert views((1.0, 0.0)) == [100, 0]
    assert views((0.0, 1.0)) == [0, 100]


WITH_CLASS_IMAGES = [*MAIN, *(drawn(seed, is_regularization=True, caption="cat", repeats=seed) for seed in (31, 32))]


def test_the_regularization_images_of_a_dataset_are_a_source_of_their_own(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, WITH_CLASS_IMAGES, repeats=10, trigger="zkz")
    repeats = plan_repeats(mixture, 0)

    assert numbers(mixture, TRAIN) == ["0:1.png", "0:2.png", "0:3.png", "0:4.png", "1:7.png", "1:8.png"]
    assert [source.role for source in mixture.sources] == [MixRole.TRAIN, MixRole.REGULARIZATION]
    assert mixture.names == ("main", "main/reg")
    assert [mixture.captions_of(member) for member in mixture.of(TRAIN)][-2:] == [("cat",), ("cat",)]
    # As often as the others, all together, and among themselves by their repeats.
    assert [(row.images, row.views) for row in epoch_exposure(mixture, repeats)] == [(4, 40), (2, 40)]
    assert all(sum(repeats.of_epoch([0] * 6, epoch)[4:]) == 40 for epoch in range(1, 9))


def test_shares_of_a_stage_keep_the_balance_with_regularization_images(tmp_path: Path) -> None:
    other = [drawn(seed) for seed in range(11, 18)]
    mixture = mixture_of(tmp_path, WITH_CLASS_IMAGES, (other, {"repeats": 8}), repeats=11)

    for shares, expected in (((), [44, 56, 44]), ((0.25, 0.75), [25, 75, 25]), ((0.0, 1.0), [0, 100, 0])):
        assert [row.views for row in epoch_exposure(mixture, plan_repeats(mixture, 0, shares))] == expected


def test_a_regularization_image_that_shows_a_measured_one_is_left_out(tmp_path: Path) -> None:
    main = [*MAIN, drawn(8, is_regularization=True), drawn(33, is_regularization=True, group=6)]
    mixture = mixture_of(tmp_path, main)

    assert "1:7.png" not in numbers(mixture, TRAIN), "it is the validation image itself"
    assert "1:8.png" not in numbers(mixture, TRAIN), "it is in the group of the test image"
    assert len(mixture.left_out) == 2


@pytest.mark.parametrize("split", [{"kind": "all"}, {"kind": "fold", "folds": 2, "fold": 1}])
def test_regularization_images_are_in_no_fold(tmp_path: Path, split: dict[str, object]) -> None:
    dataset = str(write_dataset(tmp_path / "main", WITH_CLASS_IMAGES))
    mixture = read_mixture(make_spec({"dataset": dataset, "split": split}))

    assert {member.split for member in mixture.members if member.image.is_regularization} == {TRAIN}


def test_a_whole_regularization_dataset_may_hold_a_kohya_project(tmp_path: Path) -> None:
    others = [drawn(seed, is_regularization=seed == 11) for seed in (11, 12)]
    mixture = mixture_of(tmp_path, MAIN, (others, {"role": "regularization"}))

    assert numbers(mixture, TRAIN)[-2:] == ["1:1.png", "1:2.png"]


def test_class_images_drawn_by_the_base_keep_their_share_in_every_stage(tmp_path: Path) -> None:
    named = mixture_of(tmp_path, MAIN, ([drawn(seed) for seed in range(11, 18)], {"repeats": 8}), repeats=11)
    class_images = read_report(write_dataset(tmp_path / "class", [drawn(21), drawn(22)]))
    source = MixSource(folder=tmp_path / "class", report=class_images, role=MixRole.REGULARIZATION, weight=0.5)
    mixture = with_source(named, source)

    for shares, expected in (((), [44, 56, 100]), ((0.25, 0.75), [25, 75, 100]), ((1.0, 0.0), [100, 0, 100])):
        rows = epoch_exposure(mixture, plan_repeats(mixture, 0, shares))
        assert [row.views for row in rows] == expected
    assert numbers(mixture, VALIDATION) == numbers(named, VALIDATION)


@given(
    repeats=st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), min_size=1, max_size=30),
    views=st.integers(1, 100),
    epoch=st.integers(1, 99),
)
def test_a_fractional_share_is_rounded_up_or_down_and_adds_up(
    repeats: list[tuple[int, str]], views: int, epoch: int
) -> None:
    portion = Portion(source=1, views=views, repeats={index: count for index, (count, _) in enumerate(repeats)})
    sizes = [size for _, size in repeats]
    units = sum(count for count, _ in repeats)

    seen = portion.of_epoch(sizes, seed=0, epoch=epoch)

    assert sum(seen.values()) == views
    assert all(abs(seen[index] - views * count / units) < 1 for index, (count, _) in enumerate(repeats))


def test_over_many_epochs_each_image_gets_its_share() -> None:
    portion = Portion(source=1, views=5, repeats=dict.fromkeys(range(13), 1))
    seen: Counter[int] = Counter()
    for epoch in range(2600):
        seen.update(portion.of_epoch(["wide"] * 3 + ["square"] * 10, seed=0, epoch=epoch))

    # 1,000 each, with a standard deviation of about 25.
    assert all(900 < seen[index] < 1100 for index in range(13))


def test_an_epoch_depends_only_on_seed_and_number() -> None:
    portion = Portion(source=1, views=5, repeats=dict.fromkeys(range(20), 1))

    def epochs(seed: int) -> list[list[int]]:
        repeats = Repeats(fixed=(0,) * 20, portions=(portion,), seed=seed)
        return [repeats.of_epoch([0] * 20, epoch) for epoch in range(1, 4)]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert len({tuple(views) for views in epochs(1)}) == 3


def test_parts_have_their_own_validation_and_test_images_and_triggers(tmp_path: Path) -> None:
    others = [drawn(11), drawn(12, VALIDATION, caption="zork again"), drawn(13, TEST)]
    mixture = mixture_of(tmp_path, MAIN, (others, {"trigger": "zork"}), trigger="momo")

    assert numbers(mixture, VALIDATION) == ["0:5.png", "1:2.png"]
    assert numbers(mixture, TEST) == ["0:6.png", "1:3.png"]
    assert [mixture.captions_of(member) for member in mixture.members] == [
        *[("momo, a cat",)] * 6,
        *[("zork, a cat",), ("zork again",), ("zork, a cat",)],
    ]


def test_a_trigger_within_a_word_does_not_count_and_each_caption_gets_it(tmp_path: Path) -> None:
    captions = ["a woman eating a banana", "ana的照片", "ANA_(series), 1girl", ""]
    others = [drawn(11 + n, caption=caption) for n, caption in enumerate(captions)]
    mixture = mixture_of(tmp_path, MAIN, (others, {"trigger": "ana"}))

    assert [mixture.captions_of(member) for member in mixture.members[-4:]] == [
        *[("ana, a woman eating a banana",), ("ana, ana的照片",), ("ANA_(series), 1girl",), ("ana",)]
    ]


@pytest.mark.parametrize(
    ("caption", "is_taught"), [("zork, a cat", True), ("a cat", True), ("cat " * 230 + "zork", False)]
)
def test_a_new_word_that_no_caption_teaches_is_refused_before_anything_is_loaded(
    tmp_path: Path, caption: str, is_taught: bool
) -> None:
    splits = (TRAIN, TRAIN, VALIDATION, TEST)
    dataset = write_dataset(tmp_path / "main", [drawn(n, split, caption=caption) for n, split in enumerate(splits)])
    method = {"kind": "textual_inversion"}
    spec = make_spec({"dataset": str(dataset), "method": method, "training": {"trigger": "zork"}})

    if is_taught:
        assert len(read_mixture(spec).members) == 4
    else:
        with pytest.raises(DatasetError, match="zork"):
            read_mixture(spec)


def test_each_of_several_captions_gets_the_trigger(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, MAIN, trigger="momo")
    member = mixture.members[0]
    image = replace(member.image, other_captions=("momo asleep", "an animal", "a cat"))

    assert mixture.captions_of(replace(member, image=image)) == ("momo, a cat", "momo asleep", "momo, an animal")


def test_class_images_all_train_and_are_never_measured(tmp_path: Path) -> None:
    others = [drawn(11), drawn(12, VALIDATION), drawn(13, TEST)]
    mixture = mixture_of(tmp_path, MAIN, (others, {"role": "regularization"}), trigger="momo")

    assert numbers(mixture, TRAIN)[-3:] == ["1:1.png", "1:2.png", "1:3.png"]
    assert numbers(mixture, VALIDATION) == ["0:5.png"]
    assert numbers(mixture, TEST) == ["0:6.png"]
    assert mixture.captions_of(mixture.members[-1]) == ("a cat",)


def test_an_image_that_another_dataset_measures_with_does_not_train(tmp_path: Path) -> None:
    others = [drawn(8), drawn(9, VALIDATION), drawn(11), drawn(2, VALIDATION)]
    mixture = mixture_of(tmp_path, MAIN, (others, {}))

    assert numbers(mixture, TRAIN) == ["0:1.png", "0:3.png", "0:4.png", "1:3.png"]
    # The second of the other's also tests in the main one: it may not choose the best epoch.
    assert numbers(mixture, VALIDATION) == ["0:5.png", "1:4.png"]
    assert Counter(member.split for member in mixture.left_out) == {TRAIN: 2, VALIDATION: 1}


def test_class_images_are_kept_apart_from_what_is_measured_too(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, MAIN, ([drawn(8), drawn(9, TEST), drawn(11)], {"role": "regularization"}))

    assert numbers(mixture, TRAIN)[4:] == ["1:3.png"]


def test_equal_blank_images_are_found_without_hashes(tmp_path: Path) -> None:
    blank = PILImage.new("RGB", (96, 96), "white")
    main = [*MAIN, Drawn(image=blank, split=VALIDATION)]

    mixture = mixture_of(tmp_path, main, ([Drawn(image=blank), drawn(11)], {}))

    assert numbers(mixture, TRAIN)[4:] == ["1:2.png"]


@pytest.mark.parametrize("has_thumbnail", [True, False])
@pytest.mark.parametrize("is_mirrored", [True, False])
def test_a_near_duplicate_is_found_across_datasets(tmp_path: Path, has_thumbnail: bool, is_mirrored: bool) -> None:
    """Smaller, brighter, perhaps mirrored; from a report with thumbnails or an old one without."""
    near = noise(8, 96, 96).resize((80, 80), PILImage.Resampling.BICUBIC).point(lambda value: min(255, value + 6))
    if is_mirrored:
        near = near.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    others = [Drawn(image=near, has_thumbnail=has_thumbnail), drawn(11, has_thumbnail=has_thumbnail)]

    mixture = mixture_of(tmp_path, MAIN, (others, {}))

    assert numbers(mixture, TRAIN)[4:] == ["1:2.png"]


def test_the_whole_group_of_an_overlapping_image_is_left_out(tmp_path: Path) -> None:
    """Only one of the two images of the group looks like a validation image of the main dataset."""
    others = [drawn(8, group=1), drawn(11, group=1), drawn(12, group=2)]

    mixture = mixture_of(tmp_path, MAIN, (others, {}))

    assert numbers(mixture, TRAIN)[4:] == ["1:3.png"]


def test_an_image_that_both_datasets_train_on_is_not_left_out(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, MAIN, ([drawn(1), drawn(11)], {}))

    assert not mixture.left_out
    assert len(mixture.of(TRAIN)) == 6


def test_a_main_dataset_without_remaining_training_images_is_an_error(tmp_path: Path) -> None:
    others = [drawn(seed, VALIDATION) for seed in range(1, 5)]

    with pytest.raises(DatasetError, match="none for the train split"):
        mixture_of(tmp_path, MAIN, (others, {}))


def test_a_part_that_is_not_a_dataset_is_an_error(tmp_path: Path) -> None:
    dataset = str(write_dataset(tmp_path / "main", MAIN))

    with pytest.raises(DatasetError, match="/nowhere"):
        read_mixture(make_spec({"dataset": dataset, "mix": [{"dataset": "/nowhere"}]}))


def test_datasets_with_the_same_name_are_numbered(tmp_path: Path) -> None:
    main = write_dataset(tmp_path / "one" / "cats", MAIN)
    other = write_dataset(tmp_path / "two" / "cats" / "prepared", [drawn(11)])

    mixture = read_mixture(make_spec({"dataset": str(main), "mix": [{"dataset": str(other)}]}))

    assert mixture.names == ("cats (1)", "cats (2)")


def test_a_dataset_in_a_folder_named_by_its_content_is_called_after_its_archive(tmp_path: Path) -> None:
    """The bot keeps datasets so; people never see such a folder."""
    folder = write_dataset(tmp_path / ("0123456789abcdef" * 4) / "prepared-0123456789ab", MAIN)
    report = read_report(folder)
    named = [replace(image, source=f"cats.zip!{image.source}") for image in report.images]
    (folder / "report.json").write_text(report.model_copy(update={"images": tuple(named)}).model_dump_json())

    assert read_mixture(make_spec({"dataset": str(folder)})).names == ("cats.zip",)


def test_the_sentences_about_exposure_and_overlap(tmp_path: Path) -> None:
    others = [drawn(8), drawn(9, VALIDATION), drawn(11), drawn(2, VALIDATION)]
    classes = [drawn(seed) for seed in range(21, 24)]
    alone = mixture_of(tmp_path / "alone", MAIN, repeats=3)
    mixed = mixture_of(tmp_path / "mixed", MAIN, (others, {"weight": 0.6}), (classes, {"role": "regularization"}))
    rows = [epoch_exposure(mixture, plan_repeats(mixture, 0)) for mixture in (alone, mixed)]
    texts = [*map(exposure_sentence, rows), exposure_table(rows[1]), overlap_sentence(mixed) or ""]
    check_golden(Path(__file__).parent / "golden" / "mixing.txt", "\n".join(texts))
    with speaking("zh_CN"):
        assert re.findall("[A-Za-z]+", overlap_sentence(mixed) or "?") == []
