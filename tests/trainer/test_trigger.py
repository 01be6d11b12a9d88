"""A trigger is a word of a caption where CLIP's tokenizer keeps it apart, in every place that asks."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from trainer.dataset.captions.caption_checks import caption_statistics
from trainer.dataset.captions.caption_rules import apply_rules
from trainer.protocol.edits import CaptionRules
from trainer.trigger import has_trigger, trigger_pattern, with_trigger


@pytest.mark.parametrize(
    ("caption", "trigger"),
    [
        ("momo_(series), 1girl", "momo"),
        ("a photo of MOMO's bag", "momo"),
        ("momo2, smiling", "momo"),
        ("momo，在公园里", "momo"),
        ("小明, 在公园里", "小明"),
        ("a long  hair style", "long hair"),
        ("a <momo>, x", "<momo>"),
        ("zk1, a cat", "zk1"),
        ("un cafe\u0301 noir", "caf\u00e9"),
    ],
)
def test_a_trigger_is_a_whole_word(caption: str, trigger: str) -> None:
    assert has_trigger(caption, trigger)
    assert with_trigger(caption, trigger) == caption


@pytest.mark.parametrize(
    ("caption", "trigger"),
    [
        ("a woman eating a banana", "ana"),
        ("a party", "art"),
        ("a girl drinking tea", "rin"),
        ("momo的照片", "momo"),
        ("小明在公园里", "小明"),
        ("zk12, a cat", "zk1"),
        ("long_hair", "long hair"),
        ("", "momo"),
        ("a cat", ""),
    ],
)
def test_a_trigger_within_a_word_is_put_in_front_once(caption: str, trigger: str) -> None:
    assert not has_trigger(caption, trigger)
    once = with_trigger(caption, trigger)
    assert once == (", ".join(part for part in (trigger, caption) if part))
    assert with_trigger(once, trigger) == once
    assert apply_rules(caption, CaptionRules(trigger=trigger)) == once
    if trigger:
        assert caption_statistics({1: once}, trigger).with_trigger == 1


def in_tokenizer(caption: str, trigger: str) -> bool:
    """Whether textual inversion replaces the word: CLIP's normalizer, and the tokenizer's regular expressions."""
    clip = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    word = normalizers.Sequence(clip).normalize_str(trigger)
    replace = normalizers.Replace(Regex(trigger_pattern(word)), "\ue0d0")
    return "\ue0d0" in normalizers.Sequence([*clip, replace]).normalize_str(caption)


LETTERS = st.text(st.sampled_from("aAé1２_-'(, 小の한กя\u0301\u200d"), max_size=12)


@given(LETTERS, LETTERS, st.sampled_from(["a", "momo", "小の", "1a", "a1", "a a", "한", "(a", "я-", "กa", "é"]))
def test_python_and_the_tokenizer_agree(before: str, after: str, trigger: str) -> None:
    caption = unicodedata.normalize("NFC", f"{before}{trigger}{after}")
    assert has_trigger(caption, trigger) == in_tokenizer(caption, trigger)
    assert in_tokenizer(with_trigger(caption, trigger), trigger)
