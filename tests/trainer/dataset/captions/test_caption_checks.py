"""Doubtful captions are found, unusual ones are not; tokens are counted as CLIP counts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from trainer.clip_vocabulary import clip_vocabulary
from trainer.dataset.captions.caption_checks import (
    MAX_TOKENS,
    caption_statistics,
    check_captions,
    count_tokens,
    truncated_part,
)
from trainer.dataset.captions.caption_text import fix_mojibake, is_garbled
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
def test_utf8_read_in_another_encoding_is_found_and_fixed(caption: str, wrong: str) -> None:
    garbled = caption.encode().decode(wrong)

    [finding] = check_captions({1: garbled}, {1: 1})[1]

    assert finding.kind is FindingKind.CAPTION_MOJIBAKE
    assert finding.action == "kept"
    assert caption in finding.message


@pytest.mark.parametrize(
    ("caption", "encoding", "wrong"),
    [("一只可爱的猫坐在草地上", "gb18030", "latin-1"), ("草地上的小狗", "utf-8", "gb18030")],
)
def test_chinese_read_in_another_encoding_is_found_and_fixed(caption: str, encoding: str, wrong: str) -> None:
    garbled = caption.encode(encoding).decode(wrong)

    assert is_garbled(garbled)
    assert fix_mojibake(garbled) == caption


def test_lost_characters_do_not_hide_the_rest() -> None:
    garbled = "一只可爱的猫坐着".encode().decode("gb18030", "replace")

    assert is_garbled(garbled)
    assert "可爱的猫" in fix_mojibake(garbled)


def test_lost_characters_are_found_but_not_guessed() -> None:
    garbled = "a caf\ufffd by the sea"

    assert _kinds(check_captions({1: garbled}, {1: 1})) == {1: {FindingKind.CAPTION_MOJIBAKE}}
    assert fix_mojibake(garbled) == ""


def test_a_caption_that_is_too_long_is_reported_with_the_part_that_is_cut_off() -> None:
    caption = " ".join(["cat"] * 225 + ["beside", "a", "lighthouse"])

    found = check_captions({1: caption, 2: " ".join(["cat"] * 225)}, {1: 1, 2: 2})

    assert list(found) == [1]
    [finding] = found[1]
    assert (finding.kind, finding.measure, finding.threshold) == (FindingKind.CAPTION_TOO_LONG, 228, 225)
    assert "“beside a lighthouse”" in finding.message


def test_a_caption_of_different_images_is_found_for_each_of_them() -> None:
    captions = {1: "a red house", 2: "A red  house", 3: "a dog on a beach", 4: "two boats"}

    found = check_captions(captions, {number: number for number in captions})

    assert _kinds(found) == {1: {FindingKind.CAPTION_IDENTICAL}, 2: {FindingKind.CAPTION_IDENTICAL}}
    assert found[1][0].measure == 2


def test_near_duplicates_may_share_a_caption() -> None:
    captions = {1: "a red house", 2: "a red house", 3: "a dog on a beach", 4: "two boats"}

    assert check_captions(captions, {1: 1, 2: 1, 3: 3, 4: 4}) == {}


@pytest.mark.parametrize("captions", [["sks cat"] * 12, ["sks cat", "zwx dog"] * 6, ["sks cat"] * 2])
def test_captions_that_name_a_concept_may_be_shared(captions: list[str]) -> None:
    numbered = dict(enumerate(captions, 1))

    assert check_captions(numbered, {number: number for number in numbered}) == {}


def test_the_trigger_alone_may_be_shared() -> None:
    captions = {1: "sks", 2: "sks", 3: "sks, a dog on a beach", 4: "sks, two boats", 5: "sks, a house"}

    assert check_captions(captions, {number: number for number in captions}, trigger="sks") == {}


def test_near_duplicates_with_unrelated_captions_contradict_each_other() -> None:
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
def test_related_captions_do_not_contradict_each_other(one: str, other: str) -> None:
    assert check_captions({1: one, 2: other}, {1: 5, 2: 5}) == {}


def test_in_a_group_only_the_caption_that_differs_is_contradictory() -> None:
    captions = {1: "a cat on a sofa", 2: "the cat on a sofa", 3: "a cat, sofa", 4: "mountains"}

    assert list(check_captions(captions, dict.fromkeys(captions, 1))) == [4]


def test_the_trigger_does_not_count_as_a_common_word() -> None:
    found = check_captions({1: "sks cat", 2: "sks mountains"}, {1: 1, 2: 1}, trigger="sks")

    assert _kinds(found) == {1: {FindingKind.CAPTION_CONTRADICTORY}, 2: {FindingKind.CAPTION_CONTRADICTORY}}


def test_captions_without_the_trigger_are_found() -> None:
    captions = {1: "a photo of SKS cat", 2: "masks on a wall", 3: ""}

    found = check_captions(captions, {1: 1, 2: 2, 3: 3}, trigger="sks")

    assert _kinds(found) == {2: {FindingKind.CAPTION_WITHOUT_TRIGGER}}
    assert check_captions(captions, {1: 1, 2: 2, 3: 3}) == {}


def test_statistics_count_tokens_words_and_the_trigger() -> None:
    long = " ".join(["tree"] * 230)

    statistics = caption_statistics({1: "sks cat on a mat", 2: "SKS cat  on a mat", 3: long, 4: ""}, "sks")

    assert (statistics.distinct, statistics.too_long, statistics.longest_tokens) == (2, 1, 230)
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


_CAPTIONS = [
    "",
    "   ",
    "a photo of a cat",
    "A Cat's  photo\n of «Été»  e\u0301t\u0301e",
    "1girl, solo, long_hair, looking at viewer, (masterpiece:1.2)",
    "猫坐在草地上，阳光很好",
    "かわいい猫が座っている",
    "Рыжая кошка 👩‍🚀 12345 don't we'll",
    "<|startoftext|> sneaky <|endoftext|>",
    "Straße İstanbul ﬁne",
]


@pytest.fixture(scope="module")
def reference() -> CLIPTokenizer:
    tokens, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges)


def test_the_vocabulary_is_that_of_clip() -> None:
    tokens, _merges = clip_vocabulary()

    # As in `openai/clip-vit-large-patch14`, whose tokenizer Stable Diffusion 1.x uses.
    assert len(tokens) == 49408
    assert (tokens["a</w>"], tokens["photo</w>"], tokens["of</w>"], tokens["cat</w>"]) == (320, 1125, 539, 2368)
    assert (tokens["<|startoftext|>"], tokens["<|endoftext|>"]) == (49406, 49407)


def test_token_counts_equal_those_of_the_tokenizer_of_diffusers(reference: CLIPTokenizer) -> None:
    assert count_tokens(_CAPTIONS) == [len(reference.tokenize(caption)) for caption in _CAPTIONS]
    assert count_tokens(["a photo of a cat"]) == [5]


@given(st.text(max_size=80))
def test_token_counts_agree_for_any_text(reference: CLIPTokenizer, text: str) -> None:
    assert count_tokens([text]) == [len(reference(text, add_special_tokens=False).input_ids)]


def test_the_truncated_part_starts_at_the_first_cut_word() -> None:
    words = ["cat"] * (MAX_TOKENS - 1)

    assert truncated_part(" ".join([*words, "dog"])) == ""
    assert truncated_part(" ".join([*words, "dog", "Red", "house"])) == "Red house"
    # Two tokens, of which the first one still fits.
    assert count_tokens(["xylotheque"])[0] > 1
    assert truncated_part(" ".join([*words, "xylotheque", "house"])) == "xylotheque house"
    assert truncated_part(" ".join(["cat"] * 75 + ["dog"]), 75) == "dog"


def test_further_captions_of_an_image_are_checked_too() -> None:
    captions = {1: "zkz, a cat", 2: "zkz, a dog", 3: "zkz, an owl"}
    others = {
        1: ("zkz, " + "very " * MAX_TOKENS + "long",),
        2: ("a dog", "zkz, cafÃ© dog", "no word"),
        3: ("an owl, zkz",),
    }

    found = check_captions(captions, {}, others=others, trigger="zkz")

    assert {number: [finding.kind for finding in each] for number, each in found.items()} == {
        1: [FindingKind.CAPTION_TOO_LONG],
        2: [FindingKind.CAPTION_WITHOUT_TRIGGER, FindingKind.CAPTION_MOJIBAKE],
    }
    assert "“a dog”" in found[2][0].message
