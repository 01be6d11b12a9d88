"""Captions that teach something wrong are found, and captions that are only unusual are not."""

from __future__ import annotations

import pytest

from trainer.dataset.captions.caption_checks import caption_statistics, check_captions
from trainer.dataset.captions.caption_words import guess_trigger
from trainer.dataset.captions.mojibake import is_garbled, mended
from trainer.protocol.report import Finding, FindingKind

_LANGUAGES = [
    "a photo of a cat",
    "“Été” à la plage — naïve café, façade",
    "Müllers große Straße, 20 °C, ½ Liter",
    "Рыжая кошка сидит на крыше",
    "Η γάτα κάθεται",
    "一只可爱的猫坐在草地上，阳光很好",
    "一隻可愛的貓坐在草地上",
    "噢，案子啊",
    "かわいい猫が座っている",
    "고양이가 앉아 있다",
    "قطة تجلس على السجادة",
    "แมวนั่งอยู่บนหญ้า",
    "Mèo ngồi trên cỏ, Ðà Nẵng",
    "żółta łódź, Łódź",
    "cat 😀👩‍🚀 ★ ♥ №5 · x² ≥ 3",
]


def _kinds(findings: dict[int, list[Finding]]) -> dict[int, set[FindingKind]]:
    return {number: {finding.kind for finding in found} for number, found in findings.items()}


@pytest.mark.parametrize("caption", _LANGUAGES)
def test_captions_in_any_language_pass(caption: str) -> None:
    assert not is_garbled(caption)
    assert check_captions({1: caption}, {1: 1}) == {}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("un café à la plage", "cp1252"),
        ("un café noir", "latin-1"),
        ("Рыжая кошка", "latin-1"),
        ("一只可爱的猫", "latin-1"),
    ],
)
def test_utf8_read_in_another_encoding_is_found_and_mended(caption: str, wrong: str) -> None:
    garbled = caption.encode().decode(wrong)

    [finding] = check_captions({1: garbled}, {1: 1})[1]

    assert finding.kind is FindingKind.CAPTION_MOJIBAKE
    assert finding.action == "kept"
    assert caption in finding.message


def test_chinese_read_as_western_is_found_and_mended() -> None:
    garbled = "一只可爱的猫坐在草地上".encode("gb18030").decode("latin-1")

    assert is_garbled(garbled)
    assert mended(garbled) == "一只可爱的猫坐在草地上"


def test_utf8_read_as_chinese_is_found_and_mended() -> None:
    garbled = "草地上的小狗".encode().decode("gb18030")

    assert is_garbled(garbled)
    assert mended(garbled) == "草地上的小狗"


def test_what_was_lost_on_the_way_does_not_hide_the_rest() -> None:
    garbled = "一只可爱的猫坐着".encode().decode("gb18030", "replace")

    assert is_garbled(garbled)
    assert "可爱的猫" in mended(garbled)


def test_lost_characters_are_found_and_not_guessed() -> None:
    [finding] = check_captions({1: "a caf\ufffd by the sea"}, {1: 1})[1]

    assert finding.kind is FindingKind.CAPTION_MOJIBAKE
    assert "write it anew" in finding.message


def test_a_caption_that_is_too_long_says_what_is_not_read() -> None:
    caption = " ".join(["cat"] * 75 + ["beside", "a", "lighthouse"])

    found = check_captions({1: caption, 2: " ".join(["cat"] * 75)}, {1: 1, 2: 2})

    assert list(found) == [1]
    [finding] = found[1]
    assert (finding.kind, finding.measure, finding.threshold) == (FindingKind.CAPTION_TOO_LONG, 78, 75)
    assert "“beside a lighthouse”" in finding.message


def test_one_caption_under_different_pictures_is_found_once_for_each() -> None:
    captions = {1: "a red house", 2: "A red  house", 3: "a dog on a beach", 4: "two boats"}

    found = check_captions(captions, {number: number for number in captions})

    assert _kinds(found) == {1: {FindingKind.CAPTION_IDENTICAL}, 2: {FindingKind.CAPTION_IDENTICAL}}
    assert found[1][0].measure == 2


def test_one_caption_under_near_duplicates_is_as_it_should_be() -> None:
    captions = {1: "a red house", 2: "a red house", 3: "a dog on a beach", 4: "two boats"}

    assert check_captions(captions, {1: 1, 2: 1, 3: 3, 4: 4}) == {}


