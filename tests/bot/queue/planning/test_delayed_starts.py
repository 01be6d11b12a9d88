"""Delayed starts as people write them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bot.errors import JobRefused
from bot.queue.planning.delayed import parse_start
from tests.golden import check_golden

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


def test_a_start_that_is_no_time_is_past_or_too_far_is_refused() -> None:
    refusals = []
    for text in (
        "tonight", "", "25:00", "in a while", "in 5 parsecs", "fry 22:00", "2026-11-31 22:00",
        "today 20:00", "2026-11-24 20:00", "in 0 min", "in 31 days", "2027-03-28 02:30",
    ):  # fmt: skip
        with pytest.raises(JobRefused) as caught:
            parse_start(text, NOW, BERLIN)
        refusals.append(str(caught.value))
    check_golden(Path(__file__).parent / "golden" / "refused_starts.txt", "\n".join(refusals))


def test_a_repeated_time_is_its_first_occurrence_until_that_is_past() -> None:
    before = at("2026-10-25T01:00:00")
    first = parse_start("02:30", before, BERLIN)
    assert first == before + 90 * 60
    assert parse_start("02:30", first, BERLIN) == first + 3600
