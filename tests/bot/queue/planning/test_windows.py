"""Training windows, against a model of every minute of a week, and by hand around clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bot.config import AtClose, WindowSettings
from bot.errors import ConfigError
from bot.queue.planning.windows import OpenHours, Windows, parse_windows, windows_of
from bot.queue.store.queue_control import Admission
from tests.golden import check_golden

BERLIN = "Europe/Berlin"
GOLDEN = Path(__file__).parent / "golden"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def next_closing(windows: Windows, now: float) -> float | None:
    return next((moment for moment in windows.edges(now) if not windows.is_open(moment)), None)


def nights(at_close: AtClose = AtClose.FINISH) -> Windows:
    return parse_windows(["mon-fri 20:00-08:00", "sat,sun 00:00-24:00"], zone=ZoneInfo(BERLIN), at_close=at_close)


def test_no_windows_are_always_open() -> None:
    windows = parse_windows([], zone=ZoneInfo(BERLIN))
    assert windows.admission(0) is Admission.ALLOW
    assert windows.next_opening(0) is None
    assert next_closing(windows, 0) is None


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-23T19:59:59", False),  # a Monday
        ("2026-11-23T20:00:00", True),
        ("2026-11-24T07:59:59", True),
        ("2026-11-24T08:00:00", False),
        ("2026-11-28T07:59:00", True),  # Friday's window extends into Saturday
        ("2026-11-28T12:00:00", True),
        ("2026-11-29T23:59:59", True),
        ("2026-11-30T00:00:00", False),  # Sunday's ends at 24:00
        ("2026-11-23T07:00:00", False),  # and does not extend into Monday
    ],
)
def test_nights_and_weekends(moment: str, is_open: bool) -> None:
    assert (nights().admission(at(moment)) is Admission.ALLOW) == is_open


def test_outside_the_windows_running_jobs_continue_or_are_requeued() -> None:
    noon = at("2026-11-24T12:00:00")
    assert nights().admission(noon) is Admission.HOLD
    assert nights(AtClose.REQUEUE).admission(noon) is Admission.DRAIN


def test_days_may_wrap_around_the_week() -> None:
    windows = parse_windows(["fri - mon 10:00-11:00"], zone=ZoneInfo(BERLIN))
    is_open = [windows.admission(at(f"2026-11-{day}T10:30")) is Admission.ALLOW for day in range(23, 30)]
    assert is_open == [True, False, False, False, True, True, True]


def test_adjacent_windows_are_one() -> None:
    friday = at("2026-11-27T21:00:00")
    assert next_closing(nights(), friday) == at("2026-11-30T00:00:00")
    assert nights().next_opening(friday) == at("2026-11-30T20:00:00")


def test_the_whole_week_never_closes() -> None:
    windows = parse_windows(["00:00-24:00"], zone=ZoneInfo(BERLIN))
    assert next_closing(windows, at("2026-11-27T21:00:00")) is None
    assert windows.next_opening(at("2026-11-27T21:00:00")) is None


def test_a_night_is_an_hour_shorter_when_the_clocks_go_forward() -> None:
    windows = parse_windows(["20:00-08:00"], zone=ZoneInfo(BERLIN))
    opening = at("2026-03-28T20:00:00")
    closing = next_closing(windows, opening)
    assert closing == at("2026-03-29T08:00:00")
    assert closing - opening == 11 * 3600


def test_a_window_within_the_skipped_hour_is_skipped() -> None:
    windows = parse_windows(["sun 02:10-02:50"], zone=ZoneInfo(BERLIN))
    assert windows.next_opening(at("2026-03-22T03:00:00")) == at("2026-04-05T02:10:00")


def test_a_window_that_begins_in_the_skipped_hour_opens_after_it() -> None:
    windows = parse_windows(["02:30-05:00"], zone=ZoneInfo(BERLIN))
    assert windows.next_opening(at("2026-03-29T01:00:00")) == at("2026-03-29T03:00:00")


def test_a_window_within_the_repeated_hour_opens_twice() -> None:
    windows = parse_windows(["02:00-02:30"], zone=ZoneInfo(BERLIN))
    once = windows.next_opening(at("2026-10-25T01:00:00"))
    assert once == at("2026-10-25T02:00:00")
    assert windows.next_opening(once) == once + 3600


def test_open_hours_know_each_span_and_count_only_open_hours() -> None:
    friday = at("2026-11-27T12:00:00")
    hours = OpenHours(nights(AtClose.REQUEUE), friday)
    assert hours.span(friday) == (False, at("2026-11-27T20:00:00"))
    assert hours.span(at("2026-12-01T05:00:00")) == (True, at("2026-12-01T08:00:00"))
    assert hours.span(at("2026-11-28T12:00:00")) == (True, at("2026-11-30T00:00:00"))
    # 52 hours until Monday 0:00, then from Monday 20:00.
    assert hours.finish(friday, 53 * 3600) == at("2026-11-30T21:00:00")
    assert OpenHours(nights(), friday).finish(friday, 60) == friday + 60


def test_every_problem_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_windows(
            ["nightly", "mon-fry 20:00-08:00", "25:00-26:00", "10:00-10:00", "sat 24:00-08:00", "mon 08:00-24:30"],
            zone=ZoneInfo(BERLIN),
        )
    assert len(caught.value.problems) == 7
    check_golden(GOLDEN / "window_problems.txt", str(caught.value))


def test_an_unknown_time_zone_is_refused_by_the_configuration() -> None:
    with pytest.raises(ValidationError, match="not a time zone"):
        WindowSettings(timezone="Europe/Berlyn")
    windows = windows_of(WindowSettings(open=("20:00-08:00",), timezone=BERLIN, at_close=AtClose.REQUEUE))
    assert (len(windows.windows), windows.zone.key, windows.at_close) == (1, BERLIN, AtClose.REQUEUE)


@st.composite
def _windows(draw: st.DrawFn) -> list[str]:
    texts = []
    for _ in range(draw(st.integers(0, 3))):
        days = draw(st.lists(st.sampled_from(_DAYS), max_size=3, unique=True))
        opens = draw(st.integers(0, 1439))
        closes = draw(st.integers(0, 1440).filter(opens.__ne__))
        texts.append(f"{','.join(days)} {_clock(opens)}-{_clock(closes)}".strip())
    return texts


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _model_week(texts: list[str]) -> list[bool]:
    """The 10,080 minutes of a week, each open or not."""
    week = [not texts] * 10_080
    for text in texts:
        *days, hours = text.split()
        opens, closes = (int(part[:2]) * 60 + int(part[3:]) for part in hours.split("-"))
        length = closes - opens if closes > opens else closes + 1440 - opens
        for day in days[0].split(",") if days else _DAYS:
            begin = _DAYS.index(day) * 1440 + opens
            for minute in range(begin, begin + length):
                week[minute % 10_080] = True
    return week


#: Weeks around clock changes: by an hour, by half an hour, at midnight; and one without.
_STARTS = st.sampled_from(
    [
        ("Europe/Berlin", "2026-03-27T00:00"),
        ("Europe/Berlin", "2026-10-23T12:00"),
        ("Australia/Lord_Howe", "2026-04-03T00:00"),
        ("America/Havana", "2026-03-06T00:00"),
        ("America/Havana", "2026-10-30T00:00"),
        ("Asia/Kathmandu", "2026-06-01T00:00"),
    ]
)


@settings(max_examples=60, deadline=None)
@example(texts=["sun 02:10-02:50"], start=("Europe/Berlin", "2026-03-27T00:00"), ahead=0)
@given(texts=_windows(), start=_STARTS, ahead=st.integers(0, 3 * 1440))
def test_windows_agree_with_a_model_of_every_minute(texts: list[str], start: tuple[str, str], ahead: int) -> None:
    zone = ZoneInfo(start[0])
    windows = parse_windows(texts, zone=zone)
    week = _model_week(texts)
    first = datetime.fromisoformat(start[1]).replace(tzinfo=UTC) + timedelta(minutes=ahead)

    def model(minutes: int) -> list[bool]:
        """The minutes until the next half hour, at which clocks may change."""
        at = first + timedelta(minutes=minutes)
        local = at.astimezone(zone)
        begin = local.weekday() * 1440 + local.hour * 60 + local.minute
        return [week[minute % 10_080] for minute in range(begin, begin + 30 - at.minute % 30)]

    shown: list[bool] = []
    while len(shown) < 9 * 1440:
        shown += model(len(shown))
    now = first.timestamp()
    for minute in range(0, 1440, 37):
        assert (windows.admission(now + minute * 60 + 59.5) is Admission.ALLOW) == shown[minute]
    for found, wanted in ((windows.next_opening(now), True), (next_closing(windows, now), False)):
        edge = next((n for n in range(1, len(shown)) if shown[n] is wanted and shown[n - 1] is not wanted), None)
        if edge is not None:
            assert found == now + edge * 60
        else:
            assert found is None or found >= now + 9 * 1440 * 60
