"""The pages of `/admin`."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bot.health import (
    ConnectionStats,
    DeadMessage,
    HealthSnapshot,
    HeldChannel,
    JobHealth,
    OutboxHealth,
    ProblemKind,
)
from bot.outbox import HoldReason, NotificationKind
from bot.queue.domain.job import Priority, State
from bot.queue.planning.retention import Deletion, DeletionReason, DeletionScope, RetentionPlan, StorageTotals
from bot.queue.store.limits import RoleLimit
from bot.queue.store.queue_control import PauseKind
from bot.queue.store.slots import Slot
from bot.ui.admin_pages import (
    bump_text,
    confirm_page,
    health_page,
    limits_page,
    pause_text,
    plan_digest,
    slots_page,
    storage_page,
)
from tests.bot.ui.examples import job
from tests.bot.ui.rendering import buttons, check_limits, check_messages
from tests.bot.ui.test_job_messages import PAUSE, queued

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = Deletion(
    job_id=1, name="fox", owner_id=5, scope=DeletionScope.CHECKPOINTS, bytes=100, reason=DeletionReason.AGE, value=40,
    limit=30,
)  # fmt: skip


def test_replies_to_a_pause_and_a_bump() -> None:
    drain = PAUSE.model_copy(update={"kind": PauseKind.DRAIN})
    texts = {
        "pause, nothing runs": pause_text(PAUSE, 0),
        "pause, one runs": pause_text(PAUSE, 1),
        "drain, one runs": pause_text(drain, 1),
        "drain, two run": pause_text(drain, 2),
        "bump of a running job": bump_text(job(), job(), Priority.HIGH),
        "bump": bump_text(queued(), queued(), Priority.HIGH),
        "bump to the same": bump_text(queued(), queued(), Priority.NORMAL),
    }
    check_messages(GOLDEN / "admin_texts.txt", texts)


def test_slots_and_limits() -> None:
    slots = [
        Slot(id="a", device="0", name="GPU 0", memory_bytes=24 * 2**30, job_id=3, is_enabled=False),
        Slot(id="b", device="1", name="GPU 1", memory_bytes=24 * 2**30),
    ]
    limits = limits_page([RoleLimit(role_id=5, max_waiting=4, max_running=0, gpu_hours_per_week=2.5)])
    pages = {"slots": slots_page(slots), "no slots": slots_page([]), "limits": limits, "no limits": limits_page([])}
    check_messages(GOLDEN / "admin_pages.txt", pages)
    assert dict(limits.allowed_mentions.to_dict()) == {"parse": []}


def test_storage_pages_and_the_digest_of_a_plan() -> None:
    plan = RetentionPlan(deletions=(CHECKPOINTS,))
    totals = StorageTotals(free_bytes=1, bytes_by_owner={5: 100}, protected_bytes=0)
    pages = {
        "storage": storage_page(plan, totals),
        "storage, nothing due": storage_page(RetentionPlan(), totals),
        "confirmation": confirm_page(plan),
    }
    check_messages(GOLDEN / "storage_pages.txt", pages)
    assert [len(buttons(page)) for page in pages.values()] == [1, 0, 1]
    more = RetentionPlan(deletions=(CHECKPOINTS, dataclasses.replace(CHECKPOINTS, job_id=2)))
    other = RetentionPlan(deletions=(dataclasses.replace(CHECKPOINTS, scope=DeletionScope.EVERYTHING),))
    assert len({plan_digest(plan), plan_digest(more), plan_digest(other)}) == 3


HEALTH = HealthSnapshot(
    at=datetime(2026, 11, 24, 12, tzinfo=UTC),
    integrity="ok",
    schema=1,
    database_bytes=5 * 2**20,
    wal_bytes=0,
    free_disk_bytes=80 * 2**30,
    min_free_bytes=10 * 2**30,
    outbox=OutboxHealth(waiting=0, cards=1, oldest_s=None, dead=0),
    jobs={State.RUNNING: 1, State.QUEUED: 2},
    running=(JobHealth(job_id=3, state=State.RUNNING, attempt=1, event_age_s=2.0, heartbeat_age_s=None),),
    slots=(Slot(id="a", device="0", name="GPU 0", job_id=3), Slot(id="b", device="1", name="GPU 1")),
    queue_pause=None,
    connection=ConnectionStats(is_connected=True, connects=1),
)


def held_channel(guild_id: int) -> HeldChannel:
    return HeldChannel(
        channel_id=100 + guild_id,
        guild_id=guild_id,
        reason=HoldReason.NO_PERMISSION,
        detail="403 50013 Missing Permissions (Send Messages)",
        since=HEALTH.at - timedelta(minutes=12),
        messages=3,
        cards=1,
    )


def dead_message(guild_id: int) -> DeadMessage:
    return DeadMessage(
        job_id=3,
        guild_id=guild_id,
        channel_id=200 + guild_id,
        kind=NotificationKind.DONE,
        reason="404 10003 Unknown Channel",
        at=HEALTH.at - timedelta(hours=2),
    )


def test_health_with_and_without_problems() -> None:
    silent = JobHealth(job_id=3, state=State.RUNNING, attempt=1, event_age_s=900.0, heartbeat_age_s=600.0)
    unhealthy = dataclasses.replace(
        HEALTH,
        integrity="row 7 missing from index job_line",
        wal_bytes=2**30,
        free_disk_bytes=2**30,
        outbox=OutboxHealth(
            waiting=4,
            cards=2,
            oldest_s=3600.0,
            oldest_reason="503 upstream connect error",
            refused_cards=1,
            dead=1,
            newest_dead=(dead_message(9), dead_message(10)),
            held=(held_channel(9), held_channel(10)),
        ),
        running=(silent,),
        slots=(Slot(id="a", device="0", name="GPU 0", job_id=3, is_enabled=False),),
        queue_pause=PAUSE,
        connection=ConnectionStats(disconnects=2, disconnected_at=HEALTH.at - timedelta(hours=1), blocks=3),
    )
    pages = {
        "healthy": health_page(HEALTH),
        "every problem": health_page(unhealthy),
        "every problem, for a manager of server 9": health_page(unhealthy, guild_id=9),
    }
    check_messages(GOLDEN / "health_pages.txt", pages)
    assert {problem.kind for problem in unhealthy.problems} == set(ProblemKind)
    for page in pages.values():
        check_limits(page)