@pytest.mark.parametrize("captions", [["sks cat"] * 12, ["sks cat", "zwx dog"] * 6, ["sks cat"] * 2])
def test_captions_that_name_a_concept_may_be_shared(captions: list[str]) -> None:
    numbered = dict(enumerate(captions, 1))

    assert check_captions(numbered, {number: number for number in numbered}) == {}


def test_a_trigger_alone_may_stand_under_many_pictures() -> None:
    captions = {1: "sks", 2: "sks", 3: "sks, a dog on a beach", 4: "sks, two boats", 5: "sks, a house"}

    assert check_captions(captions, {number: number for number in captions}, trigger="sks") == {}


def test_near_duplicates_under_captions_with_nothing_in_common_contradict_each_other() -> None:
    captions = {1: "a black cat on a sofa", 2: "snowy mountains at dawn", 3: "a red bicycle"}

    found = check_captions(captions, {1: 1, 2: 1, 3: 3}, sources={1: "one.png", 2: "two.png"})

    assert _kinds(found) == {1: {FindingKind.CAPTION_CONTRADICTORY}, 2: {FindingKind.CAPTION_CONTRADICTORY}}
    assert found[1][0].other == "two.png"
    assert "snowy mountains" in found[1][0].message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a cat sitting on the left", "the cat sits on the right"),
        ("1girl, solo, long hair, smile", "girl with long hair"),
        ("a black cat", "一只黑猫"),
        ("sks", "sks, a black cat"),
        ("一只可爱的黑猫坐在草地上", "黑猫在草地上睡觉"),
    ],
)
def test_other_words_for_the_same_do_not_contradict(one: str, other: str) -> None:
    assert check_captions({1: one, 2: other}, {1: 5, 2: 5}) == {}


def test_in_a_burst_only_the_odd_caption_is_at_fault() -> None:
    captions = {1: "a cat on a sofa", 2: "the cat on a sofa", 3: "a cat, sofa", 4: "mountains"}

    assert list(check_captions(captions, dict.fromkeys(captions, 1))) == [4]


def test_the_trigger_is_common_to_all_and_says_nothing() -> None:
    found = check_captions({1: "sks cat", 2: "sks mountains"}, {1: 1, 2: 1}, trigger="sks")

    assert _kinds(found) == {1: {FindingKind.CAPTION_CONTRADICTORY}, 2: {FindingKind.CAPTION_CONTRADICTORY}}


def test_captions_without_the_trigger_are_found() -> None:
    captions = {1: "a photo of SKS cat", 2: "masks on a wall", 3: ""}

    found = check_captions(captions, {1: 1, 2: 2, 3: 3}, trigger="sks")

    assert _kinds(found) == {2: {FindingKind.CAPTION_WITHOUT_TRIGGER}}
    assert check_captions(captions, {1: 1, 2: 2, 3: 3}) == {}


def test_statistics_count_tokens_words_and_the_trigger() -> None:
    long = " ".join(["tree"] * 80)

    statistics = caption_statistics({1: "sks cat on a mat", 2: "SKS cat  on a mat", 3: long, 4: ""}, "sks")

    assert (statistics.distinct, statistics.too_long, statistics.longest_tokens) == (2, 1, 80)
    assert statistics.median_tokens == 5
    assert (statistics.trigger, statistics.with_trigger) == ("sks", 2)
    assert [(word.word, word.images) for word in statistics.words] == [("cat", 2), ("mat", 2), ("sks", 2)]


def test_statistics_of_tags_count_whole_tags() -> None:
    captions = {1: "1girl, Long Hair, tree", 2: "1girl, long hair, sky", 3: "1girl, tree, sea, sun"}

    words = caption_statistics(captions).words

    assert [(word.word, word.images) for word in words[:3]] == [("1girl", 3), ("long hair", 2), ("tree", 2)]


def test_statistics_of_no_captions_are_zero() -> None:
    statistics = caption_statistics({1: " "}, "sks")

    assert (statistics.distinct, statistics.median_tokens, statistics.longest_tokens) == (0, 0.0, 0)


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["sks cat on a mat", "a photo of sks cat", "sks cat, outdoors", "sks cat"], "sks"),
        ([f"a cat zwx {colour}" for colour in ("red", "blue", "green", "teal", "black")], "zwx"),
        (["a photo of a cat", "a cat on a mat", "a black cat", "cat"], ""),
        (["sks cat", "a cat", "sks cat", "sks cat"], ""),
        (["sks"], ""),
    ],
)
def test_a_rare_word_in_nearly_all_captions_is_taken_for_the_trigger(captions: list[str], trigger: str) -> None:
    assert guess_trigger(captions) == trigger
