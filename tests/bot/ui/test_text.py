"""Words and numbers as they stand in a message."""

from __future__ import annotations

import pytest

from bot.ui.text import bar, counted, duration, ordinal, plain, shorten, size, sparkline, trend


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("[x](https://e.example)", r"\[x\](https://e.example)"),
        ("# heading", r"\# heading"),
        ("> quote", r"\> quote"),
        ("- item", r"\- item"),
        ("two\nlines", "two lines"),
        ("\u202egnp.exe", "gnp.exe"),
        ("<@1> <t:1> <:a:1>", "<\u200b@\u200b1> <\u200bt:1> <\u200b:a:1>"),
        ("@everyone", "@\u200beveryone"),
        ("1 < 2", "1 < 2"),
    ],
)
def test_strangers_words_are_shown_as_they_are(words: str, shown: str) -> None:
    assert plain(words) == shown


def test_long_words_end_in_an_ellipsis() -> None:
    assert shorten("a" * 20, 10) == "a" * 9 + "…"
    assert shorten("a" * 10, 10) == "a" * 10


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (291, "4 min 51 s"), (59.7, "1 min 00 s"), (2880, "48 min"), (7500, "2 h 05 min")],
)
def test_durations_read_like_speech(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(10, "10 B"), (2048, "2.0 KiB"), (143 * 2**20, "143 MiB"), (18 * 2**30, "18.0 GiB")]
)
def test_sizes_have_the_unit_of_a_person(count: int, words: str) -> None:
    assert size(count) == words


def test_a_bar_is_full_only_at_the_end() -> None:
    assert bar(0.999, 4) == "▰▰▰▱"
    assert bar(1, 4) == "▰▰▰▰"
    assert bar(7, 4) == "▰▰▰▰"


def test_a_sparkline_follows_the_values() -> None:
    assert sparkline([1.0, 0.5, 0.0]) == "█▅▁"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_trend_needs_half_a_percent() -> None:
    assert [trend(1.0, None), trend(0.9, 1.0), trend(1.1, 1.0), trend(1.001, 1.0)] == ["", " ▼", " ▲", " ▬"]


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(1, "image"), counted(2000, "image"), ordinal(2), ordinal(11), ordinal(23)] == [
        "1 image",
        "2,000 images",
        "2nd",
        "11th",
        "23rd",
    ]
