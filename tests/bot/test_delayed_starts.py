"""What people write for a delayed start."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from bot.errors import JobRefused
from bot.queue.planning.delayed import parse_start

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


NOW = at("2026-11-24T21:30:00")  # a Tuesday


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("22:00", "2026-11-24T22:00"),
        ("06:30", "2026-11-25T06:30"),
        ("6:30", "2026-11-25T06:30"),
        ("today 23:15", "2026-11-24T23:15"),
        ("Tomorrow  06:30", "2026-11-25T06:30"),
        ("sat 22:00", "2026-11-28T22:00"),
        ("tue 20:00", "2026-12-01T20:00"),
        ("tue 22:00", "2026-11-24T22:00"),
        ("2026-11-25 22:00", "2026-11-25T22:00"),
        ("2026-11-25T22:00", "2026-11-25T22:00"),
        ("in 2 h", "2026-11-24T23:30"),
        ("in 90 min", "2026-11-24T23:00"),
        ("in 1h30m", "2026-11-24T23:00"),
        ("in 1.5 hours", "2026-11-24T23:00"),
        ("in 1 hour and 30 minutes", "2026-11-24T23:00"),
        ("in 2 days", "2026-11-26T21:30"),
    ],
)
def test_a_start_is_understood(text: str, moment: str) -> None:
    assert parse_start(text, NOW, BERLIN) == at(moment)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tonight", "no time that I understand. Write 22:00"),
        ("", "no time that I understand"),
        ("25:00", "no time that I understand"),
        ("in a while", "no time that I understand"),
        ("in 5 parsecs", "no time that I understand"),
        ("fry 22:00", "no time that I understand"),
        ("2026-11-31 22:00", "no time that I understand"),
        ("today 20:00", "is over"),
        ("2026-11-24 20:00", "is over"),
        ("in 0 min", "is over"),
        ("in 31 days", "more than 30 days away"),
        ("2027-03-28 02:30", "There is no 02:30 on 2027-03-28"),
    ],
)
def test_a_start_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(JobRefused) as caught:
        parse_start(text, NOW, BERLIN)
    assert why in str(caught.value)
    assert "Nothing was queued" in str(caught.value)


def test_a_time_that_comes_twice_is_the_first_until_it_is_over() -> None:
    before = at("2026-10-25T01:00:00")
    first = parse_start("02:30", before, BERLIN)
    assert first == before + 90 * 60
    assert parse_start("02:30", first, BERLIN) == first + 3600
