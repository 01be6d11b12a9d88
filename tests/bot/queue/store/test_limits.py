"""Limits of roles, and GPU hours of a week."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bot.config import LimitSettings
from bot.db import Database
from bot.db.audit import read_entries
from bot.outbox import Outbox
from bot.queue import Priority
from bot.queue.domain.job import StopIntent
from bot.queue.store import limits
from bot.queue.store.limits import (
    AboveCeiling,
    Budget,
    NotEnoughGpus,
    OverBudget,
    PriorityNotAllowed,
    RoleLimit,
    RoleLimits,
    allowance_of,
    require_budget,
    require_gpus,
    require_priority,
    week_of,
)
from tests.bot.conftest import GUILD, claim, make_store, set_slots
from tests.bot.fake_events import failed, finished, started
from tests.bot.fakes import FakeClock
from tests.bot.jobs import new_job

BERLIN = ZoneInfo("Europe/Berlin")
#: A Wednesday noon, UTC.
WEDNESDAY = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
MONDAY = datetime(2026, 11, 23, tzinfo=UTC).timestamp()

role_limits = st.builds(
    RoleLimit,
    role_id=st.integers(1, 5),
    max_waiting=st.none() | st.integers(1, 9),
    max_running=st.none() | st.integers(0, 9),
    max_epochs=st.none() | st.integers(1, 900),
    max_dataset_mib=st.none() | st.integers(1, 900),
    gpu_hours_per_week=st.none() | st.integers(0, 90).map(float),
)


def test_a_member_without_such_a_role_has_the_configured_limits() -> None:
    allowance = allowance_of(LimitSettings(), [RoleLimit(role_id=7, max_epochs=900)], {1, 2})

    assert (allowance.max_waiting, allowance.max_epochs, allowance.max_dataset_bytes) == (3, 100, 200 * 2**20)
    assert (allowance.max_running, allowance.gpu_hours_per_week) == (None, None)


def test_for_each_limit_the_most_generous_role_counts() -> None:
    small = RoleLimit(role_id=1, max_epochs=10, max_waiting=1, gpu_hours_per_week=2)
    large = RoleLimit(role_id=2, max_epochs=50, max_running=4)

    assert allowance_of(LimitSettings(), [small, large], {1}).max_epochs == 10
    both = allowance_of(LimitSettings(), [small, large], {1, 2})
    assert (both.max_epochs, both.max_waiting, both.max_running, both.gpu_hours_per_week) == (50, 1, 4, 2)


def test_zero_means_any_number() -> None:
    few, any_number = RoleLimit(role_id=1, max_running=2), RoleLimit(role_id=2, max_running=0)

    assert allowance_of(LimitSettings(), [few, any_number], {1, 2}).max_running is None


@given(st.lists(role_limits, max_size=4), st.sets(st.integers(1, 5)))
def test_no_role_gets_more_than_is_configured(limits_set: list[RoleLimit], roles: set[int]) -> None:
    configured = LimitSettings(
        max_jobs_per_user=2, max_running_per_user=1, max_epochs=20, max_dataset_mib=50, gpu_hours_per_week=5
    )
    allowance = allowance_of(configured, limits_set, roles)
    ceiling = allowance_of(configured, [], roles)
    for name in ("max_waiting", "max_running", "max_epochs", "max_dataset_mib", "gpu_hours_per_week"):
        assert getattr(allowance, name) <= getattr(ceiling, name)


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("max_jobs_per_user", {"max_waiting": 4}),
        ("max_epochs", {"max_epochs": 101}),
        ("max_dataset_mib", {"max_dataset_mib": 100_000}),
        # 0: any number.
        ("max_running_per_user", {"max_running": 0}),
        ("gpu_hours_per_week", {"gpu_hours_per_week": 0}),
        ("gpu_hours_per_week", {"gpu_hours_per_week": 5.5}),
    ],
)
async def test_a_limit_above_the_configured_one_is_refused(db: Database, setting: str, limit: dict[str, float]) -> None:
    roles = RoleLimits(db, configured=LimitSettings(max_running_per_user=2, gpu_hours_per_week=5))
    with pytest.raises(AboveCeiling) as refused:
        await roles.set(GUILD, RoleLimit.model_validate({"role_id": 5, **limit}), by=9)
    assert refused.value.setting == setting
    assert await roles.list(GUILD) == []


@given(st.lists(role_limits, max_size=4), st.sets(st.integers(1, 5)), st.integers(1, 5))
def test_another_role_never_lowers_a_limit_that_a_role_sets(
    limits_set: list[RoleLimit], roles: set[int], more: int
) -> None:
    few = allowance_of(LimitSettings(), limits_set, roles)
    many = allowance_of(LimitSettings(), limits_set, roles | {more})
    for name in ("max_waiting", "max_running", "max_epochs", "max_dataset_mib", "gpu_hours_per_week"):
        if any(getattr(limit, name) is not None for limit in limits_set if limit.role_id in roles):
            before, after = getattr(few, name), getattr(many, name)
            assert after is None or (before is not None and after >= before)


async def test_limits_are_set_replaced_cleared_and_audited(db: Database) -> None:
    roles = RoleLimits(db)
    await roles.set(GUILD, RoleLimit(role_id=5, max_epochs=50, max_running=2), by=9)
    await roles.set(GUILD, RoleLimit(role_id=5, max_epochs=60), by=9)
    await roles.set(99, RoleLimit(role_id=5, max_epochs=90), by=1)

    assert await roles.list(GUILD) == [RoleLimit(role_id=5, max_epochs=60)]
    assert (await roles.allowance(GUILD, {5})).max_epochs == 60
    assert await roles.clear(GUILD, 5, by=9)
    assert not await roles.clear(GUILD, 5, by=9)
    assert await roles.list(GUILD) == []
    entries = await read_entries(db, guild_id=GUILD)
    assert [(entry.verb, entry.actor_id) for entry in entries] == [("limit role", 9)] * 3
    assert entries[0].before == entries[1].after == '{"role_id":5,"max_epochs":60}'


def test_an_invalid_limit_is_refused() -> None:
    with pytest.raises(ValidationError):
        RoleLimit(role_id=1, max_epochs=0)


def test_only_managers_may_use_high_priority() -> None:
    require_priority(Priority.HIGH, can_manage=True)
    require_priority(Priority.NORMAL, can_manage=False)
    with pytest.raises(PriorityNotAllowed):
        require_priority(Priority.HIGH, can_manage=False)


def test_more_gpus_than_available_are_refused_and_one_never() -> None:
    require_gpus(1, 0)
    require_gpus(2, 2)
    with pytest.raises(NotEnoughGpus):
        require_gpus(3, 2)


def test_a_week_lasts_from_monday_to_monday_in_local_time() -> None:
    assert week_of(WEDNESDAY, UTC) == (MONDAY, MONDAY + 7 * 86_400)
    assert week_of(MONDAY, UTC)[0] == MONDAY
    # Sunday 23:30 in UTC is Monday in Berlin.
    assert week_of(MONDAY - 1800, BERLIN)[0] == MONDAY - 3600
    # The week in which the clocks are set back has an hour more.
    first, last = week_of(datetime(2026, 10, 21, tzinfo=UTC).timestamp(), BERLIN)
    assert last - first == 7 * 86_400 + 3600


def test_a_job_that_does_not_fit_into_the_week_is_refused() -> None:
    budget = Budget(allowed_h=10, used_h=8, reserved_h=1.2)
    require_budget(budget, 0.7)
    require_budget(Budget(allowed_h=None, used_h=800, reserved_h=0), 9)
    # Of unknown duration: it is accepted while anything is left.
    require_budget(budget, None)
    with pytest.raises(OverBudget) as refused:
        require_budget(budget, 2.06)
    assert refused.value.needed_h == 2.06
    assert refused.value.left_h == pytest.approx(0.8)
    with pytest.raises(OverBudget):
        require_budget(Budget(allowed_h=10, used_h=10, reserved_h=0), None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(WEDNESDAY)


async def test_gpu_hours_are_of_this_week_and_running_jobs_count_up_to_now(
    db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path
) -> None:
    store = make_store(db, outbox, clock, tmp_path)
    roles = RoleLimits(db, clock=clock)
    await set_slots(store, 2)
    # Begins on Sunday at 22:00, ends on Monday at 03:00.
    clock.at = MONDAY - 2 * 3600
    over_midnight = await store.submit(new_job(owner=1, name="one", gpus=2))
    assert await claim(store, 2)
    clock.at = MONDAY + 3 * 3600
    await store.attempts.ingest(over_midnight.id, 1, [started(1), finished(2)], 1)
    # Of another owner, of another server, and of last week only.
    for owner, guild in ((2, GUILD), (1, 77)):
        await store.submit(new_job(owner=owner, guild=guild))
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at, ended_at)"
            " SELECT id, 9, guild_id, owner_id, 1, 'x', ?, ? FROM job",
            (MONDAY - 9 * 3600, MONDAY - 5 * 3600),
        )
        await connection.execute_fetchall(
            "INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at, ended_at)"
            " SELECT id, 10, guild_id, owner_id, 1, 'x', ?, ? FROM job WHERE id != 1",
            (MONDAY + 3600, MONDAY + 2 * 3600),
        )
    running = await store.submit(new_job(owner=1, estimate_s=7200.0))
    await store.request_stop(2, by=None, intent=StopIntent.CANCEL)
    await store.request_stop(3, by=None, intent=StopIntent.CANCEL)
    clock.at = WEDNESDAY - 1800
    taken = await claim(store, 1)
    assert taken is not None
    assert taken.id == running.id
    await store.submit(new_job(owner=1, gpus=1, estimate_s=3600.0))
    clock.at = WEDNESDAY

    budget = await roles.budget(GUILD, 1, 10.0)

    assert budget.used_h == pytest.approx(2 * 3 + 0.5)
    assert budget.reserved_h == pytest.approx(1.5 + 1)
    assert budget.left_h == pytest.approx(1.0)
    berlin = await roles.budget(GUILD, 1, 10.0, zone=BERLIN)
    assert berlin.used_h == pytest.approx(2 * 4 + 0.5)
    assert (await roles.budget(GUILD, 3, None)).left_h is None


async def test_a_job_still_needs_its_estimate_less_its_earlier_attempts(
    db: Database, outbox: Outbox, clock: FakeClock, tmp_path: Path
) -> None:
    store = make_store(db, outbox, clock, tmp_path)
    roles = RoleLimits(db, clock=clock)
    await set_slots(store, 2)
    job = await store.submit(new_job(gpus=2, estimate_s=7200.0))
    unknown = await store.submit(new_job())
    assert await claim(store, 2)
    clock.advance(1800)
    await store.attempts.ingest(job.id, 1, [started(1), failed(2)], 1)
    clock.advance(9000)
    assert await roles.needed_h(job.id) == pytest.approx(2 * 1.5)
    assert await roles.needed_h(unknown.id) is None


async def test_gpu_hours_are_found_by_an_index(db: Database) -> None:
    values = {"owner_id": 1, "guild_id": GUILD, "now": WEDNESDAY, "monday": MONDAY, "id": 1}
    for statement in (limits._USED, limits._RESERVED, limits._NEEDED):
        plan = [row["detail"] for row in await db.all("EXPLAIN QUERY PLAN " + statement, values)]
        assert not [step for step in plan if step.startswith("SCAN")], plan
