"""Caption rules work in any script, and applying them twice is the same as once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.dataset.captions.caption_rules import MAX_GROWN_CHARACTERS, apply_rules, contains_words
from trainer.protocol.edits import CaptionRules


def _rules(*replace: tuple[str, str], **others: Any) -> CaptionRules:
    pairs = [{"old": old, "new": new} for old, new in replace]
    return CaptionRules.model_validate({"replace": pairs, **others})


@pytest.mark.parametrize(
    ("caption", "rules", "expected"),
    [
        ("a Cat in a category of cats", _rules(("cat", "dog")), "a dog in a category of cats"),
        ("a cat's paw, a cat-like toy, a cat.", _rules(("cat", "dog")), "a cat's paw, a cat-like toy, a dog."),
        ("a black cat and a cat", _rules(("cat", "black cat")), "a black cat and a black cat"),
        ("a very very very old cat", _rules(("very very", "very")), "a very old cat"),
        ("long_hair, blue_eyes", _rules(("_", " ")), "long hair, blue eyes"),
        ("long_hair, cat", _rules(("long hair", "short hair")), "short hair, cat"),
        ("the cat, sitting", _rules((", sitting", "")), "the cat"),
        ("一只猫坐在草地上", _rules(("猫", "狗")), "一只狗坐在草地上"),
        ("かわいい猫 on a mat", _rules(("猫", "cat")), "かわいいcat on a mat"),
        ("zwx猫", _rules(("zwx", "sks")), "sks猫"),
    ],
)
def test_text_is_replaced_as_whole_words(caption: str, rules: CaptionRules, expected: str) -> None:
    assert apply_rules(caption, rules) == expected


@pytest.mark.parametrize(
    ("caption", "strip", "expected"),
    [
        ("masterpiece, best quality, 1girl, tree", ["masterpiece", "best quality"], "1girl, tree"),
        ("1girl, (Masterpiece:1.2), tree", ["masterpiece"], "1girl, tree"),
        ("1girl, ((masterpiece)), tree, ", ["masterpiece"], "1girl, tree"),
        ("1girl, tree, masterpiece", ["masterpiece"], "1girl, tree"),
        ("ohwx man in a suit", ["ohwx"], "man in a suit"),
        ("long_hair, hair", ["hair"], "long_hair"),
        ("a b c", ["a c", "b"], ""),
        ("masterpiece", ["masterpiece"], ""),
        ("杰作，一只猫，草地", ["杰作"], "一只猫，草地"),
    ],
)
def test_words_are_stripped_and_commas_are_cleaned_up(caption: str, strip: list[str], expected: str) -> None:
    assert apply_rules(caption, _rules(strip=strip)) == expected


@pytest.mark.parametrize(
    ("caption", "rules", "expected"),
    [
        ("a cat", _rules(prefix="a photo of", suffix=", film grain"), "a photo of a cat, film grain"),
        ("A Photo of a cat", _rules(prefix="a photo of"), "a photo of a cat"),
        ("a photo often seen", _rules(prefix="a photo of"), "a photo of a photo often seen"),
        ("a cat", _rules(trigger="sks"), "sks, a cat"),
        ("a photo of SKS", _rules(trigger="sks"), "a photo of SKS"),
        ("masks on a wall", _rules(trigger="sks"), "sks, masks on a wall"),
        ("", _rules(trigger="sks"), "sks"),
        ("cat, tree, sky", _rules(trigger="sks", prefix="drawing,"), "sks, drawing, cat, tree, sky"),
        ("sks, cat, tree", _rules(trigger="sks", prefix="drawing,"), "sks, drawing, cat, tree"),
        ("sks, a sks cat", _rules(trigger="sks"), "sks, a sks cat"),
        ("ohwx cat", _rules(("ohwx", ""), trigger="sks"), "sks, cat"),
        ("猫", _rules(prefix="一张照片，", suffix="，高清"), "一张照片，猫，高清"),
        ("小虎在草地上", _rules(trigger="小虎"), "小虎, 小虎在草地上"),
        ("小虎, 在草地上", _rules(trigger="小虎"), "小虎, 在草地上"),
        ("  two   spaces ", _rules(), "two spaces"),
    ],
)
def test_prefix_suffix_and_trigger_are_added_once(caption: str, rules: CaptionRules, expected: str) -> None:
    assert apply_rules(caption, rules) == expected
    assert apply_rules(expected, rules) == expected


def test_only_whole_words_are_contained() -> None:
    assert contains_words("a Cat, sitting", "cat")
    assert contains_words("long_hair", "long hair")
    assert not contains_words("a cathedral", "cat")
    assert not contains_words("a cat", " ")


def test_replacements_that_feed_each_other_end_and_stay_short() -> None:
    doubling = [(f"w{index}", f"w{index + 1} w{index + 1}") for index in range(50)]
    circle = [("a", "b b"), ("b", "a a")]

    assert len(apply_rules("w0", _rules(*doubling))) <= MAX_GROWN_CHARACTERS
    assert len(apply_rules("a", _rules(*circle))) <= MAX_GROWN_CHARACTERS


_WORDS = st.sampled_from(
    ["cat", "Dog", "a", "the", "tree", "sks", "long_hair", "(cat:1.2)", "猫", "狗", "été", ",", "-"]
)
_CAPTIONS = st.lists(_WORDS, max_size=9).map(" ".join)
_FEW = st.lists(st.sampled_from(["cat", "dog", "tree", "long hair", "猫", "a"]), max_size=2).map(" ".join)
_REPLACEMENTS = st.lists(
    st.sampled_from([("cat", "black cat"), ("dog", "wolf"), ("the", ""), ("tree", "oak tree"), ("猫", "白猫")]),
    max_size=4,
)


@given(_CAPTIONS, _REPLACEMENTS, st.lists(_FEW, max_size=2), _FEW, _FEW, st.sampled_from(["", "sks", "cat", "猫"]))
@example(",", [], [], "猫", "", "猫")
@example(", -", [], [], "猫", "", "猫")
def test_rules_applied_twice_are_the_same_as_once(
    caption: str, replace: list[tuple[str, str]], strip: list[str], prefix: str, suffix: str, trigger: str
) -> None:
    rules = _rules(*replace, strip=strip, prefix=prefix, suffix=suffix, trigger=trigger)

    once = apply_rules(caption, rules)

    assert apply_rules(once, rules) == once
    assert not trigger or contains_words(once, trigger)
