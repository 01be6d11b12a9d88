"""The paragraph says what was measured, in few plain words, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.report.making import bucket, count, found, picture, statistics
from trainer.dataset.preparing.summary import nothing_to_train_on, summarize
from trainer.protocol.report import FindingKind, Image, RefusalKind, Refused, Split


def say(images: Sequence[Image], refused: Sequence[Refused] = (), **given: Any) -> str:
    buckets = given.pop("buckets", ())
    return summarize(images, refused, count(images, len(refused)), buckets, 512, **given)


def pictures(number: int, start: int = 1, **given: Any) -> list[Image]:
    return [picture(each, **given) for each in range(start, start + number)]


def test_an_ordinary_set_needs_two_sentences() -> None:
    images = [*pictures(8), *pictures(2, 9, side=Split.VALIDATION), picture(11, Split.TEST)]
    expected = "11 images: 11 kept; split 8/2/1 (train/validation/test). Each has a caption."
    assert say(images, captions=statistics(too_long=0)) == expected


def test_what_asks_for_a_look_is_counted_by_picture_and_told_by_kind() -> None:
    images = [
        *pictures(10),
        picture(11, findings=(found(FindingKind.BLUR), found(FindingKind.OUTLIER))),
        picture(12, findings=(found(FindingKind.BLUR),)),
        picture(13, findings=(found(FindingKind.CAPTION_CONTRADICTORY),)),
    ]
    said = "13 kept (3 to look at: 2 perhaps blurred, 1 unlike the rest, 1 contradictory caption);"
    assert said in say(images)


@pytest.mark.parametrize(
    "kind",
    [FindingKind.UPSCALED, FindingKind.NEAR_DUPLICATE, FindingKind.CAPTION_MISSING, FindingKind.CAPTION_TOO_LONG],
)
def test_what_has_a_sentence_of_its_own_is_not_to_look_at(kind: FindingKind) -> None:
    assert "to look at" not in say(pictures(12, findings=(found(kind),)))


def test_every_dropped_picture_is_counted_once_and_decisions_by_hand_are_told() -> None:
    images = [
        *pictures(10),
        picture(11, findings=(found(FindingKind.BLUR),), decision="keep"),
        picture(12, None, findings=(found(FindingKind.CORRUPT, "dropped"), found(FindingKind.TOO_SMALL, "dropped"))),
        picture(13, None, findings=(found(FindingKind.BLUR), found(FindingKind.BY_HAND, "dropped")), decision="drop"),
        *pictures(2, 14, side=None, findings=(found(FindingKind.EXACT_DUPLICATE, "dropped"),)),
    ]
    opening = "15 images: 11 kept (1 by hand), 4 dropped (2 exact duplicates, 1 corrupt, 1 by hand);"
    assert say(images).startswith(opening)


def test_captions_are_told_by_what_is_wrong_with_them() -> None:
    images = [
        *pictures(6),
        picture(7, is_caption_automatic=True),
        *pictures(2, 8, findings=(found(FindingKind.CAPTION_IDENTICAL),)),
        picture(10, caption="", findings=(found(FindingKind.CAPTION_MISSING),)),
    ]
    text = say(images, captions=statistics(too_long=2, trigger="momo", with_trigger=7))
    assert "1 without caption." in text
    assert "1 caption is automatic and not looked at yet." in text
    assert "2 captions are longer than the 75 tokens that are read." in text
    assert "2 have a caption that different pictures have too." in text
    assert "“momo” is in 7 of 9 captions." in text


def test_a_trigger_that_every_caption_holds_is_told_shortly() -> None:
    assert "“momo” is in each caption." in say(pictures(12), captions=statistics(trigger="momo", with_trigger=12))


@pytest.mark.parametrize(
    ("small", "said"),
    [
        (0, ""),
        (1, "1 is smaller than 512 px"),
        (4, "4 are smaller than 512 px"),
        (12, "All 12 are smaller than 512 px"),
    ],
)
def test_enlarging_is_told_as_a_share(small: int, said: str) -> None:
    images = [*pictures(small, findings=(found(FindingKind.UPSCALED),)), *pictures(12 - small, small + 1)]
    assert (said in say(images)) if said else ("smaller than" not in say(images))


def test_cropping_is_told_on_average_and_for_the_pictures_that_lose_much() -> None:
    images = [picture(number, cropped=share) for number, share in enumerate([0.1] * 10 + [0.3, 0.4], start=1)]
    text = say(images, buckets=[bucket(512, 512, 12, 0.14)])
    assert "takes 14% of a picture away on average." in text
    assert "2 lose more than a quarter by cropping (no. 12, 11)." in text
    assert "No. 11 loses 30% of its area by cropping." in say(images[:11])
    assert "cropping" not in say(images[:10], buckets=[bucket(512, 512, 10, 0.1)])


def test_classes_are_counted_and_one_that_is_seen_too_rarely_is_named() -> None:
    cats, dogs = pictures(42, class_name="cat"), pictures(7, 43, class_name="dog")
    text = say([*cats, *dogs])
    assert "Classes: cat 42, dog 7. “cat” is seen 6 times as often as “dog”." in text
    assert "share in each split" not in text
    assert "as often as" not in say([*cats, *pictures(7, 43, class_name="dog", repeats=5)])
    assert "Classes" not in say(cats)


def test_a_class_of_few_different_pictures_cannot_be_in_each_split() -> None:
    cats = pictures(20, class_name="cat")
    twins = pictures(9, 21, class_name="dog", group=99)
    said = "“dog” has fewer than 7 different pictures: too few for a share in each split."
    assert said in say([*cats, *twins])
    many = [picture(30 + number, class_name=f"kind {number}") for number in range(9)]
    text = say([*cats, *many])
    assert "Classes: cat 20, kind 0 1, kind 1 1, kind 2 1, kind 3 1 and 5 more." in text
    assert "9 classes have fewer than 7" in text


def test_a_tiny_set_is_told_to_be_one_and_folds_are_proposed_where_they_are_advised() -> None:
    assert "nothing to validate on" in say(pictures(2))
    rough = "With 9 different pictures the split is a rough one: read the validation loss with care"
    assert say(pictures(9), advised_folds=5).endswith(f"{rough}, or compare with 5-fold cross-validation.")
    assert say(pictures(9)).endswith(f"{rough}.")
    assert "rough" not in say(pictures(10))


def test_refused_files_and_near_duplicates_are_told() -> None:
    refused = [Refused(source=f"{kind}", kind=kind, reason="no") for kind in (RefusalKind.LINK, RefusalKind.RATIO)]
    text = say([*pictures(12), *pictures(3, 13, group=12)], [*refused, refused[0]])
    assert "3 other files were refused (2 links, 1 zip bomb)." in text
    assert "4 are near duplicates of one another (one group, each kept in one split)." in text


@pytest.mark.parametrize("kind", list(RefusalKind))
def test_each_refusal_says_what_to_do(kind: RefusalKind) -> None:
    error = nothing_to_train_on([Path("a.bin")], [], [Refused(source="a.bin", kind=kind, reason="it is odd")])
    assert error.message == "a.bin was refused: it is odd."
    assert error.hint.endswith(".")


def test_hints_name_the_formats_that_are_read() -> None:
    refused = [Refused(source="a.rar", kind=RefusalKind.UNSUPPORTED, reason="it is no archive that is opened")]
    for word in ("zip", "tar", "7z", "HEIC"):
        assert word in nothing_to_train_on([Path("a.rar")], [], refused).hint
    assert "HEIC" in nothing_to_train_on([Path("a")], [], []).hint
