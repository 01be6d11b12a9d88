"""The text of news for operators."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bot.outbox import Notification, NotificationKind
from bot.ui.admin_news import (
    BackupFailed,
    BestResult,
    BotRestarted,
    DiskSpace,
    FilesDeleted,
    GpuHealth,
    GpuTrouble,
    JobSilent,
    JobUnkillable,
    LikedPicture,
    News,
    WeeklyDigest,
    news_post,
    news_text,
)
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, weight
from tests.bot.ui.rendering import HOSTILE, check_messages

GOLDEN = Path(__file__).parent / "golden"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
GIB = 1024**3
WEEK = WeeklyDigest(
    until=NOON,
    ends={"failed": 1, "succeeded": 12},
    gpu_seconds={1: 7200.0, 2: 30.5 * 3600},
    best=(BestResult(job_id=7, name="fox", owner_id=1, ratio=0.5),),
    liked=(LikedPicture(job_id=7, name="fox", owner_id=1, likes=4),),
    stored_bytes=GIB,
    free_bytes=50 * GIB,
    opens_at=NOON,
)


def test_each_kind_of_news_is_a_sentence() -> None:
    news: dict[str, News] = {
        "the disk is full": DiskSpace(is_low=True, free_bytes=9 * GIB, min_free_bytes=10 * GIB),
        "the disk has space": DiskSpace(is_low=False, free_bytes=20 * GIB, min_free_bytes=10 * GIB),
        "a GPU is missing": GpuHealth(slot="GPU 0 · H100", trouble=GpuTrouble.MISSING),
        "a GPU is hot": GpuHealth(slot="GPU 0 · H100", trouble=GpuTrouble.HOT, value=95),
        "a GPU has memory errors": GpuHealth(slot="GPU 0 · H100", trouble=GpuTrouble.MEMORY_ERRORS, value=4),
        "a GPU has recovered": GpuHealth(slot="GPU 0 · H100", trouble=None),
        "no backup": BackupFailed(error="The disk is full."),
        "retention": FilesDeleted(jobs=2, bytes=3 * GIB),
        "a restart": BotRestarted(away_s=42, running=1, ended=1, lost=1, messages=3),
        "a quiet restart": BotRestarted(away_s=60, running=0, ended=0, lost=0, messages=1),
        "a silent job": JobSilent(job_id=3, name="*fox*", silent_s=900, kill_at=NOON),
        "a silent job without a limit": JobSilent(job_id=3, name="fox", silent_s=900, kill_at=None),
        "an unkillable job": JobUnkillable(job_id=3, name="fox", since_s=180, was_stopped=False),
        "an unkillable job that was stopped": JobUnkillable(job_id=3, name="fox", since_s=180, was_stopped=True),
        "a week": WEEK,
        "a quiet week": WEEK.model_copy(update={"ends": {}, "gpu_seconds": {}, "best": (), "opens_at": None}),
    }
    check_messages(GOLDEN / "admin_news.txt", {name: news_text(each) for name, each in news.items()})


def test_a_busy_week_fits_into_a_message() -> None:
    snowflake = 2**63 - 1
    best = tuple(BestResult(job_id=10**9 + n, name="*" * 64, owner_id=snowflake - n, ratio=1.0) for n in range(5))
    ends = dict.fromkeys(("succeeded", "stopped", "failed", "cancelled"), 99_999)
    gpu_seconds = {snowflake - n: 1e6 for n in range(200)}
    week = WEEK.model_copy(update={"ends": ends, "gpu_seconds": gpu_seconds, "best": best})
    assert len(news_text(week)) <= 1500
    assert "195 more" in news_text(week)
    post = news_post(Notification(kind=NotificationKind.NEWS, detail=week.model_dump_json()))
    assert post.is_silent
    assert post.mentions == ()
    long = BackupFailed(error=HOSTILE * 10).model_dump_json()
    parts, characters, size = weight(news_post(Notification(kind=NotificationKind.NEWS, detail=long)).layout)
    assert (parts <= MAX_PARTS, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (True, True, True)
