"""The demo's channel as plain text: times as Discord shows them, and each message once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bot.demo.transcript import Transcript

#: 24 November 2026, 12:00 UTC.
NOON = 1_795_521_600


@pytest.fixture
def transcript() -> Iterator[Transcript]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield Transcript({7: "Ana"}, now=lambda: NOON + 0.4)
    time.tzset()


def message(text: str) -> Any:
    author = SimpleNamespace(id=7, name="ana")
    flags = SimpleNamespace(ephemeral=False)
    return SimpleNamespace(id=1, content=text, components=(), author=author, flags=flags, attachments=())


@pytest.mark.parametrize(
    ("offset_s", "expected"),
    [
        (0, "now"),
        (45, "in 45 s"),
        (119, "in 2 min"),
        (-180, "3 min ago"),
        (2 * 3600, "in 2 h"),
        (-86_400 * 3, "3 days ago"),
    ],
)
def test_a_relative_timestamp_shows_its_distance(transcript: Transcript, offset_s: int, expected: str) -> None:
    assert transcript.plain(f"ends <t:{NOON + offset_s}:R>") == f"ends {expected}"


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (":t", "12:00"),
        (":T", "12:00:00"),
        (":d", "24/11/2026"),
        (":D", "24 November 2026"),
        (":f", "24 November 2026 12:00"),
        ("", "24 November 2026 12:00"),
        (":F", "Tuesday, 24 November 2026 12:00"),
    ],
)
def test_other_timestamps_are_times_or_dates(transcript: Transcript, mark: str, expected: str) -> None:
    assert transcript.plain(f"not before <t:{NOON}{mark}>.") == f"not before {expected}."


def test_a_message_is_not_repeated_because_time_passes(transcript: Transcript) -> None:
    assert [*transcript.new_entries([message(f"Paused <t:{NOON}:R>")])] == ["Ana\n  Paused now"]
    assert [*transcript.new_entries([message(f"Paused <t:{NOON + 9}:R>")])] == []
    assert [*transcript.new_entries([message(f"Done <t:{NOON + 9}:R>")])] == ["Ana (edited)\n  Done in 9 s"]
