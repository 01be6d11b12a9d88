"""`/notify`, direct messages, and what [🔔] answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from discord import ui

from bot.outbox.audience import NotifyEvent, NotifyPlace, Preferences, QuietHours
from bot.outbox.cards import NO_THREAD, Card
from bot.outbox.notification import Notification, NotificationKind
from bot.ui.notify_pages import (
    NoQuietHours,
    called_post,
    direct_post,
    direct_refused,
    direct_test,
    job_link,
    notify_page,
    parse_quiet_hours,
    quiet_form,
    watch_reply,
)
from tests.bot.ui.examples import job
from tests.bot.ui.rendering import HOSTILE, check_limits, check_messages
from tests.golden import check_sentences

GOLDEN = Path(__file__).parent / "golden"
NIGHT = QuietHours(begins=22 * 60, ends=7 * 60 + 30, zone="Europe/Berlin")
ALL = Preferences(places=dict.fromkeys(NotifyEvent, NotifyPlace.DIRECT), quiet=NIGHT)
NOTHING = Preferences(places=dict.fromkeys(NotifyEvent, NotifyPlace.NONE))
CARD = Card(
    job_id=42, kind=NotificationKind.CARD, parts=(), post_id=0, is_removed=False, channel_id=5, thread_id=9,
    version=1, shown_version=1,
    urgent_version=1, nonce="n", may_be_there=False, tries=0, errors=0, retry_at=0.0, message_id=9, sent_at=0.0,
    shown_at=0.0,
)  # fmt: skip
TOLD = [
    NotificationKind.QUEUED, NotificationKind.STARTED, NotificationKind.EPOCH, NotificationKind.EARLY_STOP,
    NotificationKind.DONE, NotificationKind.FAILED, NotificationKind.CANCELLED,
]  # fmt: skip


def direct(kind: NotificationKind, **changes: Any) -> Notification:
    return Notification(kind=kind, job_id=42, mentions=(7,), is_direct=True, **changes)


def test_the_page_and_the_messages() -> None:
    defaults = dict.fromkeys(NotifyEvent, NotifyPlace.NONE) | {NotifyEvent.DONE: NotifyPlace.MENTION}
    check_messages(
        GOLDEN / "notify.txt",
        {
            "the page of who has chosen nothing": notify_page(Preferences(places=defaults)),
            "the page with quiet hours, after a message that did not arrive": notify_page(ALL, direct_refused()),
            **{f"direct: {kind}": direct_post(direct(kind), job(), CARD) for kind in TOLD},
            "returned": direct_post(direct(NotificationKind.DONE, is_returned=True, is_quiet=True), job(), CARD),
            "queued": called_post(direct(NotificationKind.QUEUED), job()),
            "started": called_post(direct(NotificationKind.STARTED), job()),
            "the first direct message": direct_test(),
            "watching": watch_reply(job(), ALL, is_watching=True),
            "watching, without a choice": watch_reply(job(), NOTHING, is_watching=True),
            "no longer watching": watch_reply(job(), ALL, is_watching=False),
        },
    )


def test_messages_are_within_discords_limits() -> None:
    hostile = job(name=HOSTILE)
    for content in (
        notify_page(ALL, direct_refused()),
        direct_post(direct(NotificationKind.DONE), hostile, CARD),
        called_post(direct(NotificationKind.STARTED), hostile),
    ):
        check_limits(content)


def test_a_form_and_its_menus_are_within_discords_limits() -> None:
    menus = [item.item for item in notify_page(ALL).layout.walk_children() if isinstance(item, ui.DynamicItem)]
    labels = [option.label for menu in menus if isinstance(menu, ui.Select) for option in menu.options]
    assert len(labels) == len(NotifyEvent) * len(NotifyPlace)
    assert all(len(label) <= 100 for label in labels)
    form = quiet_form(None, NIGHT, zone="UTC")  # type: ignore[arg-type]
    parts = [item for item in form.children if isinstance(item, ui.Label)]
    assert all(len(part.text) <= 45 and len(part.description or "") <= 100 for part in parts)


def test_a_link_leads_to_the_thread_or_else_to_the_card() -> None:
    place = f"https://discord.com/channels/{job().guild_id}"
    assert job_link(job(), CARD) == f"{place}/9"
    assert job_link(job(), replace(CARD, thread_id=NO_THREAD)) == f"{place}/5/9"
    assert job_link(job(), None) == f"{place}/{job().channel_id}"


@pytest.mark.parametrize(
    ("begins", "ends", "zone", "expected"),
    [
        ("22:00", "7:30", "Europe/Berlin", NIGHT),
        ("10 pm", "7.30 am", "europe/berlin", NIGHT),
        (" 22 ", "07:30", "Berlin", NIGHT),
        ("12 am", "12pm", "Asia/Shanghai", QuietHours(begins=0, ends=720, zone="Asia/Shanghai")),
        ("0:00", "23:59", "new york", QuietHours(begins=0, ends=1439, zone="America/New_York")),
        ("", " ", "nonsense", None),
    ],
)
def test_quiet_hours_are_read_as_people_write_them(
    begins: str, ends: str, zone: str, expected: QuietHours | None
) -> None:
    assert parse_quiet_hours({"begins": begins, "ends": ends, "zone": zone}) == expected


def test_what_is_no_time_or_zone_gets_a_sentence() -> None:
    cases = {
        "no time": ("late", "7:00", "UTC"),
        "no such hour": ("25:00", "7:00", "UTC"),
        "no such half": ("13 pm", "7:00", "UTC"),
        "only one": ("22:00", "", "UTC"),
        "the same": ("7:00", "7 am", "UTC"),
        "a zone with a typo": ("22:00", "7:00", "Europe/Berln"),
        "no zone": ("22:00", "7:00", "xqzzy"),
    }
    sentences = {}
    for case, (begins, ends, zone) in cases.items():
        with pytest.raises(NoQuietHours) as raised:
            parse_quiet_hours({"begins": begins, "ends": ends, "zone": zone})
        sentences[case] = raised.value
    check_sentences(GOLDEN / "quiet_hours.txt", sentences)


@pytest.mark.parametrize(
    ("hours", "at", "is_quiet"),
    [
        # 1,800,000,000 is Friday, 15 January 2027, 08:00 UTC; 09:00 in Berlin, in winter.
        (QuietHours(begins=540, ends=541, zone="Europe/Berlin"), 1_800_000_000, True),
        (QuietHours(begins=539, ends=540, zone="Europe/Berlin"), 1_800_000_000, False),
        (QuietHours(begins=480, ends=481, zone="UTC"), 1_800_000_000, True),
        # In summer Berlin is two hours ahead.
        (QuietHours(begins=600, ends=601, zone="Europe/Berlin"), 1_800_000_000 + 180 * 86400, True),
        (NIGHT, 1_800_000_000 + 14 * 3600, True),
        (NIGHT, 1_800_000_000 - 3 * 3600, True),
        (NIGHT, 1_800_000_000, False),
    ],
)
def test_quiet_hours_follow_the_clock_of_the_person(hours: QuietHours, at: float, is_quiet: bool) -> None:
    assert hours.include(at) is is_quiet
