"""Escaping and bars as they are shown in a message."""

from __future__ import annotations

import pytest

from bot.ui.discord_text import escape, progress_bar, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("[x](https://e.example)", "\\[x\\](https:\u200b//e.example)"),
        ("see HTTPS://evil.example", "see HTTPS:\u200b//evil.example"),
        ("discord.gg/abc, www.evil.example", "discord\u200b.gg/abc, www\u200b.evil.example"),
        (
            "discord.com/invite/abc discordapp.com/invite/a",
            "discord\u200b.com/invite/abc discord\u200bapp.com/invite/a",
        ),
        ("1:2 // note", "1:2 // note"),
        ("a\x00b\x1b[31m\u061c\u200b\u2066\ufeff\ud83e", r"ab\[31m"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
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
def test_untrusted_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_long_text_ends_in_an_ellipsis() -> None:
    assert shorten("a" * 20, 10) == "a" * 9 + "…"
    assert shorten("a" * 10, 10) == "a" * 10


def test_a_progress_bar_shows_the_first_percents_and_is_full_only_at_the_end() -> None:
    shares = (0, 0.02, 0.5, 0.999, 1, 7)
    assert [progress_bar(share, 4) for share in shares] == ["░░░░", "█░░░", "██░░", "███░", "████", "████"]
